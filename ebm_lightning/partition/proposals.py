"""Proposal densities, at which annealing starts."""

import math
from typing import Any

import torch
from torch import Tensor

from ebm_lightning.checks import check_number
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Binary, Box, Density, Support
from ebm_lightning.supports.base import infinite_mass

CHECKED_SAMPLES = 200


class Normal(Density):
    r"""A normal density with independent components, truncated to a box if one is given.

    .. math:: q_0(x) = \prod_d \frac{N(x_d; mean_d, std_d^2)}{\Phi(b_d) - \Phi(a_d)}

    It should be wide enough to cover the model. More temperatures do not correct a proposal that is too narrow: the
    weights look fine although most of the mass was never visited. As the proposal of log Z on a box it is truncated to
    that box, so ``box`` may be left out.

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
        """Match the mean and standard deviation of ``data``, shape (N, *shape), with N of at least 2.

        Arguments:
            data: Training data, or the chains of a replay buffer.
            box: Truncates the density to its walls.
            floor: Smallest standard deviation, in units of x, positive.

        Raises:
            ValueError: Fewer than 2 rows, values that are not finite, data outside the box, or ``floor`` not positive.
        """
        check_number("floor", floor, above=0)
        if len(data) < 2 or not torch.isfinite(data).all():
            raise ValueError(f"'data' should be at least 2 finite rows, got shape {tuple(data.shape)} or NaN values.")
        if box is not None:
            box.check(data, "data")
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

    A :class:`Normal` on R^D with its mean inside a box is truncated to it, so that ``Normal.fit(data)`` serves on every
    support. Other densities have to be on the support's domain. A density that vanishes at a wall is accepted, but log
    Z can then be too low without any sign in the diagnostics, since chains start near the wall too rarely.

    Raises:
        ValueError: The proposal is not a density, has infinite mass, or its domain is not that of the support.
    """
    proposal = support if proposal is None else proposal
    if not isinstance(proposal, Density):
        raise ValueError(f"'proposal' should be a Density such as Normal(mean, std) or Box, got {_name(proposal)}.")
    if isinstance(proposal, Support) and proposal.log_mass == math.inf:
        raise infinite_mass(proposal)
    if type(proposal) is Normal and proposal.box is None and isinstance(support, Box):
        return _truncated(proposal, support)
    if not _same_domain(proposal, support):
        box = isinstance(support, Box)
        remedy = f"Normal.fit(data, box={support})" if box else "Normal.fit(data), whose domain is R^D"
        raise ValueError(
            f"'proposal' should have the domain of the support, {_describe(support)}, got {type(proposal).__name__} on "
            f"{_describe(proposal)}. Use {remedy}."
        )
    return proposal


def check_samples(proposal: Density, support: Support, device: torch.device | str) -> Tensor:
    """A few hundred samples of the proposal, shape (N, *shape), after a check that they are in the support.

    Draws from a separate stream, so that the numbers of a run do not change.

    Raises:
        ValueError: Samples of another shape, NaN or infinite values, samples outside the support, or samples at which
            ``log_prob`` is not finite.
    """
    x = proposal.sample(CHECKED_SAMPLES, generator=make_generator(0, "proposal check", device=device))
    wanted = "*shape" if support.shape is None else ", ".join(map(str, support.shape))
    if support.shape is not None and x.shape != (CHECKED_SAMPLES, *support.shape):
        fault = f"shape {tuple(x.shape)}"
    elif not torch.is_floating_point(x) or not torch.isfinite(x).all():
        fault = f"{x.dtype} samples with NaN or infinite values" if torch.is_floating_point(x) else f"{x.dtype} samples"
    elif isinstance(support, Box) and not support.contains(x).all():
        fault = f"samples between {float(x.min()):.4g} and {float(x.max()):.4g}"
    else:
        return _checked_log_prob(proposal, x)
    raise ValueError(
        f"'proposal' should draw samples of shape (N, {wanted}) inside {_describe(support)}, got {fault} from "
        f"{type(proposal).__name__}. Use the mean and std of data in the support: Normal.fit(data)."
    )


def _same_domain(density: Density, other: Density) -> bool:
    """Whether two densities have the same domain: both discrete or not, and the same walls."""
    return _domain(density) == _domain(other)


def _truncated(normal: Normal, box: Box) -> Normal:
    if normal.mean.shape == box.shape and not box.contains(normal.mean[None]).all():
        low, high = (float(value) for value in torch.aminmax(normal.mean))
        raise ValueError(
            f"'proposal' should have its mean in the box [{box.low:g}, {box.high:g}], got values between {low:.4g} and "
            f"{high:.4g}. Fit it to data scaled to the box, or widen the box."
        )
    return Normal(normal.mean, normal.std, box)


def _checked_log_prob(proposal: Density, x: Tensor) -> Tensor:
    with torch.no_grad():
        log_p = proposal.log_prob(x)
    if log_p.shape != x.shape[:1] or not log_p.isfinite().all():
        raise ValueError(
            f"'proposal' should have a finite log_prob of shape ({len(x)},) at its {len(x)} samples, got shape "
            f"{tuple(log_p.shape)} with {int((~log_p.isfinite()).sum())} NaN or infinite values. Check its 'log_prob'."
        )
    return x


def _name(value: Any) -> str:
    name = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
    return f"the class {value.__name__}" if isinstance(value, type) else name


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
