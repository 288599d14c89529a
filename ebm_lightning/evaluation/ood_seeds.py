"""Several runs of :func:`~ebm_lightning.evaluate_ood`, such as those of several networks: means and standard errors."""

import math
import statistics
from collections.abc import Mapping, Sequence

from ebm_lightning.evaluation.report.page import Cell, Section, Table

Runs = Sequence[Mapping[str, float]]
"""For each run what ``OODResults.metrics()`` returns, and perhaps other numbers, by name."""
ALL = "mean"  # column of the mean over all sets


def mean(runs: Runs, key: str) -> float:
    """Mean of one number over the runs."""
    return statistics.mean(run[key] for run in runs)


def mean_and_error(runs: Runs, key: str) -> str:
    """Mean over the runs, with its standard error if there are several."""
    if len(runs) == 1:
        return f"{mean(runs, key):.4f}"
    return f"{mean(runs, key):.4f} ± {statistics.stdev(run[key] for run in runs) / math.sqrt(len(runs)):.4f}"


def detectors_and_sets(runs: Runs) -> tuple[list[str], list[str]]:
    """Names of the detectors and of the sets, in order."""
    keys = [key.split("/") for key in runs[0] if key.endswith("/auroc")]
    return list(dict.fromkeys(key[0] for key in keys)), list(dict.fromkeys(key[1] for key in keys))


def markdown_table(runs: Runs, metric: str = "auroc") -> str:
    """Each detector on each set, and its mean over all sets, as Markdown."""
    detectors, sets = detectors_and_sets(runs)
    lines = [f"| {metric} | {' | '.join((*sets, ALL))} |", "|---" * (len(sets) + 2) + "|"]
    for detector in detectors:
        cells = [mean_and_error(runs, f"{detector}/{name}/{metric}") for name in sets]
        average = statistics.mean(mean(runs, f"{detector}/{name}/{metric}") for name in sets)
        lines.append(f"| {detector} | {' | '.join(cells)} | {average:.4f} |")
    return "\n".join(lines)


def findings(runs: Runs, ours: str, rivals: Sequence[str]) -> list[str]:
    """How a detector compares with others in words, one line each: over all sets, and where others are better."""
    sets = detectors_and_sets(runs)[1]
    averages = {d: statistics.mean(mean(runs, f"{d}/{s}/auroc") for s in sets) for d in (ours, *rivals)}
    best = max(rivals, key=averages.__getitem__)
    lines = [f"Mean AUROC over {len(sets)} sets: {ours} {averages[ours]:.4f}, {best} {averages[best]:.4f}."]
    for rival in rivals:
        below = [name for name in sets if mean(runs, f"{rival}/{name}/auroc") > mean(runs, f"{ours}/{name}/auroc")]
        lines += [f"{rival} has a higher AUROC on {', '.join(below)}."] if below else []
    return lines


def table_of(runs: Runs, caption: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Table:
    """A table of means and standard errors.

    Arguments:
        runs: The runs.
        caption: What the values are.
        columns: Names of the columns.
        rows: For each row the names of its numbers in the runs.
    """
    cells = [(name, [Cell(mean_and_error(runs, key)) for key in keys]) for name, keys in rows.items()]
    return Table(caption, columns, cells)


def ood_section(runs: Runs) -> Section:
    """A table of each metric, for a page."""
    detectors, sets = detectors_and_sets(runs)
    tables = []
    for metric, best in (("auroc", max), ("fpr95", min), ("aupr_in", max), ("aupr_out", max)):
        values = {(d, s): mean(runs, f"{d}/{s}/{metric}") for d in detectors for s in sets}
        shown = {(d, s): mean_and_error(runs, f"{d}/{s}/{metric}") for d, s in values}
        for d in detectors:
            values[d, ALL] = statistics.mean(values[d, s] for s in sets)
            shown[d, ALL] = f"{values[d, ALL]:.4f}"
        winning = {s: best(values[d, s] for d in detectors) for s in (*sets, ALL)}
        rows = [(d, [Cell(shown[d, s], values[d, s] == winning[s]) for s in winning]) for d in detectors]
        tables.append(Table(f"{metric}, mean over seeds and standard error", list(winning), rows))
    reading = "Larger AUROC and AUPR and smaller FPR95 are better. All detectors see the same features and logits."
    return Section("Out-of-distribution detection", reading, tables)
