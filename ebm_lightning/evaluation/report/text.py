"""Metrics as plain text: the verdicts, and a table in groups that marks what is better."""

import textwrap
from collections.abc import Mapping, Sequence

from ebm_lightning.evaluation.report.ranking import Better, Comparison, Results
from ebm_lightning.evaluation.report.rows import (
    CHAINS,
    CLASSIFIER,
    LIKELIHOOD,
    Row,
    auroc_rows,
    measured,
    refinement_rows,
    robustness_rows,
    sample_rows,
)
from ebm_lightning.evaluation.report.verdict import verdicts

ARROWS: dict[Better, str] = {"higher": "↑", "lower": "↓", "neither": " "}
WIDTH = 100


def comparison_table(
    metrics: Mapping[str, float], baseline: str = "baseline", names: Sequence[str] = ("model", "baseline")
) -> str:
    """The verdicts and the table of an evaluation, at most 100 columns wide.

    Arguments:
        metrics: What :func:`ebm_lightning.evaluate` returned.
        baseline: Prefix of the baseline's keys.
        names: Names of the model and of the baseline.
    """
    parts = split(metrics, baseline, names)
    comparison = Comparison(parts, metrics)
    return f"{verdict_text(comparison)}\n\n{results_table(parts, metrics)}"


def split(metrics: Mapping[str, float], baseline: str, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The metrics of each model, by its name, without differences."""
    prefix = f"{baseline}/"
    own = {key: value for key, value in metrics.items() if not key.startswith((prefix, "compared/"))}
    other = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
    counts = {key: value for key, value in own.items() if key in ("test/images", "robust/images", "refine/images")}
    return {names[0]: own} | ({names[1]: counts | other} if other else {})


def verdict_text(comparison: Comparison, why: Mapping[str, str] | None = None) -> str:
    """One paragraph for each verdict.

    Arguments:
        comparison: The metrics.
        why: Why log Z of a model is not reliable, by the model's name.
    """
    found = [f"{v.topic}: {v.word.upper()}. {v.text}" for v in verdicts(comparison, why)]
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False) for line in found)


def results_table(results: Results, differences: Mapping[str, float] | None = None) -> str:
    """A table of the main metrics of all models, in groups.

    An arrow says which direction is better. An asterisk marks a value that is better than all others by more than the
    95 % error of the difference. A value below chance, worse than where chains start, or from an unreliable log Z is
    never marked.

    Arguments:
        results: The metrics of each model, by the model's name.
        differences: Paired differences, as for :class:`Comparison`.
    """
    comparison = Comparison(results, differences)
    width = max(13, *(len(name) + 2 for name in results))
    lines = [f"{'':46}" + "".join(f"{name:>{width}}" for name in results)]
    for title, rows in _groups(comparison).items():
        if rows:
            lines += [title, *(_line(comparison, row, width) for row in rows)]
    errors = "* better than the others by more than the 95 % error of the difference"
    return "\n".join([*lines, errors] if len(results) > 1 else lines)


def _groups(comparison: Comparison) -> dict[str, list[Row]]:
    samples: list[Row] = []
    for row, start, real in sample_rows(comparison):
        samples += [row, Row(start, "  where chains start"), Row(real, "  real images")]
    return {
        "Accuracy and calibration": measured(comparison, CLASSIFIER),
        "Likelihood at temperature 1": measured(comparison, LIKELIHOOD),
        "Out-of-distribution detection, AUROC (0.5 is chance)": auroc_rows(comparison),
        "Samples of new chains": measured(comparison, samples),
        "Chains (in parentheses: of exact samples)": measured(comparison, CHAINS),
        "Accuracy under attack and noise": robustness_rows(comparison),
        "Test images moved by the sampler": refinement_rows(comparison),
    }


def _line(comparison: Comparison, row: Row, width: int) -> str:
    winner = comparison.winner(row.key, row.better)
    cells = []
    for model, metrics in comparison.results.items():
        value = metrics.get(row.key)
        text = "-" if value is None else f"{value:.{row.digits}f}"
        cells.append(f"{text + ('*' if model == winner else ' '):>{width}}")
    return f"  {row.label:42}{ARROWS[row.better]} {''.join(cells)}".rstrip()
