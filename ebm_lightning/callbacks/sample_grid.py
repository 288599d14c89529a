"""Grid of samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ebm_lightning.callbacks.base import due
from ebm_lightning.callbacks.figures import publish
from ebm_lightning.callbacks.points import are_images, caption, panel_height, plot_points
from ebm_lightning.chains import ReplayBuffer
from ebm_lightning.checks import check_integer
from ebm_lightning.modules import JEM, ConditionalEBM
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import Sampler, frozen
from ebm_lightning.supports import Support


class SampleGrid(L.Callback):
    """A grid of samples every few epochs and at the end of training: persistent chains, or new ones.

    Persistent chains are shown but not moved. New chains use a separate generator. The grid is logged as
    ``samples/chains`` or ``samples/fresh`` and written to ``samples-chains-step-000120.png`` after 120 steps. Each
    image has its most likely class and its energy on it. Series are shown as lines, and tables as the distribution of
    each column.

    Arguments:
        every_n_epochs: Epochs between grids; 0 for one at the end of training only.
        samples: Number of points in the grid.
        source: "chains" shows the oldest chains of the replay buffer. "fresh" runs new chains from the support's
            reference density.
        sampler: Moves new chains; by default the module's. Use more steps than in training.
        directory: Folder of the figure; by default the trainer's log folder.
        scale: Integer factor by which pixels are enlarged.
        seed: Seed of new chains.

    Raises:
        ValueError: An argument is out of range. At the start of ``fit``: ``source`` is "chains" and the module has no
            ReplayBuffer.
    """

    def __init__(
        self,
        every_n_epochs: int = 10,
        samples: int = 64,
        source: Literal["chains", "fresh"] = "chains",
        sampler: Sampler | None = None,
        directory: Path | str | None = None,
        scale: int = 1,
        seed: int = 0,
    ) -> None:
        if source not in ("chains", "fresh"):
            raise ValueError(f"'source' should be 'chains' or 'fresh', got {source!r}.")
        check_integer("every_n_epochs", every_n_epochs, at_least=0)
        check_integer("samples", samples, at_least=1)
        check_integer("scale", scale, at_least=1)
        self.every_n_epochs = every_n_epochs
        self.samples = samples
        self.source = source
        self.sampler = sampler
        self.directory = directory
        self.scale = scale
        self.seed = seed
        self._last: int | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, ConditionalEBM):
            raise ValueError(f"SampleGrid needs a ConditionalEBM or JEM, got {type(pl_module).__name__}.")
        if self.source == "chains" and not (isinstance(pl_module, JEM) and isinstance(pl_module.chains, ReplayBuffer)):
            raise ValueError("'source' should be 'fresh' for a module without a ReplayBuffer, got 'chains'.")
        self._last = None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if due(trainer.current_epoch + 1, self.every_n_epochs):
            self._publish(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._publish(trainer, pl_module)

    def _publish(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero or self._last == trainer.global_step:  # the last epoch's is also that of the end
            return
        self._last = trainer.global_step
        figure = self._plot(pl_module, self._samples(pl_module))
        publish(trainer, f"samples/{self.source}", figure, self.directory, step=trainer.global_step)

    @torch.no_grad()
    def _plot(self, module: Any, x: Tensor) -> Figure:
        with frozen(module.energy), torch.autocast(module.device.type, enabled=False):
            energy, classes = module.energy(x).cpu(), module.energy.logits(x).argmax(1).tolist()
        kind = "persistent chains, oldest first" if self.source == "chains" else "new chains"
        title = (
            f"{type(module).__name__} after {module.global_step} steps: {kind}. "
            f"E(x) from {float(energy.min()):.4g} to {float(energy.max()):.4g} nats"
            + (". On each: argmax p(y|x), E(x)" if are_images(x.shape[1:]) else "")
        )
        labels = [f"{y}  {e:.4g}" for y, e in zip(classes, energy.tolist(), strict=True)]
        return plot_grid(x, module.domain, title, labels, round(self.samples**0.5), self.scale)

    def _samples(self, module: Any) -> Tensor:
        if self.source == "chains":
            oldest = module.chains.age.argsort(descending=True, stable=True)[: self.samples]
            return module.coordinates.inv(module.chains.x[oldest].to(module.device))
        generator = make_generator(self.seed, "sample grid", device=module.device)
        return module.sample(self.samples, sampler=self.sampler, initial=module.support, generator=generator)


def plot_grid(
    x: Tensor, support: Support, title: str, labels: Sequence[str] | None, columns: int, scale: int = 1
) -> Figure:
    """One panel with points (N, *shape) and a title; the arguments are those of ``plot_points``."""
    width = max(4.0, 0.62 * columns)
    height = panel_height(x.shape[1:], len(x), columns, width)
    figure = Figure(figsize=(width, height + 0.75), layout="constrained")
    axes = figure.add_subplot()
    plot_points(axes, x, support, columns, labels, scale)
    axes.set_title(caption(title, width), fontsize=9)
    return figure
