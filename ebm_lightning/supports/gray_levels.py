"""Gray levels of images, and bins of neighboring levels with about equal probability."""

import math

import torch
from torch import Tensor

from ebm_lightning.supports.exact_buffers import ExactBuffers


class GrayLevels(ExactBuffers):
    """The gray levels between two walls, grouped into bins.

    Points are also described by a ``key``: the number of their bin, plus the fraction of the bin's probability that is
    below them.

    Arguments:
        low, high: Walls, in units of x.
        num_levels: Levels between them, of equal width.
        bins: Largest number of bins.
    """

    knots: Tensor
    features: Tensor

    def __init__(self, low: float, high: float, num_levels: int, bins: int) -> None:
        super().__init__()
        self.low, self.num_levels, self.bins = low, num_levels, bins
        self.width = (high - low) / num_levels
        self.register_buffer("knots", torch.zeros(num_levels + 1, dtype=torch.float64))  # keys of the levels' edges
        self.register_buffer("features", torch.zeros(num_levels, 2))  # rank and value of a level, from -1 to 1

    def fit(self, counts: Tensor) -> None:
        """Choose the bins, from the number of pixels of each level, shape (num_levels,)."""
        p = ((counts + 1) / (counts + 1).sum()).double().cpu()
        bin_of = self._bins(p.tolist())
        of_bins = torch.zeros(self.bins, dtype=torch.float64).index_add(0, bin_of, p)
        upper = bin_of + (p.cumsum(0) - (of_bins.cumsum(0) - of_bins)[bin_of]) / of_bins[bin_of]
        last = bin_of.diff(append=bin_of[-1:] + 1) > 0
        upper = torch.where(last, bin_of + 1.0, upper)  # without rounding errors
        self.knots.copy_(torch.cat([upper.new_zeros(1), upper]))
        ranks = 2 * (p.cumsum(0) - p / 2) - 1
        self.features.copy_(torch.stack([ranks, torch.linspace(-1, 1, self.num_levels)], 1))

    def _bins(self, p: list[float]) -> Tensor:
        """Bin of each level: a bin is full when it has an equal part of what earlier bins have left."""
        bin_of, k, filled, rest = [], 0, 0.0, 1.0
        for level, share in enumerate(p):
            bin_of.append(k)
            filled += share
            spare = self.num_levels - level <= self.bins - k  # a bin for each level that is left
            if k < self.bins - 1 and (spare or filled >= rest / (self.bins - k)):
                k, rest, filled = k + 1, rest - filled, 0.0
        return torch.tensor(bin_of)

    @property
    def bin_of_level(self) -> Tensor:
        """Shape (num_levels,)."""
        return self.knots[:-1].floor().long()

    @property
    def log_within(self) -> Tensor:
        """Log density of x in each level, if its bin had probability 1, shape (num_levels,), in nats."""
        return self.knots.diff().log() - math.log(self.width)

    def level_of(self, x: Tensor) -> Tensor:
        """Number of the level of each component."""
        return ((x.detach().double() - self.low) / self.width).floor().long().clamp(0, self.num_levels - 1)

    def key_of(self, x: Tensor, level: Tensor) -> Tensor:
        """Keys of points in their levels, float64."""
        fraction = ((x.double() - self.low) / self.width - level).clamp(0, 1)
        return torch.lerp(self.knots[level], self.knots[level + 1], fraction)

    def at_key(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """The levels and the points, float32, of keys."""
        level = (torch.searchsorted(self.knots, key, right=True) - 1).clamp(max=self.num_levels - 1)
        fraction = (key - self.knots[level]) / (self.knots[level + 1] - self.knots[level])
        fraction = fraction.clamp(1e-4, 1 - 1e-4)  # float32 must not round to another level
        return level, (self.low + (level + fraction) * self.width).float()
