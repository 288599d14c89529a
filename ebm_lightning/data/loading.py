"""Batches in an order that a checkpoint can go on with, also from the middle of an epoch, of integers made real."""

import os
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from ebm_lightning.streams import make_generator
from ebm_lightning.supports import Box


def dequantise(levels: Tensor, num_levels: int, support: Box, generator: torch.Generator | None = None) -> Tensor:
    r"""Integers 0..Q-1 as real numbers in a box, by uniform noise of one level's width.

    .. math:: x = low + (high - low) (k + u) / Q, \qquad u \sim U[0, 1)

    A density of x then bounds the probability of the integers (Theis et al. 2016, eq. 3).

    Arguments:
        levels: k, shape (N, *shape).
        num_levels: Q.
        support: The box.
        generator: Source of u; the global one by default, so that each epoch and worker draws anew.
    """
    u = torch.rand(levels.shape, generator=generator)
    # In place: images are large, and every batch of them comes through here.
    x = u.to(torch.result_type(levels, u)).add_(levels)
    return x.mul_(support.high - support.low).div_(num_levels).add_(support.low).clamp_(support.low, support.high)


class EpochSampler(StatefulDistributedSampler):  # type: ignore[misc]  # torchdata is untyped
    """An order that is shuffled by (seed, epoch) and dealt to ranks, and that knows how far it has come.

    torchdata's sampler with its seed in its state: a process that resumes without ``seed_everything`` goes on in the
    same order too. Lightning's trainer sets the epoch.

    Arguments:
        dataset: What is drawn from.
        world_size: Number of ranks.
        rank: This process's.
        stream: Name of the order: two samplers of one run that bear different names share none.
    """

    def __init__(self, dataset: Dataset[Any], world_size: int = 1, rank: int = 0, stream: str = "order") -> None:
        # Ranks have to agree, so without seed_everything several of them take 0, as Lightning's sampler does.
        seed = torch.initial_seed() if world_size == 1 else int(os.environ.get("PL_GLOBAL_SEED", "0"))
        # PyTorch adds the epoch to the seed; hashed, neighbouring seeds do not share orders.
        seed = make_generator(seed, stream).initial_seed() % 2**62
        super().__init__(dataset, world_size, rank, seed=seed, drop_last=True)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"seed": self.seed, "epoch": self.epoch, "num_replicas": self.num_replicas}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the state was taken; on another number of ranks, where each has drawn its share of as much."""
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
    """Shuffled batches for training, the last incomplete one dropped, that a checkpoint can go on with.

    Noise that the dataset adds goes on exactly too if it is drawn in this process; workers (``num_workers`` above 0)
    are seeded anew, so that theirs does not.

    Arguments:
        dataset: Map-style, with a length.
        batch_size: Items in a batch on each rank.
        trainer: Says how many ranks there are; a data module's ``self.trainer``.
        num_workers: Processes that load.
        collate_fn: Makes a batch of items; by default PyTorch's.
        stream: Name of the order, for loaders beside this one: those of equal name and length go through equal orders.
    """
    world_size, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
    sampler = EpochSampler(dataset, world_size, rank, stream)
    if trainer:
        # Lightning sets the epoch of a run that resumes only after workers have begun to load. It gives its loop this
        # attribute where type checkers do not see it.
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
            # A loader without one takes a number from the global random state whenever it starts, which a run that
            # was interrupted does more often.
            generator=make_generator(sampler.seed, rank, "workers"),
        )


def as_it_is(batch: Any) -> Any:
    """Collates a batch that the dataset has put together itself."""
    return batch
