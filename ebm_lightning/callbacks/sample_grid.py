"""A picture of what the model dreams: its persistent chains, or chains run for the picture alone."""

from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torchvision.utils import make_grid

from ebm_lightning.callbacks.pictures import publish
from ebm_lightning.chains import ReplayBuffer
from ebm_lightning.modules import JEM, ConditionalEBM
from ebm_lightning.samplers import SGLD, Sampler
from ebm_lightning.streams import make_generator
from ebm_lightning.supports import Binary, Box


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
        box = pl_module.support
        if not isinstance(box, Box | Binary) or len(box.shape) != 3 or box.shape[0] not in (1, 3):
            raise ValueError(f"'support' should be a Box of images (1 or 3, H, W) for SampleGrid, got {box}.")
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
        box, x = pl_module.support, self._samples(pl_module)
        x = x.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)
        pixels = (x - box.low) / (box.high - box.low)
        grid = make_grid(pixels, nrow=round(self.samples**0.5), padding=self.scale, pad_value=0.5)
        publish(trainer, f"samples/{self.source}", grid, self.directory)

    def _samples(self, module: Any) -> Tensor:
        if self.source == "chains":
            return module.chains.x[module.chains.age.argsort(descending=True, stable=True)[: self.samples]]
        generator = make_generator(self.seed, "sample grid", device=module.device)
        sampler = self.sampler or getattr(module, "sampler", None) or SGLD.jem()
        start = module.support.sample(self.samples, generator=generator)
        with torch.autocast(module.device.type, enabled=False):
            compute = getattr(module, "compute", None)
            return sampler(module.energy, start, support=module.support, generator=generator, compute=compute)
