"""Integer images whose noise is drawn when a batch is taken, so that memory holds one byte for each value."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ebm_lightning.data.loading import dequantise
from ebm_lightning.supports import Box


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
