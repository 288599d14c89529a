"""One pass over the training data before training begins, that leaves no trace on it: where chains start is fitted.

The order of a loader, the images that it drops and what its sampler remembers depend on the seed, on the epoch and on
what was read before. None of it may change what is fitted, or a run that goes on would not be the one that stopped. So
images are read in the order of the data set, each once, by one rank, with random numbers of the pass's own.
"""

import copy
import random
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from ebm_lightning.modules.conditional import ConditionalEBM, is_split
from ebm_lightning.modules.resume import random_state, set_random_state


def fit_starts(module: ConditionalEBM) -> None:
    """Fit the starts of the module's chains that need it to its trainer's training data; the same on every rank.

    A collective, if there are several ranks. Data that loads images with a generator of its own, rather than with a
    global random state, moves that generator by one pass.

    Raises:
        ValueError: As for the batches of training, and for what is fitted.
    """
    starts = {id(c.start): c.start for c in module.running_chains().values() if c.start and c.start.needs_data}
    for start in starts.values():
        with undisturbed(module.device):
            start.fit(_checked(module), module.num_classes, lambda total: _over_ranks(total, module.device))


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Global random states that are equal at every entry, and afterwards as they were."""
    state = random_state(device)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    try:
        yield
    finally:
        set_random_state(state, device)


def training_batches(trainer: L.Trainer) -> Iterable[Any]:
    """This rank's share of the training data, in an order that depends on the data alone.

    A data module, or a module, is asked for a loader anew; of one that was given to ``fit`` only the data set is read.
    Of two loaders, that of the generative terms is read. What is no DataLoader of a data set with a length is read as
    it comes, by each rank.
    """
    return pass_over(trainer.fit_loop._data_source.dataloader(), trainer.global_rank, trainer.world_size)


def pass_over(loader: Any, rank: int = 0, world_size: int = 1) -> Iterable[Any]:
    """Batches of a rank's share of what ``loader`` reads, in the order of the data set."""
    loader = loader.iterables if isinstance(loader, CombinedLoader) else loader
    loader = loader["gen"] if is_split(loader) else loader
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    return DataLoader(
        loader.dataset,
        # Without a batch sampler, items are batches already.
        batch_size=None if loader.batch_sampler is None else loader.batch_size or 256,
        sampler=_indices(loader, rank, world_size),
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator().manual_seed(0),
    )


def _indices(loader: DataLoader[Any], rank: int, world_size: int) -> list[int]:
    """What this rank reads: of the usual samplers' data its share, of a user's own what that sampler would."""
    sampler = loader.sampler
    if isinstance(sampler, RandomSampler | SequentialSampler | DistributedSampler):
        return list(range(len(cast(Sized, loader.dataset))))[rank::world_size]
    generator = getattr(sampler, "generator", None)
    state = None if generator is None else generator.get_state()
    indices = sorted(copy.copy(sampler))
    if generator is not None:
        generator.set_state(state)
    return indices


def _checked(module: ConditionalEBM) -> Iterator[tuple[Tensor, Tensor]]:
    for i, batch in enumerate(training_batches(module.trainer)):
        yield module._checked(batch, i)


def _over_ranks(total: Tensor, device: torch.device) -> Tensor:
    if not torch.distributed.is_initialized():
        return total
    moved = total.to(device)
    torch.distributed.all_reduce(moved)
    return moved.cpu()
