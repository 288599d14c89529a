"""log Z of targets whose truth is known: ``python recipes/benchmarks/log_z.py``.

Prints target, truth, mean error, RMSE over the seeds, mean stated error, gradient evaluations, seconds and effective
sample size. One kernel and one set of defaults for all; only the number of temperatures follows from the budget.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jsonargparse import auto_cli
from torch import nn
from tqdm import tqdm

from ebm_lightning import JEM
from ebm_lightning.energies import Energy, GaussianEnergy, JointEnergy, MixtureLogits
from ebm_lightning.partition import Normal, Proposal, ais, exact_log_z
from ebm_lightning.samplers import GHMC, HMC, MALA
from ebm_lightning.streams import make_generator
from ebm_lightning.supports import Box, Euclidean, Support

KERNELS = {"ghmc": GHMC(), "hmc": HMC(leapfrogs=3), "mala": MALA()}


class Target(NamedTuple):
    energy: Energy
    support: Support
    proposal: Proposal | None
    budget: float
    pilots: float  # of the budget, a little more than pilots take
    chains: int


def main(
    targets: tuple[str, ...] = (),
    seeds: int = 20,
    kernel: Literal["ghmc", "hmc", "mala"] = "ghmc",
    resample: bool = True,
    rings: Path | None = None,
    coverage: int = 0,
) -> None:
    """Hold AIS against the truth.

    Args:
        targets: Names from the table; all by default.
        seeds: Runs of each target.
        kernel: The kernel; hmc takes three leapfrog steps a temperature.
        resample: Resample where the effective share falls under a half.
        rings: model.ckpt of recipes/rings.py; its row is left out without it.
        coverage: Count in this many runs how often the 95 % interval holds the truth, in place of the table.
    """
    rows = table_of_targets(rings)
    if coverage:
        print_coverage(rows["modes-2"](), coverage)
        return
    print(
        f"{'target':12}{'truth':>10}{'mean err':>10}{'RMSE':>9}{'stated':>9}{'gradients':>11}{'seconds':>9}{'ESS':>7}"
    )
    for name in targets or rows:
        target = rows[name]()
        truth = exact_log_z(target.energy, target.support).log_z
        temperatures = int((target.budget - target.pilots) / target.chains / KERNELS[kernel].leapfrogs)
        start = time.time()
        results = [
            ais(
                target.energy,
                target.support,
                proposal=target.proposal,
                kernel=KERNELS[kernel],
                temperatures=temperatures,
                chains=target.chains,
                resample=resample,
                generator=make_generator(seed, "benchmark"),
            )
            for seed in tqdm(range(seeds), name, leave=False)
        ]
        errors = [r.log_z - truth for r in results]
        print(
            f"{name:12}{truth:10.3f}{sum(errors) / seeds:10.4f}"
            f"{math.sqrt(sum(e * e for e in errors) / seeds):9.4f}{sum(r.std_err for r in results) / seeds:9.4f}"
            f"{max(r.gradient_evaluations for r in results):11.2e}{(time.time() - start) / seeds:9.1f}"
            f"{sum(r.ess for r in results) / seeds:7.2f}",
            flush=True,
        )


def print_coverage(target: Target, repeats: int) -> None:
    """Of two-dimensional modes, with 60 temperatures and 200 chains."""
    truth, hits, ess = exact_log_z(target.energy, target.support).log_z, 0, 0.0
    for repeat in tqdm(range(repeats), "coverage", leave=False):
        result = ais(
            target.energy,
            target.support,
            proposal=target.proposal,
            temperatures=60,
            chains=200,
            generator=make_generator(repeat, "coverage"),
        )
        low, high = result.interval(0.95)
        hits, ess = hits + (low <= truth <= high), ess + result.ess / repeats
    print(f"95 % intervals hold the truth in {hits} of {repeats} runs; mean effective share {ess:.2f}")


def table_of_targets(rings: Path | None) -> dict[str, Callable[[], Target]]:
    plane, space = Euclidean((2,)), Euclidean((64,))
    rows: dict[str, Callable[[], Target]] = {
        "linear-64": lambda: linear(64, 1.0),
        "linear-784": lambda: linear(784, 0.3),
        "modes-2": lambda: Target(
            JointEnergy(MixtureLogits(3.0 * torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]]), 0.7), plane),
            plane,
            Normal(torch.zeros(2), torch.full((2,), 3.0)),
            1e5,
            1.5e4,
            250,
        ),
        "gauss-64": lambda: Target(
            GaussianEnergy(torch.zeros(64), torch.logspace(-0.5, 0.5, 64)),
            space,
            Normal(torch.zeros(64), torch.ones(64)),
            1e6,
            6e4,
            1000,
        ),
        "mixture-64": lambda: Target(
            JointEnergy(MixtureLogits(2 * torch.randn(4, 64, generator=make_generator(0, "centres")), 0.7), space),
            space,
            Normal(torch.zeros(64), torch.full((64,), 2.0)),
            5e5,
            9.5e4,
            1000,
        ),
    }
    if rings is not None:
        rows["rings"] = lambda: trained(rings)
    return rows


def linear(dimensions: int, std: float) -> Target:
    """Ten linear logits on [-1, 1]^D with weights N(0, std^2)."""
    generator, layer = make_generator(0, "linear"), nn.Linear(dimensions, 10)
    with torch.no_grad():
        layer.weight.copy_(std * torch.randn(10, dimensions, generator=generator))
        layer.bias.copy_(torch.randn(10, generator=generator))
    box = Box(-1, 1, (dimensions,))
    return Target(JointEnergy(layer, box), box, None, 1e6, 1.5e4, 1000)


def trained(checkpoint: Path) -> Target:
    module = JEM.load_from_checkpoint(checkpoint, weights_only=True, map_location="cpu").eval()
    return Target(module.energy, module.support, None, 1e5, 8e3, 250)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
