"""Runs that tests stop and resume. As a script: FOLDER."""

import functools
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn

from ebm_lightning import JEM, SGLD, ReplayBuffer
from ebm_lightning.data import Rings
from ebm_lightning.networks import MLP
from tests.helpers import trainer, weights

EPOCHS, STEPS = 3, 12  # 4 batches an epoch


class Rows(Logger):
    """Every logged value by (name, step); also as lines of a file, which a killed process leaves behind."""

    name, version = "rows", 0

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        self.rows: dict[tuple[str, int], float] = {}
        self.path = path

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows |= {(name, step or 0): value for name, value in metrics.items()}
        if self.path is not None:
            with open(self.path, "a") as file:
                file.writelines(json.dumps([name, step, value]) + "\n" for name, value in metrics.items())

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Noisy(JEM):
    """Uses every global random state, as a user's loss may: PyTorch's (dropout), NumPy's and Python's."""

    def conditional_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        return super().conditional_loss(logits, y) * (1 + 0.1 * random.random() + 0.1 * np.random.normal())


def noisy(**arguments: Any) -> Noisy:
    net = nn.Sequential(MLP(2, 8, (8,)), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))
    schedule = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.01, total_steps=STEPS)
    settings: dict[str, Any] = {
        "support": Rings().support,
        "sampler": SGLD(0.1, 0.01, 2),
        "chains": ReplayBuffer(48),
        "class_conditional_weight": 1.0,
        "data_noise": 0.1,
        "lr_scheduler": schedule,
    }
    return Noisy(net, 3, **(settings | arguments))


def run(folder: Path, checkpoint: Path | str | None = None, **settings: Any) -> tuple[Noisy, Rows]:
    """Train 12 steps with a checkpoint after each, or resume from a checkpoint under another seed and save none."""
    rows = Rows()
    L.seed_everything(0 if checkpoint is None else 999, verbose=False)
    callbacks: list[L.Callback] = [EMAWeightAveraging(decay=0.5)]
    if checkpoint is None:
        callbacks.append(ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1))
        callbacks.append(ModelCheckpoint(folder, "end-{epoch}", save_top_k=-1, every_n_epochs=1))
    defaults = {"max_epochs": EPOCHS, "enable_checkpointing": checkpoint is None}
    module, data = noisy(), settings.pop("data", None) or Rings(size=64, batch_size=16)
    t = trainer(folder, logger=rows, callbacks=callbacks, **(defaults | settings))
    t.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return module, rows


def final(module: JEM) -> dict[str, Tensor]:
    """The state that has to be bit-equal at the end."""
    state = {"weights": weights(module), "generator": module.generator.get_state()}
    for name, chains in module.running_chains().items():
        state |= {f"{name}/x": chains.x, f"{name}/age": chains.age}
    return state | {f"buffer/{name}": b for name, b in module.named_buffers() if "running" in name}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of the entries that differ."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def main(folder: Path) -> None:
    """Resume from the last checkpoint in ``folder``, if there is one, slowly enough to be killed at any step."""

    class Slow(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            time.sleep(0.15)

    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    saver = ModelCheckpoint(folder, every_n_train_steps=2, save_last=True, save_top_k=1)
    callbacks = [EMAWeightAveraging(decay=0.5), saver, Slow()]
    module = noisy()
    t = trainer(folder, logger=Rows(folder / "rows"), callbacks=callbacks, max_epochs=EPOCHS, enable_checkpointing=True)
    t.fit(module, Rings(size=64, batch_size=16), ckpt_path="last", weights_only=True)
    torch.save(final(module), folder / "final.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
