"""Batches of the modules: their forms, and what is wrong with one that has another."""

from typing import Any

import torch
from torch import Tensor

UNLABELED = -1
"""Label of inputs without one, in batches of the generative terms."""
Batch = tuple[Tensor, Tensor]


def has_two_parts(batch: Any) -> bool:
    """Whether a training batch has separate parts for the conditional and the generative terms."""
    return isinstance(batch, dict) and batch.keys() == {"clf", "gen"}


def as_pair(batch: Any) -> Batch:
    """``batch`` as (x, y).

    Raises:
        ValueError: It is not a pair.
    """
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise ValueError(
            f"'batch' should be (x, y), or in training a dictionary of two such pairs, 'clf' and 'gen', got "
            f"{type(batch).__name__}. Change what the loader yields."
        )
    x, y = batch
    return x, y


def generative_pair(batch: Any) -> Batch:
    """The part of a batch for the generative terms as (x, y). Inputs without labels get labels of -1.

    Raises:
        ValueError: It is neither a pair nor inputs.
    """
    batch = batch["gen"] if has_two_parts(batch) else batch
    if isinstance(batch, list | tuple) and len(batch) == 1:
        (batch,) = batch
    if isinstance(batch, Tensor):
        return batch, torch.full((len(batch),), UNLABELED, device=batch.device)
    return as_pair(batch)


def check_labels(y: Tensor, n: int, num_classes: int, *, unlabeled: bool = False) -> None:
    """Check that ``y`` is a class for each of ``n`` inputs, or also -1 if ``unlabeled``.

    Raises:
        ValueError: It is not. The message says how to fix it.
    """
    if torch.is_floating_point(y) or y.shape != (n,):
        raise ValueError(
            f"'y' should be integer labels of shape ({n},), got {y.dtype} of shape {tuple(y.shape)}. "
            "Use class indices, not one-hot or float targets."
        )
    least = UNLABELED if unlabeled else 0
    if y.numel() and not least <= int(y.min()) <= int(y.max()) < num_classes:
        raise ValueError(
            f"'y' should be labels from 0 to {num_classes - 1}, got {int(y.min())} to {int(y.max())}. "
            "Renumber the labels or change 'num_classes'."
        )


def check_all_labeled(y: Tensor) -> None:
    """Check that no label is -1, for terms of the loss that need labels.

    Raises:
        ValueError: One is.
    """
    if (y == UNLABELED).any():
        raise ValueError(
            "'joint_weight' and 'class_conditional_weight' should be 0 for batches with unlabeled data, got labels of "
            "-1. Only log p(x) needs no labels: set 'generative_weight'."
        )
