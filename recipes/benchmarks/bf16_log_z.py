r"""How far the log Z of a trained model moves when the network's body runs in bfloat16.

``OMP_NUM_THREADS=1 python recipes/benchmarks/bf16_log_z.py --checkpoints '[a.ckpt,b.ckpt]'`` prints a Markdown table
and writes ``bf16_log_z.json``. Kernels are exact for the energy as computed, so that an estimate in bfloat16 is one of
the rounded model. How far that is from the model is measured twice: as the difference of independent estimates, which
carries the errors of both, and by reweighting the ends of the float32 chains, which does not, as far as these are
samples of the model:

.. math:: \log Z_{16} - \log Z_{32} = \log \mathbb{E}_{p_{32}} e^{E_{32}(x) - E_{16}(x)}
"""

import json
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn
from tqdm import tqdm

from ebm_lightning import JEM, Compute, JointEnergy, LogZ, ais
from ebm_lightning.streams import make_generator

CPU = torch.device("cpu")
MODES = {"fp32": Compute("fp32"), "bf16": Compute("bf16")}  # of the body; the head and all behind it are in float32
Row = dict[str, Any]


def main(
    checkpoints: tuple[Path, ...],
    temperatures: int = 500,
    chains: int = 1000,
    seeds: int = 4,
    output: Path = Path("bf16_log_z.json"),
) -> list[Row]:
    """Estimate log Z of each model in both precisions, in turns, and print the table.

    Args:
        checkpoints: Of JEMs on boxes, as Lightning wrote them, each of one of this library's networks.
        temperatures: Steps from the reference density to the model.
        chains: Of each estimate.
        seeds: Estimates of each model in each precision.
        output: Where the figures go, as JSON.
    """
    rows = []
    for checkpoint in checkpoints:
        module = JEM.load_from_checkpoint(checkpoint, weights_only=True, map_location="cpu").eval()
        loop = tqdm(range(seeds), str(checkpoint))
        turns = [both(module.energy, temperatures, chains, seed) for seed in loop]
        rows.append({"checkpoint": str(checkpoint), **summary(turns), "turns": turns})
        output.write_text(json.dumps(rows, indent=1))
    print_table(rows)
    return rows


def both(energy: JointEnergy, temperatures: int, chains: int, seed: int) -> Row:
    """One estimate in each precision, and what rounding does to the energies where the float32 chains end."""
    row: Row = {}
    for mode, compute in MODES.items():
        generator, start = make_generator(seed, mode), time.perf_counter()
        with ends_of_chains(energy) as ends, compute.applied(energy, CPU):
            result = ais(energy, energy.support, temperatures=temperatures, chains=chains, generator=generator)
        row[mode] = figures(result) | {"seconds": time.perf_counter() - start}
        if mode == "fp32":
            row["rounding"] = rounding(energy, torch.cat(ends), result.log_weights)
    return row


def figures(result: LogZ) -> Row:
    names = ("log_z", "std_err", "ess", "reliable", "gradient_evaluations")
    return {name: getattr(result, name) for name in names} | {"acceptance": float(result.acceptance.mean())}


@contextmanager
def ends_of_chains(energy: JointEnergy) -> Iterator[list[Tensor]]:
    """Where each island's chains end: the one place where an estimate on a box needs logits and no gradient."""
    ends: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if not torch.is_grad_enabled():
            ends.append(args[0].clone())

    handle = energy.classifier.register_forward_pre_hook(note)
    try:
        yield ends
    finally:
        handle.remove()


@torch.no_grad()
def rounding(energy: JointEnergy, x: Tensor, log_w: Tensor) -> dict[str, float]:
    """The shift of log Z, and mean and standard deviation of E_16 - E_32 over the model, in nats."""
    energies = {}
    for mode, compute in MODES.items():
        with compute.applied(energy, CPU):
            energies[mode] = torch.cat([energy(part).double() for part in x.split(100)])
    w, rounded = log_w.softmax(0), energies["bf16"] - energies["fp32"]
    mean = float((w * rounded).sum())
    deviation = float((w * (rounded - mean).square()).sum().sqrt())
    return {"shift": float((log_w.log_softmax(0) - rounded).logsumexp(0)), "mean": mean, "deviation": deviation}


def summary(turns: list[Row]) -> Row:
    """Means over the seeds, with the errors that follow from the stated ones, and from the spread for the shift."""
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


def print_table(rows: list[Row]) -> None:
    print(
        "\n| | log Z, fp32 | log Z, bf16 | difference | by reweighting | E_16 - E_32: mean, deviation "
        "| acceptance | effective share | reliable | seconds |\n|---" + "|---" * 9 + "|"
    )
    for r in rows:
        a, b = r["fp32"], r["bf16"]
        print(
            f"| {r['checkpoint']} | {a['log_z']:.3f} +- {a['std_err']:.3f} | {b['log_z']:.3f} +- {b['std_err']:.3f} "
            f"| {r['difference']:.4f} +- {r['difference_std_err']:.4f} | {r['shift']:.4f} +- {r['shift_std_err']:.4f} "
            f"| {r['rounding']['mean']:.4f}, {r['rounding']['deviation']:.4f} "
            f"| {a['acceptance']:.3f}, {b['acceptance']:.3f} | {a['ess']:.2f}, {b['ess']:.2f} "
            f"| {a['reliable']:.0%}, {b['reliable']:.0%} | {a['seconds']:.1f}, {b['seconds']:.1f} |"
        )


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
