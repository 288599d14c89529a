"""Shuffled data loaders that resume from a checkpoint at the same position, also within an epoch."""

import os
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from ebm_lightning.rng import make_generator


class EpochSampler(StatefulDistributedSampler):  # type: ignore[misc]  # torchdata is untyped
    """Distributed sampler that shuffles by (seed, epoch) and resumes at the saved position.

    This is torchdata's sampler with the seed in its state, so that a process that resumes without ``seed_everything``
    also continues in the same order. Lightning's trainer sets the epoch.

    Arguments:
        dataset: The data set to sample from.
        world_size: Number of ranks.
        rank: Rank of this process.
        stream: Name of the random stream: two samplers with different names shuffle independently.
    """

    def __init__(self, dataset: Dataset[Any], world_size: int = 1, rank: int = 0, stream: str = "order") -> None:
        # All ranks need the same seed. Without seed_everything it is 0 on several ranks, as in Lightning's sampler.
        seed = torch.initial_seed() if world_size == 1 else int(os.environ.get("PL_GLOBAL_SEED", "0"))
        # PyTorch adds the epoch to the seed. Hash it, so that seed 0 in epoch 1 differs from seed 1 in epoch 0.
        seed = make_generator(seed, stream).initial_seed() % 2**62
        super().__init__(dataset, world_size, rank, seed=seed, drop_last=True)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"seed": self.seed, "epoch": self.epoch, "num_replicas": self.num_replicas}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume at the saved position. With another number of ranks, keep the total number of samples already seen."""
        self.seed, self.epoch = state_dict["seed"], state_dict["epoch"]
        yielded = state_dict[self._YIELDED] * state_dict["num_replicas"] // self.num_replicas
        super().load_state_dict({self._YIELDED: yielded})


def resumable_loader(
    dataset: Dataset[Any],
    batch_size: int,
    trainer: L.Trainer | None = None,
    *,
    num_workers: int = 0,
    collate_fn: Callable[[Any], Any] | None = None,
    stream: str = "order",
) -> DataLoader[Any]:
    """A shuffled training loader whose order resumes from a checkpoint. It drops the last incomplete batch.

    Random augmentation in the data set also resumes exactly if it runs in the main process (``num_workers=0``). Worker
    processes are reseeded when a run resumes.

    Arguments:
        dataset: Map-style data set with a length.
        batch_size: Items in a batch on each rank.
        trainer: Provides the number of ranks; in a data module, pass ``self.trainer``.
        num_workers: Number of worker processes.
        collate_fn: Collates items into a batch; by default PyTorch's.
        stream: Name of the random stream. If a run has several loaders, give each a different name: loaders of the same
            name and length shuffle identically.
    """
    world_size, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
    sampler = EpochSampler(dataset, world_size, rank, stream)
    if trainer:
        # When a run resumes, Lightning sets the epoch only after workers have started to load. Type checkers do not see
        # this attribute of Lightning's loop.
        sampler.set_epoch(trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*set_vital")  # torchdata 0.11 on torch 2.15
        return StatefulDataLoader(
            dataset,
            batch_size,
            sampler=sampler,
            drop_last=True,
            num_workers=num_workers,
            collate_fn=collate_fn,
            # Without a generator, a loader advances the global random state each time it starts, and a resumed run
            # starts it more often.
            generator=make_generator(sampler.seed, rank, "workers"),
        )


def identity_collate(batch: Any) -> Any:
    """Collate function for data sets that return whole batches from ``__getitems__``: returns its argument."""
    return batch
