"""Grid of samples."""

from pathlib import Path
from typing import Any, Literal

import lightning as L
from torch import Tensor

from ebm_lightning.callbacks.base import due
from ebm_lightning.callbacks.figures import image_grid, image_support, publish
from ebm_lightning.chains import ReplayBuffer
from ebm_lightning.checks import check_integer
from ebm_lightning.modules import JEM, ConditionalEBM
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import Sampler


class SampleGrid(L.Callback):
    """A grid of samples every few epochs and at the end of training: persistent chains, or new ones.

    Persistent chains are shown but not moved. New chains use a separate generator. The grid is logged as
    ``samples/chains`` or ``samples/fresh`` and written as a PNG, which replaces the previous one.

    Arguments:
        every_n_epochs: Epochs between grids; 0 for one at the end of training only.
        samples: Number of images in the grid.
        source: "chains" shows the oldest chains of the replay buffer. "fresh" runs new chains from the support's
            reference density.
        sampler: Moves new chains; by default the module's. Use more steps than in training.
        directory: Folder of the figure; by default the trainer's log folder.
        scale: Integer factor by which pixels are enlarged.
        seed: Seed of new chains.

    Raises:
        ValueError: An argument is out of range. At the start of ``fit``: the support is not a box of images (1 or 3
            channels), or ``source`` is "chains" and the module has no ReplayBuffer.
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

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, ConditionalEBM):
            raise ValueError(f"SampleGrid needs a ConditionalEBM or JEM, got {type(pl_module).__name__}.")
        image_support(pl_module.domain, "SampleGrid")
        if self.source == "chains" and not (isinstance(pl_module, JEM) and isinstance(pl_module.chains, ReplayBuffer)):
            raise ValueError("'source' should be 'fresh' for a module without a ReplayBuffer, got 'chains'.")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if due(trainer.current_epoch + 1, self.every_n_epochs):
            self._publish(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._publish(trainer, pl_module)

    def _publish(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        grid = image_grid(self._samples(pl_module), pl_module.domain, round(self.samples**0.5), self.scale)
        publish(trainer, f"samples/{self.source}", grid, self.directory)

    def _samples(self, module: Any) -> Tensor:
        if self.source == "chains":
            oldest = module.chains.age.argsort(descending=True, stable=True)[: self.samples]
            return module.coordinates.inv(module.chains.x[oldest].to(module.device))
        generator = make_generator(self.seed, "sample grid", device=module.device)
        return module.sample(self.samples, sampler=self.sampler, initial=module.support, generator=generator)
