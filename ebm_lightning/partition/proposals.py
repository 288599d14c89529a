"""Proposal densities, at which annealing starts."""

import math

import torch
from torch import Tensor

from ebm_lightning.checks import check_number
from ebm_lightning.supports import Binary, Box, Density, Support
from ebm_lightning.supports.base import infinite_mass


class Normal(Density):
    r"""A normal density with independent components, truncated to a box if one is given.

    .. math:: q_0(x) = \prod_d \frac{N(x_d; mean_d, std_d^2)}{\Phi(b_d) - \Phi(a_d)}

    It should be wide enough to cover the model. More temperatures do not correct a proposal that is too narrow: the
    weights look fine although most of the mass was never visited.

    Arguments:
        mean: Shape (*shape).
        std: Standard deviations, shape (*shape), positive.
        box: Truncates the density to its walls.

    Raises:
        ValueError: ``std`` is not positive.
    """

    def __init__(self, mean: Tensor, std: Tensor, box: Box | None = None) -> None:
        self.mean, self.std = torch.as_tensor(mean).double(), torch.as_tensor(std).double()
        self.box = box
        check_number("std", float(self.std.min()), above=0)

    @classmethod
    def fit(cls, data: Tensor, box: Box | None = None, floor: float = 0.05) -> "Normal":
        """Match the mean and standard deviation of ``data``, shape (N, *shape).

        Arguments:
            data: Training data, or the chains of a replay buffer.
            box: Truncates the density to its walls.
            floor: Smallest standard deviation, in units of x.
        """
        return cls(data.mean(0), data.std(0).clamp(min=floor), box)

    def log_prob(self, x: Tensor) -> Tensor:
        std = self.std.to(x.device)
        low, high = self._cdf_at_walls(x.device)
        log_p = -0.5 * self._standardized(x).square() - (std.log() + 0.5 * math.log(2 * math.pi))
        return (log_p - (high - low).log()).flatten(1).sum(1)

    def log_prob_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.log_prob(x), (-self._standardized(x) / self.std.to(x.device)).to(x.dtype)

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        if device is None:
            device = "cpu" if generator is None else generator.device
        mean, std = self.mean.to(device), self.std.to(device)
        if self.box is None:
            z = torch.randn((n, *mean.shape), generator=generator, device=device, dtype=torch.float64)
            return (mean + std * z).float()
        u = torch.rand((n, *mean.shape), generator=generator, device=device, dtype=torch.float64)
        low, high = self._cdf_at_walls(mean.device)
        return self.box.clamp((mean + std * torch.special.ndtri(low + (high - low) * u)).float())

    def _standardized(self, x: Tensor) -> Tensor:
        return (x.double() - self.mean.to(x.device)) / self.std.to(x.device)

    def _cdf_at_walls(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, std = self.mean.to(device), self.std.to(device)
        if self.box is None:
            return torch.zeros_like(mean), torch.ones_like(mean)
        return torch.special.ndtr((self.box.low - mean) / std), torch.special.ndtr((self.box.high - mean) / std)


def checked_proposal(proposal: Density | None, support: Support) -> Density:
    """The density at which annealing starts: ``proposal``, or the support's reference density.

    Raises:
        ValueError: The proposal has infinite mass, or its domain is not that of the support.
    """
    proposal = support if proposal is None else proposal
    if isinstance(proposal, Support) and proposal.log_mass == math.inf:
        raise infinite_mass(proposal)
    if _domain(proposal) != _domain(support):
        box = isinstance(support, Box)
        remedy = f"Normal.fit(data, box={support})" if box else "Normal.fit(data), whose domain is R^D"
        raise ValueError(
            f"'proposal' should have the domain of the support, {_describe(support)}, got {type(proposal).__name__} on "
            f"{_describe(proposal)}. Use {remedy}."
        )
    return proposal


def _domain(density: Density) -> tuple[bool, float, float]:
    """Whether the domain is discrete, and its lower and upper walls."""
    if isinstance(density, Binary):
        return True, 0.0, 1.0
    box = density if isinstance(density, Box) else density.box
    return (False, box.low, box.high) if isinstance(box, Box) else (False, -math.inf, math.inf)


def _describe(density: Density) -> str:
    discrete, low, high = _domain(density)
    if discrete:
        return "binary units"
    return "R^D" if low == -math.inf else f"the box [{low:g}, {high:g}]"
