"""A picture of what the model dreams: its persistent chains, or chains run for the picture alone."""

from pathlib import Path
from typing import Any, Literal

import lightning as L
from torch import Tensor

from ebm_lightning.callbacks.fresh import chain_sampler, fresh_samples
from ebm_lightning.callbacks.pictures import image_grid, image_support, publish
from ebm_lightning.chains import ReplayBuffer
from ebm_lightning.modules import JEM, ConditionalEBM
from ebm_lightning.samplers import Sampler
from ebm_lightning.streams import make_generator


class SampleGrid(L.Callback):
    """Draws a grid of samples every few epochs and when training ends.

    Training chains are read, never moved; fresh chains have a generator of their own. Logged as ``samples/chains`` or
    ``samples/fresh``, and written as PNG, each over the last.

    Arguments:
        every_n_epochs: Epochs between pictures; 0 for one at the end only.
        samples: Pictures in the grid.
        source: "chains" takes the buffer's longest-lived chains; "fresh" starts at the support's reference.
        sampler: Moves fresh chains, computed as the module's are; the module's own by default. Give it more steps
            than in training.
        directory: Where PNGs go; the trainer's log folder by default.
        scale: Whole factor by which pixels are enlarged.
        seed: Of fresh chains.

    Raises:
        ValueError: At the start of ``fit``: the support is no box of images (1 or 3 channels), or "chains" without a
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
        image_support(pl_module.support, "SampleGrid")
        if self.source == "chains" and not (isinstance(pl_module, JEM) and isinstance(pl_module.chains, ReplayBuffer)):
            raise ValueError("'source' should be 'fresh' for a module without a ReplayBuffer, got 'chains'.")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._draw(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        grid = image_grid(self._samples(pl_module), pl_module.support, round(self.samples**0.5), self.scale)
        publish(trainer, f"samples/{self.source}", grid, self.directory)

    def _samples(self, module: Any) -> Tensor:
        if self.source == "chains":
            return module.chains.x[module.chains.age.argsort(descending=True, stable=True)[: self.samples]]
        generator = make_generator(self.seed, "sample grid", device=module.device)
        return fresh_samples(module, self.samples, chain_sampler(module, self.sampler), generator)
