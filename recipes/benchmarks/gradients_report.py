"""The table and the figure of ``gradients.py``."""

import math
import statistics
from collections.abc import Iterable
from typing import Any

from common import print_table
from matplotlib.figure import Figure

from ebm_lightning.data import Digits

INNER = 5  # PYLD's inner steps per full pass through the network, as in JEM++
UNIFORM = math.log2(Digits.num_levels)  # bits per dimension of uniform noise
LONG = f"SGLD of {INNER} times the step"
COLORS = {"SGLD": "tab:blue", LONG: "tab:green", "PYLD": "tab:orange"}
CONTENDERS = tuple(f"{kernel} from {initial}" for initial in ("noise", "class Gaussians") for kernel in COLORS)
Row = dict[str, Any]
Groups = dict[tuple[str, int], list[Row]]  # the runs of all seeds, by contender and K


def inner_passes(steps: int) -> int:
    """PYLD's passes through the first block: its inner steps, and one pass that checks which module comes first."""
    return steps * (INNER - 1) + 1


def evaluations(contender: str, steps: int, cost: float) -> float:
    """Gradient evaluations per chain and optimizer step, in passes through the network."""
    return steps + (cost * inner_passes(steps) if contender.startswith("PYLD") else 0)


def by_contender(rows: Iterable[Row]) -> Groups:
    groups: Groups = {}
    for row in sorted(rows, key=lambda r: (CONTENDERS.index(r["contender"]), r["sampler_steps"])):
        groups.setdefault((row["contender"], row["sampler_steps"]), []).append(row)
    return groups


def print_summary(groups: Groups, cost: dict[str, float]) -> None:
    """Print the mean, minimum and maximum over the seeds."""
    print("first block relative to the network:", ", ".join(f"{v:.3f} by {k}" for k, v in cost.items()))
    cells = []
    for (name, k), rows in groups.items():
        by_flops, by_time = (evaluations(name, k, cost[by]) for by in ("flops", "time"))
        gradients = f"{by_flops:.1f}" + (f" ({by_time:.1f})" if by_time > by_flops else "")
        seconds = statistics.mean(r["seconds"] for r in rows)
        quality = [mean_and_range([r[what] for r in rows]) for what in ("bits", "auroc", "accuracy")]
        cells.append((name, k, gradients, f"{seconds:.0f}", *quality))
    print_table(("chains", "K", "gradients, by FLOPs (by time)", "CPU s", "bits/dim", "AUROC", "accuracy"), cells)


def mean_and_range(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def plot_quality(groups: Groups, max_steps: int, cost: dict[str, float]) -> Figure:
    """Plot quality against gradient evaluations, one line per contender."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, what in zip(panels, ("bits", "auroc"), strict=True):
        for name in dict.fromkeys(name for name, _ in groups):
            _plot_contender(axes, name, what, [rows for (n, _), rows in groups.items() if n == name], max_steps, cost)
        axes.set(xscale="log", xlabel="gradient evaluations of a batch of chains, in total")
        axes.grid(alpha=0.3)
    panels[0].axhline(UNIFORM, color="gray", ls=":", label="uniform noise")
    panels[0].set(ylabel="bits per dimension (hollow: log Z unreliable)", title="Density of digits: lower is better")
    panels[1].set(ylabel="AUROC of log p(x), mean of six sets", title="OOD detection: higher is better")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _plot_contender(
    axes: Any, name: str, what: str, groups: list[list[Row]], max_steps: int, cost: dict[str, float]
) -> None:
    """Plot a point for each K. Vertical bars span the seeds, horizontal ones the evaluations by FLOPs and by time."""
    kernel, initial = name.split(" from ")
    color, points = COLORS[kernel], []
    for rows in groups:
        values = [r[what] for r in rows]
        mean, hollow = statistics.mean(values), what == "bits" and not all(r["reliable"] for r in rows)
        k = rows[0]["sampler_steps"]
        by_flops, by_time = (max_steps * evaluations(name, k, cost[by]) for by in ("flops", "time"))
        axes.plot([by_flops, by_flops], [min(values), max(values)], color=color, lw=3, alpha=0.4)
        axes.plot([by_flops, by_time], [mean, mean], color=color, lw=0.8)
        axes.plot(by_flops, mean, "o", color=color, mfc="white" if hollow else color, ms=5, zorder=3)
        points.append((by_flops, mean))
    axes.plot(*zip(*points, strict=True), color=color, ls="-" if initial == "noise" else "--", label=name)
