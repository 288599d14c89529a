"""Pictures of fresh samples beside real images: one grid of p(x), and one with a row for each class."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor

from ebm_lightning.callbacks.evaluation import Evaluation, Stage, check_positive
from ebm_lightning.callbacks.fresh import Progress, chain_sampler, fresh_samples
from ebm_lightning.callbacks.pictures import image_grid, image_support, publish
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.samplers import Sampler
from ebm_lightning.starts import Start
from ebm_lightning.streams import make_generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FreshSamples(Evaluation):
    """Draws, at test, chains of E(x) and chains of E(x, y), each grid beside as many test images.

    ``samples/unconditional`` is a square; in ``samples/conditional`` row y holds chains that were moved by E(x, y), and
    test images labelled y. Chains are new, with a generator of their own: a replay buffer would show what training
    kept, not what the model gives. Nothing is chosen or sorted.

    Arguments:
        side: Images in a row, and rows of the square.
        classes: Most rows of the class-conditional grid.
        sampler: Moves the chains; the module's own by default.
        steps: Steps of each chain in place of the sampler's own number.
        start: Where chains begin, fitted, such as ``module.chains.start``; those of a row in its class. By default the
            support's reference density.
        directory: Where PNGs go; the trainer's log folder by default.
        seed: Of the chains.
        progress: Wraps the loop over batches of chains, such as ``tqdm.tqdm``.

    Raises:
        ValueError: A number that is not positive; at the start, a support that holds no images (1 or 3, H, W).
    """

    def __init__(
        self,
        side: int = 8,
        classes: int = 10,
        sampler: Sampler | None = None,
        steps: int | None = None,
        *,
        start: Start | None = None,
        directory: Path | str | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        check_positive(side=side, classes=classes, steps=steps)
        self.side = side
        self.classes = classes
        self.sampler = sampler
        self.steps = steps
        self.start = start
        self.directory = directory
        self.seed = seed
        self.progress = progress
        self._drawn: dict[str, Tensor] = {}
        self._real: list[tuple[Tensor, Tensor]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, ConditionalEBM)
        image_support(pl_module.support, "FreshSamples")

    def begin(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        self._drawn, self._real = {}, []

    def observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any) -> None:
        if stage != "test" or not module.trainer.is_global_zero:
            return
        if not self._drawn:
            self._drawn = {
                "unconditional": self._chains(module, None),
                "conditional": self._chains(module, self._rows(module)),
            }
        if sum(len(y) for _, y in self._real) < 100 * self.side:  # enough to hold a row of most classes
            self._real.append((batch[0].cpu(), batch[1].cpu()))

    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        if not self._drawn:
            return
        x, y = (torch.cat(parts) for parts in zip(*self._real, strict=True))
        names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
        rows = self._rows(module)[:: self.side].tolist()
        real = {"unconditional": x[: self.side**2], "conditional": self._by_class(x, y, rows, module)}
        labels = {"unconditional": None, "conditional": [str(names[k]) if names else str(k) for k in rows]}
        steps = chain_sampler(module, self.sampler, self.steps).steps
        start = "the reference" if self.start is None else type(self.start).__name__
        support = image_support(module.support, "FreshSamples")
        for kind, drawn in self._drawn.items():
            left, right = (image_grid(part, support, self.side) for part in (drawn.cpu(), real[kind]))
            title = f"{'E(x, y)' if labels[kind] else 'E(x)'}, {steps} steps from {start}"
            publish(trainer, f"samples/{kind}", side_by_side(left, right, title, labels[kind]), self.directory)

    def _rows(self, module: ConditionalEBM) -> Tensor:
        """The label of each class-conditional chain, row by row."""
        return torch.arange(min(self.classes, module.num_classes)).repeat_interleave(self.side)

    def _chains(self, module: ConditionalEBM, labels: Tensor | None) -> Tensor:
        generator = make_generator(self.seed, "fresh samples", labels is None, device=module.device)
        n = self.side**2 if labels is None else len(labels)
        return fresh_samples(
            module,
            n,
            chain_sampler(module, self.sampler, self.steps),
            generator,
            labels=None if labels is None else labels.to(module.device),
            start=self.start,
            progress=self.progress,
        )

    def _by_class(self, x: Tensor, y: Tensor, rows: Sequence[int], module: ConditionalEBM) -> Tensor:
        """The first images of each class, its row filled up with the box's middle where there are too few."""
        support = image_support(module.support, "FreshSamples")
        blank = torch.full((self.side, *support.shape), (support.low + support.high) / 2)
        return torch.cat([torch.cat([x[y == k], blank])[: self.side] for k in rows])


def side_by_side(drawn: Tensor, real: Tensor, title: str, rows: Sequence[str] | None = None) -> "Figure":
    """Two pictures (3, H, W) of one size: samples at the left, test images at the right, rows named by ``rows``."""
    from matplotlib.figure import Figure

    height, width = drawn.shape[1:]
    figure = Figure(figsize=(8, 0.4 + 3.9 * height / width), layout="constrained")
    for ax, picture, name in zip(figure.subplots(1, 2), (drawn, real), (title, "test images"), strict=True):
        ax.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
        ax.set_title(name, fontsize=10)
        ax.set(xticks=[], yticks=[], frame_on=False)
        if rows and name == title:
            step = height / len(rows)
            ax.set_yticks([(i + 0.5) * step for i in range(len(rows))], rows)
            ax.tick_params(length=0)
    return figure
