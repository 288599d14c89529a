r"""The part of a Student t density with independent scales that is inside a box: its mass, and exact draws.

The density is a mixture of normals over their precision u, which has a gamma distribution. Between walls each of these
normals is a product of truncated ones, so that one integral over log u is left. On an even grid, the error of that sum
falls exponentially with the number of nodes.
"""

import math

import torch
from torch import Tensor

from ebm_lightning.supports import Box

STEP, STEPS_PER_STD = 0.02, 4  # of log u: at most .02, and a quarter of its standard deviation
TAIL = 40.0  # nats that the density of log u falls to both ends of the grid


class BetweenWalls:
    """Normals of random precision between the walls of a box.

    Arguments:
        mean: Shape (*shape), float64.
        scale: Standard deviations at precision 1, shape (*shape), float64.
        dof: Degrees of freedom of the precision.
        box: The walls.

    Attributes:
        log_mass: Log of the probability that the Student density gives to the box.
    """

    def __init__(self, mean: Tensor, scale: Tensor, dof: float, box: Box) -> None:
        self.mean, self.scale, self.box = mean, scale, box
        std = math.sqrt(2 / dof)  # of log u, for many degrees of freedom
        low = -max(2 * TAIL / dof, math.sqrt(2 * TAIL) * std)
        high = math.log1p(max(2 * TAIL / dof, math.sqrt(2 * TAIL) * std))
        nodes = 1 + math.ceil((high - low) / min(STEP, std / STEPS_PER_STD))
        t = torch.linspace(low, high, nodes, dtype=torch.float64)
        log_p = 0.5 * dof * (math.log(0.5 * dof) + t - t.exp()) - math.lgamma(0.5 * dof)
        self.root = (0.5 * t).exp()  # square root of u
        log_w = log_p + torch.stack([self._log_mass_at(root) for root in self.root])
        self.log_mass = float(log_w.logsumexp(0)) + math.log(float(t[1] - t[0]))
        self.weights = log_w.softmax(0)

    def sample(self, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """``n`` draws between the walls, shape (n, *shape), float32."""
        at = torch.multinomial(self.weights.to(device), n, replacement=True, generator=generator)
        std = self.scale.to(device) / self.root.to(device)[at].view(-1, *[1] * self.mean.ndim)
        low, high, sign = self._walls(self.mean.to(device), std)
        low, high = torch.special.ndtr(low), torch.special.ndtr(high)
        u = torch.rand(std.shape, generator=generator, device=device, dtype=torch.float64)
        z = sign * torch.special.ndtri(low + (high - low) * u)
        return self.box.clamp((self.mean.to(device) + std * z).float())

    def _log_mass_at(self, root: Tensor) -> Tensor:
        """Log probability of the box under the normal whose precision has this square root."""
        low, high, _ = self._walls(self.mean, self.scale / root)
        return (torch.special.ndtr(high) - torch.special.ndtr(low)).log().sum()

    def _walls(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Standardized walls, mirrored where both are positive because probabilities near 1 are rounded; the signs."""
        low, high = (self.box.low - mean) / std, (self.box.high - mean) / std
        mirrored = low > 0
        sign = torch.where(mirrored, -1.0, 1.0).to(low)
        return torch.where(mirrored, -high, low), torch.where(mirrored, -low, high), sign
