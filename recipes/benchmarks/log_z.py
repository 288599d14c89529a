"""Accuracy of annealing on targets with known log Z: ``python recipes/benchmarks/log_z.py``.

Prints a Markdown table with the exact log Z of each target, and over the seeds the mean error, RMSE, mean stated error,
gradient evaluations, seconds and relative effective sample size. All targets use the same kernel and defaults. Only the
number of temperatures differs: it follows from the budget of gradient evaluations.
"""

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from common import check_targets, print_table, timed
from jsonargparse import auto_cli
from torch import nn
from tqdm import tqdm

from ebm_lightning import JEM, Density, LogZ
from ebm_lightning.energies import Energy, GaussianEnergy, JointEnergy, MixtureLogits
from ebm_lightning.partition import Normal, ais, exact_log_z
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import GHMC, HMC, MALA
from ebm_lightning.supports import Box, Euclidean, Support

KERNELS = {"ghmc": GHMC(), "hmc": HMC(leapfrogs=3), "mala": MALA()}
HEADER = ("target", "exact", "mean error", "RMSE", "stated error", "gradients", "seconds", "relative ESS")


class Target(NamedTuple):
    """An energy with known log Z, and how to anneal to it.

    Attributes:
        energy, support, proposal: As for ``ais``.
        budget: Gradient evaluations.
        pilots: Part of the budget reserved for pilot runs; a little more than they need.
        num_chains: Number of chains.
    """

    energy: Energy
    support: Support
    proposal: Density | None
    budget: float
    pilots: float
    num_chains: int

    def anneal(self, seed: int, stream: str, **arguments: Any) -> LogZ:
        rng = make_generator(seed, stream)
        return ais(self.energy, self.support, proposal=self.proposal, generator=rng, **arguments)


def main(
    targets: tuple[str, ...] = (),
    seeds: int = 20,
    kernel: Literal["ghmc", "hmc", "mala"] = "ghmc",
    resample: bool = True,
    rings: Path | None = None,
    coverage: int = 0,
) -> None:
    """Compare AIS with exact values.

    Args:
        targets: Names of targets; all by default.
        seeds: Number of runs per target.
        kernel: Kernel that moves the chains. hmc takes three leapfrog steps per temperature.
        resample: Resample chains when their relative effective sample size falls below one half.
        rings: model.ckpt of recipes/rings.py. Without it that target is left out.
        coverage: If positive, count in this many runs how often the 95 % interval contains the exact value, instead of
            printing the table.
    """
    known = table_of_targets(rings)
    check_targets(targets, known)
    if coverage:
        print_coverage(known["modes-2"](), coverage)
        return
    rows = [row(name, known[name](), seeds, KERNELS[kernel], resample) for name in targets or known]
    print_table(HEADER, rows)


def row(name: str, target: Target, seeds: int, kernel: HMC, resample: bool) -> tuple[str, ...]:
    """One line of the table."""
    exact = exact_log_z(target.energy, target.support).log_z
    temperatures = int((target.budget - target.pilots) / target.num_chains / kernel.leapfrogs)
    arguments = {"temperatures": temperatures, "num_chains": target.num_chains, "kernel": kernel, "resample": resample}
    duration, results = timed(
        lambda: [target.anneal(s, "benchmark", **arguments) for s in tqdm(range(seeds), name, leave=False)]
    )
    errors = [r.log_z - exact for r in results]
    rmse = math.sqrt(statistics.mean(e * e for e in errors))
    stated, ess = (statistics.mean(getattr(r, key) for r in results) for key in ("std_err", "ess"))
    gradients = max(r.gradient_evaluations for r in results)
    cells = (name, f"{exact:.3f}", f"{statistics.mean(errors):.4f}", f"{rmse:.4f}", f"{stated:.4f}")
    return (*cells, f"{gradients:.2e}", f"{duration.wall / seeds:.1f}", f"{ess:.2f}")


def print_coverage(target: Target, repeats: int) -> None:
    """How often the 95 % interval contains the exact value, with 60 temperatures and 200 chains."""
    exact, hits, ess = exact_log_z(target.energy, target.support).log_z, 0, 0.0
    for repeat in tqdm(range(repeats), "coverage", leave=False):
        result = target.anneal(repeat, "coverage", temperatures=60, num_chains=200)
        low, high = result.interval(0.95)
        hits, ess = hits + (low <= exact <= high), ess + result.ess / repeats
    print(f"95 % intervals contain the exact value in {hits} of {repeats} runs; mean relative ESS {ess:.2f}")


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
            3.0e4,
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
