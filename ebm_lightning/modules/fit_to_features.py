"""Trains a model on features that are cached, with a trainer."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from torch.utils.data import TensorDataset

from ebm_lightning.modules.cache_features import feature_loader
from ebm_lightning.networks import DensityHead

VAL_BATCH = 1000


def fit_to_features(
    model: Any, train: TensorDataset, val: TensorDataset | None, trainer: L.Trainer, batch_size: int
) -> None:
    """Train ``model``, leave it in eval mode, and calibrate a :class:`DensityHead` on ``val``.

    Arguments:
        model: A FeatureJEM.
        train: Its features (N, D) and labels (N,).
        val: The same for validation, or None.
        trainer: Runs the training.
        batch_size: Features and chains per step.

    Raises:
        ValueError: There are fewer features than dimensions, or they have no labels.
    """
    if len(train) <= model.num_features:
        raise ValueError(
            f"'train' should hold more inputs than the {model.num_features} features, got {len(train)}: their "
            "covariance would be singular. Give more data, or a layer with fewer features."
        )
    for name, part in (("train", train), ("val", val)):
        if part is not None and len(part.tensors) == 1:
            raise ValueError(f"'{name}' should have labels, got inputs alone.")
    val_loader = None if val is None else feature_loader(val, VAL_BATCH, shuffle=False)
    with _usual_warnings():
        trainer.fit(model, feature_loader(train, batch_size, shuffle=True), val_loader)
    model.eval()
    if val is not None and isinstance(model.classifier, DensityHead):
        z, y = (column.to(model.device) for column in val.tensors)
        model.classifier.calibrate(model.coordinates(z), y)


def default_trainer(max_steps: int, progress_bar: bool) -> L.Trainer:
    """A trainer for one device, without loggers and checkpoints."""
    return L.Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        devices=1,
        gradient_clip_val=10.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=progress_bar,
        enable_model_summary=False,
    )


@contextmanager
def _usual_warnings() -> Iterator[None]:
    """Leave out what Lightning says of every fit: the network is in eval mode, and features need no workers."""
    with warnings.catch_warnings():
        for message in ("in eval mode at the start", "does not have many workers", "no `val_dataloader`"):
            warnings.filterwarnings("ignore", f".*{message}")
        yield
