"""The features of a data set, computed once and kept in memory."""

from collections.abc import Sized
from typing import Any

import torch
from lightning.fabric.utilities.data import sized_len
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ebm_lightning.checks import check_integer
from ebm_lightning.modules.loaders import Data, as_loader
from ebm_lightning.modules.network_features import FeatureBatch
from ebm_lightning.modules.random_state import seeded_globally
from ebm_lightning.modules.scoring import no_inputs
from ebm_lightning.modules.training_data import pass_over


def cache_features(
    model: Any, data: Data, max_rows: int = 1_000_000, *, batch_size: int = 250, progress_bar: bool = True
) -> TensorDataset:
    """Features (N, D), float32, and labels (N,) of ``data``, on the CPU, in the order of the data set.

    One pass in the fixed order of the data set, in which random augmentations are drawn once. One million rows of 512
    features take 2 GB.

    Arguments:
        model: A FeatureJEM.
        data: Inputs with labels, or without.
        max_rows: Largest number of rows to keep.
        batch_size: Inputs at a time, of datasets and tensors. A loader has its own.
        progress_bar: Show a progress bar.

    Raises:
        ValueError: There are more rows, or none.
    """
    z, _, y = network_outputs(model, data, max_rows, batch_size=batch_size, progress_bar=progress_bar, logits=False)
    return TensorDataset(z, *([] if y is None else [y]))


def network_outputs(
    model: Any,
    data: Data,
    max_rows: int = 1_000_000,
    *,
    batch_size: int = 250,
    progress_bar: bool = True,
    logits: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Features (N, D), the network's logits (N, K) and labels (N,) or None. Arguments as for :func:`cache_features`.

    Arguments:
        logits: Also the logits; otherwise they have no columns.
    """
    from tqdm import tqdm

    check_integer("max_rows", max_rows, at_least=1)
    loader = pass_over(as_loader(data, batch_size))
    rows = len(loader.dataset) if isinstance(loader, DataLoader) and isinstance(loader.dataset, Sized) else 0
    _check_rows(rows, max_rows, model.num_features)
    parts: list[tuple[Tensor, Tensor]] = []
    labels: list[Tensor] = []
    rows = 0
    with seeded_globally(0), torch.inference_mode(False):
        for batch in tqdm(loader, "features", sized_len(loader), leave=False, disable=not progress_bar):
            z, of_network, y = model.outputs_and_labels(batch, logits=logits)
            parts.append((z.cpu(), of_network.cpu()))
            labels += [] if y is None else [y.cpu()]
            rows += len(z)
            _check_rows(rows, max_rows, model.num_features)
    if not parts:
        raise no_inputs()
    if labels and len(labels) < len(parts):
        raise ValueError("'data' should have labels in all batches or in none, got both kinds.")
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return columns[0], columns[1], torch.cat(labels) if labels else None


def feature_loader(dataset: TensorDataset, batch_size: int, *, shuffle: bool) -> DataLoader[FeatureBatch]:
    """A loader of cached features."""
    size = min(batch_size, len(dataset)) if shuffle else batch_size
    rows: Dataset[Any] = dataset
    return DataLoader(rows, size, shuffle=shuffle, drop_last=shuffle, collate_fn=_collate)


def _collate(rows: list[tuple[Tensor, ...]]) -> FeatureBatch:
    columns = [torch.stack(column) for column in zip(*rows, strict=True)]
    return FeatureBatch(columns[0], columns[1] if len(columns) > 1 else None)


def _check_rows(rows: int, max_rows: int, num_features: int) -> None:
    if rows > max_rows:
        raise ValueError(
            f"'max_rows' should be at least the {rows:,} rows of the data, got {max_rows:,}. They take "
            f"{4e-9 * rows * num_features:.1f} GB: raise it, or pass a torch.utils.data.Subset."
        )
