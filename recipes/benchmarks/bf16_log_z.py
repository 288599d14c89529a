r"""Change of the log Z of a trained model when the network's body runs in bfloat16.

``OMP_NUM_THREADS=1 python recipes/benchmarks/bf16_log_z.py --checkpoints '[a.ckpt,b.ckpt]'`` prints a Markdown table
and writes ``bf16_log_z.json``. Kernels are exact for the energy as computed, so an estimate in bfloat16 is one of the
rounded model. The change is measured in two ways: as the difference of independent estimates, which has the errors of
both, and by reweighting the ends of the float32 chains. The second does not have these errors, provided that the chains
are samples of the model:

.. math:: \log Z_{16} - \log Z_{32} = \log \mathbb{E}_{p_{32}} e^{E_{32}(x) - E_{16}(x)}
"""

import functools
import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from common import CPU, print_table, timed, write_json
from jsonargparse import auto_cli
from torch import Tensor, nn
from tqdm import tqdm

from ebm_lightning import JEM, Compute, JointEnergy, LogZ, ais
from ebm_lightning.rng import make_generator

MODES = {"fp32": Compute("fp32"), "bf16": Compute("bf16")}  # of the body; the head and what follows are in float32
Row = dict[str, Any]


def main(
    checkpoints: tuple[Path, ...],
    temperatures: int = 500,
    num_chains: int = 1000,
    seeds: int = 4,
    output: Path = Path("bf16_log_z.json"),
) -> list[Row]:
    """Estimate log Z of each model in both precisions, alternately, and print a table.

    Args:
        checkpoints: Lightning checkpoints of JEMs on boxes, whose networks are this library's.
        temperatures: Annealing steps from the reference density to the model.
        num_chains: Chains of each estimate.
        seeds: Number of estimates of each model in each precision.
        output: JSON file for all numbers.
    """
    rows = []
    for checkpoint in checkpoints:
        module = JEM.load_from_checkpoint(checkpoint, weights_only=True, map_location="cpu").eval()
        loop = tqdm(range(seeds), str(checkpoint))
        turns = [both(module.chain_energy, temperatures, num_chains, seed) for seed in loop]
        rows.append({"checkpoint": str(checkpoint), **summary(turns), "turns": turns})
        write_json(output, rows)
    print_rows(rows)
    return rows


def both(energy: JointEnergy, temperatures: int, num_chains: int, seed: int) -> Row:
    """One estimate in each precision, and the effect of rounding on the energies at the ends of the float32 chains."""
    row: Row = {}
    for mode, compute in MODES.items():
        estimate = functools.partial(ais, energy, energy.support, temperatures=temperatures, num_chains=num_chains)
        with final_points(energy) as points, compute.applied(energy, CPU):
            duration, result = timed(functools.partial(estimate, generator=make_generator(seed, mode)))
        row[mode] = metrics(result) | {"seconds": duration.wall}
        if mode == "fp32":
            ends = torch.cat(points)[-num_chains:]  # after the points at which the energy was checked
            row["rounding"] = rounding(energy, ends, result.log_weights)
    return row


def metrics(result: LogZ) -> Row:
    names = ("log_z", "std_err", "ess", "reliable", "gradient_evaluations")
    return {name: getattr(result, name) for name in names} | {"acceptance": float(result.acceptance.mean())}


@contextmanager
def final_points(energy: JointEnergy) -> Iterator[list[Tensor]]:
    """Collects the final points of each island's chains.

    On a box, these are the last points at which an estimate evaluates logits without a gradient.
    """
    points: list[Tensor] = []

    def record(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if not torch.is_grad_enabled():
            points.append(args[0].clone())

    handle = energy.classifier.register_forward_pre_hook(record)
    try:
        yield points
    finally:
        handle.remove()


@torch.no_grad()
def rounding(energy: JointEnergy, x: Tensor, log_w: Tensor) -> dict[str, float]:
    """The shift of log Z, and the mean and standard deviation of E_16 - E_32 under the model, in nats."""
    energies = {}
    for mode, compute in MODES.items():
        with compute.applied(energy, CPU):
            energies[mode] = torch.cat([energy(part).double() for part in x.split(100)])
    w, rounded = log_w.softmax(0), energies["bf16"] - energies["fp32"]
    mean = float((w * rounded).sum())
    deviation = float((w * (rounded - mean).square()).sum().sqrt())
    return {"shift": float((log_w.log_softmax(0) - rounded).logsumexp(0)), "mean": mean, "deviation": deviation}


def summary(turns: list[Row]) -> Row:
    """Means over the seeds. Errors come from the stated errors; that of the shift comes from its spread."""
    mean: Row = {mode: {k: statistics.mean(t[mode][k] for t in turns) for k in turns[0][mode]} for mode in MODES}
    for mode in MODES:
        mean[mode]["std_err"] = math.hypot(*(t[mode]["std_err"] for t in turns)) / len(turns)
    shifts = [t["rounding"]["shift"] for t in turns]
    return mean | {
        "difference": mean["bf16"]["log_z"] - mean["fp32"]["log_z"],
        "difference_std_err": math.hypot(*(mean[mode]["std_err"] for mode in MODES)),
        "shift": statistics.mean(shifts),
        "shift_std_err": statistics.stdev(shifts) / math.sqrt(len(shifts)) if len(shifts) > 1 else math.nan,
        "rounding": {k: statistics.mean(t["rounding"][k] for t in turns) for k in ("mean", "deviation")},
    }


def print_rows(rows: list[Row]) -> None:
    modes = ("", "log Z, fp32", "log Z, bf16", "difference", "by reweighting", "E_16 - E_32: mean, deviation")
    table = []
    for r in rows:
        a, b = r["fp32"], r["bf16"]
        table.append(
            (
                r["checkpoint"],
                *(f"{m['log_z']:.3f} +- {m['std_err']:.3f}" for m in (a, b)),
                *(f"{r[key]:.4f} +- {r[key + '_std_err']:.4f}" for key in ("difference", "shift")),
                f"{r['rounding']['mean']:.4f}, {r['rounding']['deviation']:.4f}",
                f"{a['acceptance']:.3f}, {b['acceptance']:.3f}",
                f"{a['ess']:.2f}, {b['ess']:.2f}",
                f"{a['reliable']:.0%}, {b['reliable']:.0%}",
                f"{a['seconds']:.1f}, {b['seconds']:.1f}",
            )
        )
    print_table((*modes, "acceptance", "relative ESS", "reliable", "seconds"), table)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
