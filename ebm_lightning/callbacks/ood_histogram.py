"""Histograms of in- and out-of-distribution scores, with points of the out-of-distribution set above them."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ebm_lightning.callbacks.points import panel_height, plot_points
from ebm_lightning.evaluation.error_bars import Z, auroc_std_err, placements
from ebm_lightning.supports import Support

SHOWN = 12
"""Points of each set that are shown."""
WIDTH = 5.4  # inches
BINS = 60
LABELS = {"log_density": "log p(x) + log Z"}


class Scores(NamedTuple):
    """Scores of one model, larger for in-distribution data.

    Attributes:
        inside: Of in-distribution data, shape (N,).
        outside: Of the out-of-distribution set, shape (M,).
    """

    inside: Tensor
    outside: Tensor

    @property
    def title(self) -> str:
        """The AUROC with its 95 % interval."""
        parts = placements(self.inside, self.outside)
        return f"AUROC {float(parts[0].mean()):.3f} ± {Z * auroc_std_err(*parts):.3f}"


def plot_scores(
    scores: Mapping[str, Scores], name: str, examples: Tensor, support: Support, score: str = "log_density"
) -> Figure:
    """One histogram for each model, below each other with the same axes. Infinite scores count in the outermost bins.

    Arguments:
        scores: The scores of each model, by its name.
        name: Name of the out-of-distribution set.
        examples: Some of its points, shape (n, *shape).
        support: Domain of x.
        score: Name of the score.
    """
    columns = max(1, len(examples))
    top = max(0.5, panel_height(examples.shape[1:], columns, columns, WIDTH))
    figure = Figure(figsize=(WIDTH, top + 0.6 + 1.9 * len(scores)), layout="constrained")
    grid = figure.add_gridspec(1 + len(scores), 1, height_ratios=[top, *[1.7] * len(scores)])
    shown = figure.add_subplot(grid[0])
    plot_points(shown, examples, support, columns)
    shown.set_title(f"{name}: what the set looks like", fontsize=10)
    low, high = _range([one for pair in scores.values() for one in pair], [pair.inside for pair in scores.values()])
    first: Axes | None = None
    for row, (model, pair) in enumerate(scores.items(), 1):
        axes = figure.add_subplot(grid[row], sharex=first, sharey=first)
        first = first or axes
        for values, of in ((pair.inside, "test data"), (pair.outside, name)):
            weights = torch.full((len(values),), 1 / max(1, len(values))).numpy()
            clamped = values.double().clamp(low, high).numpy()
            axes.hist(clamped, bins=BINS, range=(low, high), weights=weights, alpha=0.6, label=of)
        axes.set_ylabel("fraction")
        axes.set_title(f"{model}: {pair.title}", fontsize=10)
        axes.legend(fontsize=8)
    axes.set_xlabel(f"score ({LABELS.get(score, score.replace('_', ' '))})")
    return figure


def _range(all_scores: list[Tensor], inside: list[Tensor]) -> tuple[float, float]:
    """Smallest and largest score shown. A set with far lower scores would otherwise put all data into one bin."""
    finite = torch.cat([values[values.isfinite()] for values in all_scores])
    data = torch.cat([values[values.isfinite()] for values in inside])
    low, high = float(finite.min()), float(finite.max())
    if len(data):
        spread = max(float(data.max()) - float(data.min()), 1e-6 * max(1.0, abs(high)))
        low, high = max(low, float(data.min()) - 4 * spread), min(high, float(data.max()) + 4 * spread)
    return low, max(high, low + 1e-6 * max(1.0, abs(low)))
