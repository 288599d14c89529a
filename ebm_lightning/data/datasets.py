"""Integer images whose noise is drawn when a batch is taken, so that memory holds one byte for each value."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ebm_lightning.data.loading import dequantise
from ebm_lightning.streams import make_generator
from ebm_lightning.supports import Box


class Dequantised(Dataset[tuple[Tensor, Tensor]]):
    """Integer images, dequantised with fresh noise each time a batch is taken.

    Arguments:
        levels: Shape (N, *shape), integers 0..Q-1.
        labels: Shape (N,).
        num_levels: Q.
        support: The box that images lie in.
        augment: Changes a batch of integer images before it is dequantised.
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
        """A whole batch at once; DataLoader takes this way when it is there."""
        index = torch.tensor(indices)
        levels = self.levels.index_select(0, index)
        x = dequantise(self.augment(levels) if self.augment else levels, self.num_levels, self.support)
        if self.noise_std:
            x = self.support.reflect(x.add_(torch.randn(x.shape), alpha=self.noise_std))
        return x, self.labels[index]


class FixedDequantised(Dataset[tuple[Tensor, Tensor]]):
    """Integer images, each dequantised with noise of its own that is always the same, so that evaluations agree.

    Arguments:
        levels: Shape (N, *shape), integers 0..Q-1.
        labels: Shape (N,).
        num_levels: Q.
        support: The box that images lie in.
        seed: Of the noise: that of image i follows from ``(seed, stream, i)``, whatever batch or rank it is in.
        stream: Name of the noise, such as ``"test"``.
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
        return dequantise(self.levels[i], self.num_levels, self.support, generator), self.labels[i]


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
