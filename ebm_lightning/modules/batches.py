"""Batches of the modules: their forms, and what is wrong with one that has another."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

UNLABELED = -1
"""Label of inputs without one, in batches of the generative terms."""
X_KEYS = ("x", "image", "images", "img", "pixel_values", "inputs")
"""Names under which a dictionary may hold inputs."""
Y_KEYS = ("y", "label", "labels", "target", "targets")
"""Names under which a dictionary may hold labels."""
Batch = tuple[Tensor, Tensor]
BatchKeys = Sequence[str | int | None]
"""Where a batch holds inputs and labels: keys of a dictionary or positions of a tuple. None for no labels."""


def has_two_parts(batch: Any) -> bool:
    """Whether a training batch has separate parts for the conditional and the generative terms."""
    return isinstance(batch, Mapping) and batch.keys() == {"clf", "gen"}


def check_batch_keys(keys: BatchKeys | None) -> BatchKeys | None:
    """``keys``, checked to name inputs, and labels or None.

    Raises:
        ValueError: They do not.
    """
    if keys is not None and (not isinstance(keys, list | tuple) or len(keys) != 2 or keys[0] is None):
        raise ValueError(
            f"'batch_keys' should be two keys or positions, of inputs and labels, got {keys!r}. Without labels the "
            "second is None, such as ('image', None)."
        )
    return keys


def split_batch(batch: Any, keys: BatchKeys | None = None) -> tuple[Tensor, Tensor | None]:
    """Inputs and labels of a batch. Labels are None if it has none.

    Taken are a tensor of inputs; a tuple or list (x,) or (x, y); and a dictionary (or any mapping) with one of the keys
    :data:`X_KEYS` and one of :data:`Y_KEYS`. A dictionary that holds inputs and nothing else is unlabeled.

    Arguments:
        batch: What a loader yields.
        keys: Where the batch holds inputs and labels, if it has another form: ``("image", "species")``, ``(0, 2)``.

    Raises:
        ValueError: It has none of these forms.
    """
    if isinstance(batch, Tensor):
        return batch, None
    if keys is not None:
        x, y = (None if key is None else _entry(batch, key) for key in keys)
    elif isinstance(batch, Mapping):
        x, y = _entries(batch)
    elif isinstance(batch, list | tuple) and len(batch) in (1, 2):
        x, y = (*batch, None)[:2]
    else:
        raise _unknown_form(batch)
    if not isinstance(x, Tensor) or not (y is None or isinstance(y, Tensor)):
        raise _unknown_form(batch)
    return x, y if y is None or y.is_floating_point() else y.long()  # losses want int64


def with_labels(x: Tensor, y: Tensor | None) -> Batch:
    """The pair, with -1 for missing labels."""
    return x, torch.full((len(x),), UNLABELED, device=x.device) if y is None else y


def class_indices(y: Tensor) -> Tensor:
    """Labels (N,). Of probabilities (N, K), the most likely classes."""
    return y.argmax(1) if y.ndim == 2 else y


def check_labels(y: Tensor, n: int, num_classes: int, *, unlabeled: bool = False) -> None:
    """Check that ``y`` is a class for each of ``n`` inputs, or probabilities of all; or also -1 if ``unlabeled``.

    Raises:
        ValueError: It is not. The message says how to fix it.
    """
    if torch.is_floating_point(y) and y.shape == (n, num_classes):
        _check_probabilities(y)
        return
    if torch.is_floating_point(y) or y.shape != (n,):
        raise ValueError(
            f"'y' should be integer labels of shape ({n},), got {y.dtype} of shape {tuple(y.shape)}. Use class indices "
            f"(.argmax(1) of one-hot labels), or probabilities of shape ({n}, {num_classes}) as soft labels."
        )
    least = UNLABELED if unlabeled else 0
    if y.numel() and not least <= int(y.min()) <= int(y.max()) < num_classes:
        raise ValueError(
            f"'y' should be labels from 0 to {num_classes - 1}, got {int(y.min())} to {int(y.max())}. "
            f"Renumber the labels or change 'num_classes'.{_unlabeled_remedy(y)}"
        )


def check_has_labels(y: Tensor | None) -> Tensor:
    """``y``, if a batch has labels.

    Raises:
        ValueError: It has none.
    """
    if y is None:
        raise ValueError(
            "'batch' should have labels for -log p(y|x), got inputs alone. Yield (x, y); or for data of which a part "
            "is labeled {'clf': (x, y), 'gen': inputs}; or set 'conditional_weight' to 0 to train on log p(x) alone."
        )
    return y


def check_classes(y: Tensor, *, values: bool = True) -> None:
    """Check that labels of log p(x, y) and log p(x|y) are one class for each input.

    Arguments:
        y: Labels that passed :func:`check_labels`.
        values: Also look for labels of -1, for which an accelerator has to be synchronized.

    Raises:
        ValueError: They are probabilities, or one is -1.
    """
    if y.ndim == 2:
        raise ValueError(
            "'joint_weight' and 'class_conditional_weight' should be 0 for soft labels, got probabilities of shape "
            f"{tuple(y.shape)}. Yield {{'clf': (mixed x, probabilities), 'gen': (x, y)}}, with class indices y of x."
        )
    if values and (y == UNLABELED).any():
        raise ValueError(
            "'joint_weight' and 'class_conditional_weight' should be 0 for batches with unlabeled data, got labels of "
            "-1. Only log p(x) needs no labels: set 'generative_weight'."
        )


def _check_probabilities(y: Tensor) -> None:
    sums = y.float().sum(1)
    if not ((y >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-2)):
        raise ValueError(
            f"'y' should be probabilities with rows that sum to 1, got {y.dtype} of shape {tuple(y.shape)} with sums "
            f"from {float(sums.min()):.4g} to {float(sums.max()):.4g}. Call .softmax(1) on logits."
        )


def _entries(batch: Mapping[str, Any]) -> tuple[Any, Any]:
    """Inputs and labels of a dictionary with known keys."""
    x_keys, y_keys = ([key for key in known if key in batch] for known in (X_KEYS, Y_KEYS))
    if len(x_keys) != 1 or len(y_keys) > 1 or (not y_keys and len(batch) > 1):
        raise _unknown_form(batch)
    return batch[x_keys[0]], batch[y_keys[0]] if y_keys else None


def _entry(batch: Any, key: str | int) -> Any:
    try:
        return batch[key]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"'batch_keys' should be keys or positions of the batch, got {key!r} for {_described(batch)}. Change it, "
            "or what the loader yields."
        ) from error


def _unknown_form(batch: Any) -> ValueError:
    return ValueError(
        f"'batch' should be (x, y), x alone, or a dictionary with one of {', '.join(X_KEYS)} and one of "
        f"{', '.join(Y_KEYS)}; or in training a dictionary of two such parts, 'clf' and 'gen'. Got "
        f"{_described(batch)}. Change what the loader yields, or say where x and y are, such as "
        "batch_keys=('image', 'species') or batch_keys=(0, 2)."
    )


def _described(batch: Any) -> str:
    if isinstance(batch, Mapping):
        entries = ", ".join(f"{key} ({type(value).__name__})" for key, value in batch.items())
        return f"a dictionary of {entries or 'nothing'}"
    if isinstance(batch, list | tuple):
        return f"a {type(batch).__name__} of {len(batch)}: {', '.join(type(part).__name__ for part in batch)}"
    return type(batch).__name__


def _unlabeled_remedy(y: Tensor) -> str:
    if int(y.min()) != UNLABELED:
        return ""
    return " If -1 means unlabeled, yield {'clf': the labeled (x, y), 'gen': all (x, y)}."
