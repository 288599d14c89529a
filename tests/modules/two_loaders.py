"""Runs with batches ``{"clf": (x, y), "gen": (x, y)}``, for tests that resume them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from ebm_lightning import ConditionalEBM
from ebm_lightning.data import ImageArrays
from ebm_lightning.networks import MLP
from tests import helpers
from tests.data.pictures import write_arrays
from tests.helpers import weights


class Both(ConditionalEBM):
    """Trains on both parts of a batch, and records them."""

    def training_step(self, batch: dict[str, tuple[Tensor, Tensor]], batch_idx: int) -> Tensor:
        (x, y), (x_gen, _) = batch["clf"], batch["gen"]
        self.seen.append(torch.cat([x.flatten(), x_gen.flatten()]))
        return self.conditional_loss(self(x), y) + 0.1 * self(x_gen).logsumexp(1).square().mean()


def run(
    folder: Path,
    checkpoint: Path | None = None,
    sizes: tuple[int, int] = (8, 4),
    trainer: Callable[..., L.Trainer] = helpers.trainer,
    **settings: Any,
) -> dict[str, Any]:
    """Train 2 epochs with a checkpoint after each step, or resume from one under another seed; batches and weights."""
    L.seed_everything(0 if checkpoint is None else 999, verbose=False)
    module = Both(MLP(192, 3, (8,)), 3)
    module.seen = []
    saver = ModelCheckpoint(folder / "saved", "{step}", save_top_k=-1, every_n_train_steps=1)
    ender = ModelCheckpoint(folder / "saved", "end-{epoch}", save_top_k=-1, every_n_epochs=1)
    saving = {"callbacks": [saver, ender], "enable_checkpointing": True} if checkpoint is None else {}
    data = ImageArrays(folder / "images.npz", sizes[0], 16, "crop-flip", 0.05, separate_batch_size=sizes[1])
    trainer(folder, **({"max_epochs": 2} | saving | settings)).fit(module, data, ckpt_path=checkpoint)
    return {"seen": module.seen, "weights": weights(module)}


def arrays(folder: Path) -> Path:
    """60 images, 16 of them for validation."""
    return write_arrays(folder, 60)
