"""The test data of lowest and of highest energy."""

from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ebm_lightning.callbacks.base import Evaluation, Stage, TrainerRanks
from ebm_lightning.callbacks.figures import publish
from ebm_lightning.callbacks.points import are_images, caption, panel_height, plot_points
from ebm_lightning.checks import check_integer
from ebm_lightning.evaluation.names import model_name
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.supports import Support


class Points(NamedTuple):
    """Data with their energies, sorted by energy.

    Attributes:
        x: Shape (N, *shape).
        energy: E(x), shape (N,), in nats.
        label: Labels, shape (N,); -1 where there are none.
        guess: argmax p(y|x), shape (N,).
    """

    x: Tensor
    energy: Tensor
    label: Tensor
    guess: Tensor

    def take(self, rows: Tensor | slice) -> "Points":
        return Points(*(part[rows] for part in self))


class EnergyExtremes(Evaluation):
    """At test, plots the test data that the model finds most and least likely (``test/extremes``).

    Typical data are smooth or simple where the energy is lowest, and mislabeled, unusual or broken where it is highest.
    Of several loaders it uses the first. Series are shown as lines, and tables as the distribution of each column.

    Arguments:
        count: Number of points of each kind.
        directory: Folder of the figure; by default the trainer's log folder.

    Raises:
        ValueError: ``count`` is below 1.
    """

    def __init__(self, count: int = 16, directory: Path | str | None = None) -> None:
        check_integer("count", count, at_least=1)
        self.count = count
        self.directory = directory
        self._kept: Points | None = None

    def begin(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        self._kept = None

    def observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any) -> None:
        if stage == "test":
            guess = outputs["logits"].argmax(1)
            seen = Points(*(part.cpu() for part in (batch[0], outputs["energy"].float(), batch[1], guess)))
            self._kept = extremes([*([] if self._kept is None else [self._kept]), seen], self.count)

    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        if stage != "test":
            return
        kept = [points for points in TrainerRanks(trainer).all_gather(self._kept) if points is not None]
        if trainer.is_global_zero and kept:
            figure = plot_extremes(extremes(kept, self.count), self.count, module.domain, model_name(module))
            publish(trainer, "test/extremes", figure, self.directory)


def extremes(parts: list[Points], count: int) -> Points:
    """The ``count`` points of lowest energy and as many of highest, or all points if they are fewer; by energy."""
    points = Points(*(torch.cat(part) for part in zip(*parts, strict=True)))
    points = points.take(points.energy.argsort(stable=True))
    n = len(points.energy)
    return points if n <= 2 * count else points.take(torch.cat([torch.arange(count), torch.arange(n - count, n)]))


def plot_extremes(points: Points, count: int, support: Support, name: str) -> Figure:
    """Two panels: the points of lowest energy, and those of highest.

    Arguments:
        points: The points, sorted by energy.
        count: Number of points in each panel.
        support: Domain of x.
        name: Name of the model.
    """
    columns, width = 8, 6.4
    shape, shown = points.x.shape[1:], min(count, len(points.x))
    height = panel_height(shape, shown, columns, width)
    figure = Figure(figsize=(width, 2 * height + 1.0), layout="constrained")
    panels = figure.subplots(2, 1)
    kinds = {"lowest": points.take(slice(0, shown)), "highest": points.take(slice(-shown, None))}
    for axes, (kind, part) in zip(panels, kinds.items(), strict=True):
        plot_points(axes, part.x, support, columns, _labels(part))
        low, high = float(part.energy.min()), float(part.energy.max())
        title = f"{name}: test data of {kind} energy, E(x) from {low:.4g} to {high:.4g} nats"
        title += ". On each: label > guess, E(x)" if are_images(shape) and kind == "lowest" else ""
        axes.set_title(caption(title, width), fontsize=9)
    return figure


def _labels(points: Points) -> list[str]:
    rows = zip(points.label.tolist(), points.guess.tolist(), points.energy.tolist(), strict=True)
    return [f"{guess if y in (guess, -1) else f'{y} > {guess}'}  {energy:.4g}" for y, guess, energy in rows]
