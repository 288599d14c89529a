"""Grids of new samples between their initial points and test images: one of p(x), and one with a row for each class."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ebm_lightning.callbacks.base import Evaluation, Stage, chosen_sampler
from ebm_lightning.callbacks.figures import publish
from ebm_lightning.callbacks.points import are_images, caption, panel_height, plot_points
from ebm_lightning.chains.initial import initial_points
from ebm_lightning.checks import check_integer
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import Sampler
from ebm_lightning.samplers.base import Progress
from ebm_lightning.supports import Density, Support


class FreshSamples(Evaluation):
    """At test, grids of samples from E(x) and from E(x, y), between the points where chains start and test images.

    ``samples/unconditional`` is a square. In ``samples/conditional``, row y shows samples from E(x, y) and test images
    with label y. Chains are new and use a separate generator: a replay buffer would show what training kept, not what
    the model generates. Samples are neither selected nor sorted. Of several loaders the first has the test images.
    Series are shown as lines, and tables as the distribution of each column.

    Arguments:
        side: Number of images in a row, and of rows in the square.
        classes: Largest number of rows of the class-conditional grid.
        sampler: Moves the chains; by default the module's.
        steps: Steps of each chain; by default the sampler's own number.
        initial: Fitted distribution of the initial points, such as ``module.chains.initial``. In the class-conditional
            grid it is given the labels. By default the support's reference density.
        directory: Folder of the figures; by default the trainer's log folder.
        seed: Seed of the chains.
        progress: Wraps the loop over batches of chains, such as ``tqdm.tqdm``.

    Raises:
        ValueError: A number is not positive. At setup: no ``initial`` on a support of infinite mass.
    """

    def __init__(
        self,
        side: int = 8,
        classes: int = 10,
        sampler: Sampler | None = None,
        steps: int | None = None,
        *,
        initial: Density | None = None,
        directory: Path | str | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        check_integer("side", side, at_least=1)
        check_integer("classes", classes, at_least=1)
        check_integer("steps", steps, at_least=1, optional=True)
        self.side = side
        self.classes = classes
        self.sampler = sampler
        self.steps = steps
        self.initial = initial
        self.directory = directory
        self.seed = seed
        self.progress = progress
        self._samples: dict[str, Tensor] = {}
        self._real: list[tuple[Tensor, Tensor]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        support: Any = pl_module.support
        if self.initial is None and support.log_mass == math.inf:
            raise ValueError(
                f"'initial' should be given for FreshSamples on {type(support).__name__}, which has no distribution to "
                "start chains at, got None. Pass a fitted density, or give the support a 'reference'."
            )

    def begin(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        self._samples, self._real = {}, []

    def observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any) -> None:
        if stage != "test" or not module.trainer.is_global_zero:
            return
        if not self._samples:
            self._samples = {
                "unconditional": self._chains(module, None),
                "conditional": self._chains(module, self._rows(module)),
            }
        if sum(len(y) for _, y in self._real) < 100 * self.side:  # enough for a full row of most classes
            self._real.append((batch[0].cpu(), batch[1].cpu()))

    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        if not self._samples:
            return
        x, y = (torch.cat(parts) for parts in zip(*self._real, strict=True))
        names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
        rows = self._rows(module)[:: self.side].tolist()
        labels = [str(names[k]) if names else str(k) for k in rows]
        steps = chosen_sampler(module, self.sampler, self.steps).steps
        start = f"{steps} steps from {'the reference density' if self.initial is None else type(self.initial).__name__}"
        drawn = self._samples["unconditional"].cpu()
        panels = Panels("", self._starts(module, None), drawn, x[: len(drawn)])
        figures = {"unconditional": plot_panels([panels], f"E(x), {start}", module.domain, self.side)}
        drawn, starts = self._samples["conditional"].cpu(), self._starts(module, self._rows(module))
        parts = zip(labels, rows, starts.split(self.side), drawn.split(self.side), strict=True)
        grid = [Panels(name, first, last, x[y == k][: self.side]) for name, k, first, last in parts]
        figures["conditional"] = plot_panels(grid, f"E(x, y), {start}", module.domain, self.side)
        for kind, figure in figures.items():
            publish(trainer, f"samples/{kind}", figure, self.directory)

    def _rows(self, module: ConditionalEBM) -> Tensor:
        """Label of each class-conditional chain, row by row."""
        return torch.arange(min(self.classes, module.num_classes)).repeat_interleave(self.side)

    def _generator(self, module: ConditionalEBM, labels: Tensor | None) -> torch.Generator:
        return make_generator(self.seed, "fresh samples", labels is None, device=module.device)

    def _starts(self, module: ConditionalEBM, labels: Tensor | None) -> Tensor:
        """The initial points of the chains."""
        n = self.side**2 if labels is None else len(labels)
        u = initial_points(self.initial, module.support, n, labels, self._generator(module, labels), module.device)
        x: Tensor = module.coordinates.inv(u)
        return x.cpu()

    def _chains(self, module: ConditionalEBM, labels: Tensor | None) -> Tensor:
        return module.sample(
            self.side**2 if labels is None else len(labels),
            labels,
            steps=self.steps,
            sampler=self.sampler,
            initial=self.initial or module.support,
            generator=self._generator(module, labels),
            progress=self.progress,
        )


class Panels(NamedTuple):
    """Points that are shown next to each other.

    Attributes:
        name: Name of the row; empty for none.
        starts: Where chains start, shape (N, *shape).
        samples: Shape (N, *shape).
        real: Shape (M, *shape).
    """

    name: str
    starts: Tensor
    samples: Tensor
    real: Tensor


def plot_panels(rows: Sequence[Panels], title: str, support: Support, columns: int) -> Figure:
    """Initial points on the left, samples in the middle, test data on the right, and one row for each of ``rows``.

    Arguments:
        rows: What to show.
        title: Title of the samples.
        support: Domain of x.
        columns: Images in a row of each panel.
    """
    width, shape = 4.0, rows[0].samples.shape[1:]
    height = panel_height(shape, len(rows[0].samples), columns, width)
    figure = Figure(figsize=(3 * width, 0.5 + len(rows) * (height if are_images(shape) else height + 0.4)))
    figure.set_layout_engine("constrained", h_pad=0.01, hspace=0.0)
    for panels, row in zip(
        figure.subplots(len(rows), 3, squeeze=False, sharey=not are_images(shape)), rows, strict=True
    ):
        for axes, points in zip(panels, (row.starts, row.samples, row.real), strict=True):
            if len(points):
                plot_points(axes, _filled(points, len(row.samples)), support, columns)
            else:
                axes.set_axis_off()
        if row.name:
            panels[0].set_ylabel(row.name, rotation="horizontal", ha="right", va="center")
        if row is rows[0]:
            for axes, text in zip(panels, ("where chains start", title, "test data"), strict=True):
                axes.set_title(caption(text, width), fontsize=10)
    return figure


def _filled(points: Tensor, count: int) -> Tensor:
    """Images filled up with gray ones to ``count``, so that the pixels of all panels have the same size."""
    if not are_images(points.shape[1:]) or len(points) >= count:
        return points
    middle = (float(points.max()) + float(points.min())) / 2
    return torch.cat([points, points.new_full((count - len(points), *points.shape[1:]), middle)])
