"""Grids of new samples next to test images: one of p(x), and one with a row for each class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ebm_lightning.callbacks.base import Evaluation, Stage, chosen_sampler
from ebm_lightning.callbacks.figures import image_grid, image_support, publish
from ebm_lightning.checks import check_integer
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import Sampler
from ebm_lightning.samplers.base import Progress
from ebm_lightning.supports import Density


class FreshSamples(Evaluation):
    """At test, grids of samples from E(x) and from E(x, y), each next to as many test images.

    ``samples/unconditional`` is a square. In ``samples/conditional``, row y shows samples from E(x, y) and test images
    with label y. Chains are new and use a separate generator: a replay buffer would show what training kept, not what
    the model generates. Samples are neither selected nor sorted.

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
        ValueError: A number is not positive. At setup: the support does not hold images (1 or 3, H, W).
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
        assert isinstance(pl_module, ConditionalEBM)
        image_support(pl_module.domain, "FreshSamples")

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
        real = {"unconditional": x[: self.side**2], "conditional": self._by_class(x, y, rows, module)}
        labels = {"unconditional": None, "conditional": [str(names[k]) if names else str(k) for k in rows]}
        steps = chosen_sampler(module, self.sampler, self.steps).steps
        initial = "the reference density" if self.initial is None else type(self.initial).__name__
        support = image_support(module.domain, "FreshSamples")
        for kind, samples in self._samples.items():
            left, right = (image_grid(part, support, self.side) for part in (samples.cpu(), real[kind]))
            title = f"{'E(x, y)' if labels[kind] else 'E(x)'}, {steps} steps from {initial}"
            publish(trainer, f"samples/{kind}", plot_side_by_side(left, right, title, labels[kind]), self.directory)

    def _rows(self, module: ConditionalEBM) -> Tensor:
        """Label of each class-conditional chain, row by row."""
        return torch.arange(min(self.classes, module.num_classes)).repeat_interleave(self.side)

    def _chains(self, module: ConditionalEBM, labels: Tensor | None) -> Tensor:
        generator = make_generator(self.seed, "fresh samples", labels is None, device=module.device)
        n = self.side**2 if labels is None else len(labels)
        return module.sample(
            n,
            labels,
            steps=self.steps,
            sampler=self.sampler,
            initial=self.initial or module.support,
            generator=generator,
            progress=self.progress,
        )

    def _by_class(self, x: Tensor, y: Tensor, rows: Sequence[int], module: ConditionalEBM) -> Tensor:
        """The first images of each class. Rows with too few are filled up with grey."""
        support = image_support(module.domain, "FreshSamples")
        blank = torch.full((self.side, *support.shape), (support.low + support.high) / 2)
        return torch.cat([torch.cat([x[y == k], blank])[: self.side] for k in rows])


def plot_side_by_side(samples: Tensor, real: Tensor, title: str, rows: Sequence[str] | None = None) -> Figure:
    """Two image grids (3, H, W) of the same size: samples on the left, test images on the right.

    Arguments:
        samples: Grid of samples.
        real: Grid of test images.
        title: Title of the samples.
        rows: Names of the rows.
    """
    height, width = samples.shape[1:]
    figure = Figure(figsize=(8, 0.4 + 3.9 * height / width), layout="constrained")
    for ax, grid, name in zip(figure.subplots(1, 2), (samples, real), (title, "test images"), strict=True):
        ax.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
        ax.set_title(name, fontsize=10)
        ax.set(xticks=[], yticks=[], frame_on=False)
        if rows and name == title:
            step = height / len(rows)
            ax.set_yticks([(i + 0.5) * step for i in range(len(rows))], rows)
            ax.tick_params(length=0)
    return figure
