"""Data modules whose x lies in a stated box: rings in the plane, and scikit-learn's bundled digits.

Their training batches come in an order that a checkpoint can go on with, also from the middle of an epoch.
"""

import math
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
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
    return support.clamp(support.low + (support.high - support.low) * (levels + u) / num_levels)


class EpochSampler(StatefulDistributedSampler):  # type: ignore[misc]  # torchdata is untyped
    """An order that is shuffled by (seed, epoch) and dealt to ranks, and that knows how far it has come.

    torchdata's sampler with its seed in its state: a process that resumes without ``seed_everything`` goes on in the
    same order too. Lightning's trainer sets the epoch.

    Arguments:
        dataset: What is drawn from.
        world_size: Number of ranks.
        rank: This process's.
    """

    def __init__(self, dataset: Dataset[Any], world_size: int = 1, rank: int = 0) -> None:
        # Ranks have to agree, so without seed_everything several of them take 0, as Lightning's sampler does.
        seed = torch.initial_seed() if world_size == 1 else int(os.environ.get("PL_GLOBAL_SEED", "0"))
        # PyTorch adds the epoch to the seed; hashed, neighbouring seeds do not share orders.
        seed = make_generator(seed, "order").initial_seed() % 2**62
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
    """
    world_size, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
    sampler = EpochSampler(dataset, world_size, rank)
    if trainer:
        # Lightning sets the epoch of a run that resumes only after workers have begun to load.
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


class Dequantised(Dataset[tuple[Tensor, Tensor]]):
    """Integer images, dequantised with fresh noise each time a batch is taken.

    Arguments:
        levels: Shape (N, *shape), integers 0..Q-1.
        labels: Shape (N,).
        num_levels: Q.
        support: The box that images lie in.
    """

    def __init__(self, levels: Tensor, labels: Tensor, num_levels: int, support: Box) -> None:
        self.levels = levels
        self.labels = labels
        self.num_levels = num_levels
        self.support = support

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return dequantise(self.levels[i], self.num_levels, self.support), self.labels[i]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once; DataLoader takes this way when it is there."""
        return dequantise(self.levels[indices], self.num_levels, self.support), self.labels[indices]


class Binarised(Dataset[tuple[Tensor, Tensor]]):
    """Grey images, each pixel drawn 0 or 1 anew each time a batch is taken, with its grey level as the probability.

    References:
        Salakhutdinov & Murray, On the quantitative analysis of deep belief networks, 2008.

    Arguments:
        probabilities: Shape (N, *shape), in [0, 1].
        labels: Shape (N,).
    """

    def __init__(self, probabilities: Tensor, labels: Tensor) -> None:
        self.probabilities = probabilities
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return torch.bernoulli(self.probabilities[i]), self.labels[i]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once; DataLoader takes this way when it is there."""
        return torch.bernoulli(self.probabilities[indices]), self.labels[indices]


class Digits(L.LightningDataModule):
    """scikit-learn's 1797 real digits, 8x8 pixels of 17 levels, dequantised into [-1, 1]. No download.

    A stratified split into 60 % training, 15 % validation and 25 % test images, the same for every seed of a run.
    Validation and test images have fixed noise, so that two evaluations agree.

    References:
        Alpaydin & Kaynak, Optical recognition of handwritten digits, UCI, 1998.

    Arguments:
        batch_size: Images in a batch.
        split_seed: Of the split and of the noise on validation and test images.
    """

    num_classes = 10
    num_levels = 17
    support = Box(-1.0, 1.0, (1, 8, 8))

    def __init__(self, batch_size: int = 64, split_seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.split_seed = split_seed

    def setup(self, stage: str | None = None) -> None:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        levels, y = torch.from_numpy(images).float().view(-1, 1, 8, 8), torch.from_numpy(labels).long()
        rest, test = train_test_split(range(len(y)), test_size=0.25, stratify=y, random_state=self.split_seed)
        train, val = train_test_split(rest, test_size=0.2, stratify=y[rest], random_state=self.split_seed)
        self.train = Dequantised(levels[train], y[train], self.num_levels, self.support)
        self.val = self._fixed(levels[val], y[val], "val")
        self.test = self._fixed(levels[test], y[test], "test")

    def _fixed(self, levels: Tensor, y: Tensor, name: str) -> TensorDataset:
        generator = make_generator(self.split_seed, "digits", name)
        return TensorDataset(dequantise(levels, self.num_levels, self.support, generator), y)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return resumable_loader(self.train, self.batch_size, self.trainer, collate_fn=_as_it_is)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        # With a generator of its own, a loader leaves the global random state to training.
        return DataLoader(self.val, 256, generator=torch.Generator())

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.test, 256, generator=torch.Generator())


class Rings(L.LightningDataModule):
    r"""Concentric rings in the plane, one class each, equally likely.

    .. math:: x = r_y (\cos \phi, \sin \phi) + noise \cdot \xi, \qquad \phi \sim U[0, 2 \pi), \xi \sim N(0, I)

    Points beyond the box are reflected into it.

    Arguments:
        radii: r_y of each class.
        noise: Standard deviation across the ring, in units of x.
        half_width: The box is [-half_width, half_width]^2.
        size: Points for training; a quarter as many for validation and for test.
        batch_size: Points in a batch.
        seed: Of the points.
    """

    def __init__(
        self,
        radii: Sequence[float] = (1.0, 2.0, 3.0),
        noise: float = 0.15,
        half_width: float = 4.0,
        size: int = 8192,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.radii = tuple(radii)
        self.noise = noise
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.num_classes = len(self.radii)
        self.support = Box(-half_width, half_width, (2,))

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``n`` points, shape (n, 2), and their rings (n,)."""
        y = torch.randint(self.num_classes, (n,), generator=generator)
        phi = 2 * math.pi * torch.rand(n, generator=generator)
        x = torch.tensor(self.radii)[y, None] * torch.stack([phi.cos(), phi.sin()], 1)
        return self.support.reflect(x + self.noise * torch.randn(n, 2, generator=generator)), y

    def log_prob(self, x: Tensor) -> Tensor:
        """The points' true log density, shape (N,), in nats, up to the mass beyond the walls."""
        radius, variance = x.norm(dim=1, keepdim=True), self.noise**2
        r = torch.tensor(self.radii)
        log_bessel = torch.special.i0e(radius * r / variance).log()
        by_ring = log_bessel - (radius - r).square() / (2 * variance) - math.log(2 * math.pi * variance)
        return by_ring.logsumexp(1) - math.log(self.num_classes)

    def setup(self, stage: str | None = None) -> None:
        sizes = {"train": self.size, "val": self.size // 4, "test": self.size // 4}
        sets = {name: TensorDataset(*self.sample(n, make_generator(self.seed, name))) for name, n in sizes.items()}
        self.train, self.val, self.test = sets["train"], sets["val"], sets["test"]

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return resumable_loader(self.train, self.batch_size, self.trainer)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.val, 1024, generator=torch.Generator())

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.test, 1024, generator=torch.Generator())


def _as_it_is(batch: Any) -> Any:
    return batch
