"""The settings of a run that are the trainer's and the data's, for loggers."""

from collections.abc import Sized
from typing import Any

import lightning as L
import torch

from ebm_lightning.resume.hparams import describe
from ebm_lightning.resume.lightning_internals import data_source


def run_settings(trainer: L.Trainer) -> dict[str, Any]:
    """Seed, data, batch size, precision and length of the present run, as plain values.

    What the data module logs under the same name is left out, because Lightning raises an error if the values differ.

    Arguments:
        trainer: The trainer, while it runs.
    """
    data = data_source(trainer)
    if data is None:
        return {}
    settings: dict[str, Any] = {
        "seed": torch.initial_seed(),
        "data": _described(data),
        "batch_size": getattr(data, "batch_size", None),
        "precision": str(trainer.precision),
        "devices": trainer.num_devices * trainer.num_nodes,
    }
    if trainer.state.fn == "fit":
        names = ("max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val")
        settings |= {name: getattr(trainer, name) for name in names}
    return {name: value for name, value in settings.items() if name not in getattr(data, "hparams_initial", {})}


def _described(data: Any) -> Any:
    """A data module with its arguments; of a loader the class and size of its dataset."""
    if isinstance(data, L.LightningDataModule):
        return describe(data)
    dataset = getattr(data, "dataset", None)
    size = len(dataset) if isinstance(dataset, Sized) else None  # a CombinedLoader has no length before it starts
    kind = type(data if dataset is None else dataset)
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "size": size}
