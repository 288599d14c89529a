"""The training data in one fixed order, for fits that precede training.

A fit must not depend on the seed, the epoch or what was read before, or a resumed run would differ from an
uninterrupted one. A pass therefore reads the dataset in its original order and under a fixed seed.
"""

import copy
from collections.abc import Iterable, Iterator, Sized
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from ebm_lightning.modules.batches import has_two_parts
from ebm_lightning.resume.lightning_internals import train_dataloader

MANY_BATCHES = 20_000  # of a loader without a length, which may have no end: 2.5 million images in batches of 128


def training_batches(trainer: L.Trainer, *, shared: bool = True) -> Iterable[Any]:
    """This rank's part of the training data, or all of it, in an order that depends on the dataset only.

    Of a loader without a length, an integer ``limit_train_batches`` is respected, since it may have no end.

    A data module, or a LightningModule with ``train_dataloader``, is asked for another loader. Of a loader that was
    passed to ``fit`` only the dataset is read. If batches have two parts, this is the loader of the generative terms.
    """
    part = (trainer.global_rank, trainer.world_size) if shared else (0, 1)
    batches = pass_over(train_dataloader(trainer), *part)
    return batches if sized_len(batches) is not None else _of_unknown_length(batches, trainer.limit_train_batches)


def _of_unknown_length(batches: Iterable[Any], limit: int | float | None) -> Iterator[Any]:
    """At most ``limit`` batches, if it is an integer. Without one a loader that goes on and on is an error."""
    for i, batch in enumerate(batches):
        if isinstance(limit, int) and i >= limit:
            return
        if not isinstance(limit, int) and i >= MANY_BATCHES:
            raise ValueError(
                f"'limit_train_batches' should be an integer if a loader has no length, got {limit}: a fit to the "
                f"training data has read {i} batches and seen no end. Set Trainer(limit_train_batches=1000), say."
            )
        yield batch


def pass_over(loader: Any, rank: int = 0, world_size: int = 1) -> Iterable[Any]:
    """This rank's part of the data of ``loader``, in batches and in the order of the dataset.

    Anything but a DataLoader of a map-style dataset is returned unchanged, so that each rank reads all of it.
    """
    loader = loader.iterables if isinstance(loader, CombinedLoader) else loader
    loader = loader["gen"] if has_two_parts(loader) else loader
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    return DataLoader(
        loader.dataset,
        # Without a batch sampler, the items of the dataset are batches.
        batch_size=None if loader.batch_sampler is None else loader.batch_size or 256,
        sampler=_indices(loader, rank, world_size),
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator().manual_seed(0),
    )


def _indices(loader: DataLoader[Any], rank: int, world_size: int) -> list[int]:
    """The sorted indices that this rank reads: every ``world_size``-th, or those that a user-defined sampler yields."""
    sampler = loader.sampler
    if isinstance(sampler, RandomSampler | SequentialSampler | DistributedSampler):
        return list(range(rank, len(cast(Sized, loader.dataset)), world_size))
    generator = getattr(sampler, "generator", None)
    state = None if generator is None else generator.get_state()
    indices = sorted(copy.copy(sampler))
    if generator is not None:
        generator.set_state(state)
    return indices
