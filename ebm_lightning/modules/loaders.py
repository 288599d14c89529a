"""Data in any form as batches: tensors, arrays, datasets and loaders."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

Rows = Tensor | np.ndarray[Any, Any]
Data = Rows | tuple[Rows, Rows] | Dataset[Any] | Iterable[Any]
"""Inputs (N, *shape); inputs and labels; a dataset; or a loader or other batches, in any form that modules take."""


def as_loader(data: Data, batch_size: int = 250) -> Iterable[Any]:
    """Batches of ``data``. Tensors, arrays and datasets get a DataLoader; other iterables are batches already.

    Two tensors are inputs and labels if the second holds classes (N,) or probabilities (N, K). If both have rows of one
    shape, they are two batches of inputs.

    Arguments:
        data: Inputs, with labels or without.
        batch_size: Rows at a time, of tensors, arrays and datasets.

    Raises:
        ValueError: It is something else, such as a data module, or there is not one label for each input.
    """
    tensors = _tensors(data)
    if tensors:
        return DataLoader(TensorDataset(*tensors), batch_size)
    if isinstance(data, Dataset):
        return DataLoader(data, batch_size)
    if isinstance(data, Iterable) and not isinstance(data, str):
        return data
    name, remedy = type(data).__name__, "Use torch.tensor."
    if hasattr(data, "val_dataloader"):
        remedy = "Call its setup(), and pass its train_dataloader() or val_dataloader()."
        name = f"the data module {name}"
    raise ValueError(f"'data' should be a tensor, a dataset or a loader, got {name}. {remedy}")


def as_tensor(data: Any) -> Tensor | None:
    """A tensor, or an array as a tensor, whose memory it shares. None for anything else.

    Raises:
        ValueError: It is a single number, without rows.
    """
    tensor = torch.from_numpy(data) if isinstance(data, np.ndarray) else data
    if not isinstance(tensor, Tensor):
        return None
    if tensor.ndim == 0:
        raise ValueError("'data' should have a row for each input, got a single number. Use shape (N, *shape).")
    return tensor


def _tensors(data: Any) -> list[Tensor]:
    """Inputs, or inputs and labels, as tensors. Empty for anything else."""
    parts = list(data) if isinstance(data, tuple | list) and len(data) == 2 else [data]
    tensors = [tensor for tensor in map(as_tensor, parts) if tensor is not None]
    if len(tensors) < len(parts) or (len(parts) == 2 and not _is_pair(*tensors)):
        return []
    if len({len(tensor) for tensor in tensors}) > 1:
        raise ValueError(
            f"'data' should have one label for each input, got {len(tensors[1])} labels for {len(tensors[0])} inputs."
        )
    return tensors


def _is_pair(x: Tensor, y: Tensor) -> bool:
    """Whether these are inputs and labels, and not two batches of inputs."""
    return x.ndim > 1 and (y.ndim == 1 or (y.ndim == 2 and y.shape[1:] != x.shape[1:]))
