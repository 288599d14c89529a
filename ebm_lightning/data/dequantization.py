"""Dequantization: uniform noise that turns integer images into continuous ones when a batch is loaded."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Box


def dequantize(levels: Tensor, num_levels: int, support: Box, generator: torch.Generator | None = None) -> Tensor:
    r"""Map integers 0..Q-1 into a box, with uniform noise as wide as one level.

    .. math:: x = low + (high - low) (k + u) / Q, \qquad u \sim U[0, 1)

    Averaged over u, the log-density of x is a lower bound on the log-probability of the integers, up to a constant
    (Theis et al. 2016, eq. 3).

    Arguments:
        levels: k, shape (N, *shape).
        num_levels: Q.
        support: Box of x.
        generator: Source of u. By default the global generator, so that every epoch and worker gets new noise.
    """
    u = torch.rand(levels.shape, generator=generator)
    # In place, because every batch of images passes through here.
    x = u.to(torch.result_type(levels, u)).add_(levels)
    return x.mul_(support.high - support.low).div_(num_levels).add_(support.low).clamp_(support.low, support.high)


class Dequantized(Dataset[tuple[Tensor, Tensor]]):
    """Integer images that get new dequantization noise each time they are loaded.

    Arguments:
        levels: Shape (N, *shape), integers 0..Q-1.
        labels: Shape (N,).
        num_levels: Q.
        support: Box of the images.
        augment: Augments a batch of integer images before dequantization.
        noise_std: Standard deviation of Gaussian noise, in units of x, reflected into the box.
    """

    def __init__(
        self,
        levels: Tensor,
        labels: Tensor,
        num_levels: int,
        support: Box,
        augment: Callable[[Tensor], Tensor] | None = None,
        noise_std: float = 0.0,
    ) -> None:
        self.levels = levels
        self.labels = labels
        self.num_levels = num_levels
        self.support = support
        self.augment = augment
        self.noise_std = noise_std

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x, y = self.__getitems__([i])
        return x[0], y[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once. DataLoader calls this method if a dataset defines it."""
        index = torch.tensor(indices)
        levels = self.levels.index_select(0, index)
        x = dequantize(self.augment(levels) if self.augment else levels, self.num_levels, self.support)
        if self.noise_std:
            x = self.support.reflect(x.add_(torch.randn(x.shape), alpha=self.noise_std))
        return x, self.labels[index]


class FixedDequantized(Dataset[tuple[Tensor, Tensor]]):
    """Integer images with fixed dequantization noise per image, so that evaluations are reproducible.

    Arguments:
        levels: Shape (N, *shape), integers 0..Q-1.
        labels: Shape (N,).
        num_levels: Q.
        support: Box of the images.
        seed: Seed of the noise. Image i is seeded by ``(seed, stream, i)``, so its noise does not depend on the
            batch or the rank.
        stream: Name of the random stream, such as ``"test"``.
    """

    def __init__(
        self, levels: Tensor, labels: Tensor, num_levels: int, support: Box, seed: int = 0, stream: str = ""
    ) -> None:
        self.levels = levels
        self.labels = labels
        self.num_levels = num_levels
        self.support = support
        self.seed = seed
        self.stream = stream

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        generator = make_generator(self.seed, self.stream, i)
        return dequantize(self.levels[i], self.num_levels, self.support, generator), self.labels[i]


class Binarized(Dataset[tuple[Tensor, Tensor]]):
    """Grayscale images, binarized at random each time they are loaded: a pixel is 1 with probability its gray level.

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
        """A whole batch at once. DataLoader calls this method if a dataset defines it."""
        return torch.bernoulli(self.probabilities[indices]), self.labels[indices]
