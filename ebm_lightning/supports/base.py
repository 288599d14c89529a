"""Base class of supports: a domain of x with a reference density q on it.

A joint energy model is p(x, y) = q(x) exp(f(x)[y]) / Z. The support defines q and keeps chains inside the domain.
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from ebm_lightning.supports.density import Density, zero_gradient


class Support(Density):
    """A domain of x with a reference density q on it. If q has finite mass, q / mass is a :class:`Density`.

    Attributes:
        shape: Shape of one x, without the batch dimension. None accepts any shape.
        log_mass: Log of the integral of q, in nats.
    """

    shape: tuple[int, ...] | None

    @property
    @abstractmethod
    def log_mass(self) -> float: ...

    @abstractmethod
    def log_q(self, x: Tensor) -> Tensor:
        """log q(x), shape (N,), in nats. -inf outside the domain."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log of the normalized q, shape (N,), float64, in nats.

        Raises:
            ValueError: q has infinite mass.
        """
        if self.log_mass == math.inf:
            raise infinite_mass(self)
        return self.log_q(x).double() - self.log_mass

    def log_prob_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As for :class:`Density`. If q is constant, ``x`` is assumed to be in the domain, which chains never leave."""
        if not self.constant:
            return super().log_prob_and_gradient(x)
        return torch.full((len(x),), -self.log_mass, dtype=torch.float64, device=x.device), zero_gradient(x)

    def reflect(self, x: Tensor) -> Tensor:
        """``x`` reflected at the walls of the domain. Reflection preserves volume, so exact kernels can use it."""
        return x

    def bounce(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` reflected, and the factor 1 or -1 for each component of the momentum, broadcastable to ``x``."""
        return self.reflect(x), torch.ones((), dtype=x.dtype, device=x.device)

    def contains(self, x: Tensor) -> Tensor:
        """Whether each row of ``x`` is inside the walls of the domain, shape (N,), bool."""
        return torch.ones(len(x), dtype=torch.bool, device=x.device)

    def clamp(self, x: Tensor) -> Tensor:
        """The nearest point of the domain. Exact kernels do not use it, because mass accumulates on the walls."""
        return x

    def check(self, x: Tensor, name: str = "x") -> None:
        """Check that ``x`` is a finite batch of the right shape inside the domain.

        Raises:
            ValueError: It is not. The message contains a remedy.
        """
        if not torch.is_floating_point(x):
            raise ValueError(f"'{name}' should be a floating point tensor, got {x.dtype}. Scale it and call .float().")
        if self.shape is not None and x.shape[1:] != self.shape:
            raise ValueError(
                f"'{name}' should have shape (N, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}. "
                "Resize or convert the data, or give the support this shape."
            )
        if not all_finite(x):
            raise ValueError(f"'{name}' should be finite, got {int((~x.isfinite()).sum())} NaN or infinite values.")


def all_finite(x: Tensor) -> bool:
    """Whether no value is NaN or infinite. The extremes show it, ten times as fast as ``x.isfinite().all()``."""
    return not x.numel() or all(math.isfinite(extreme) for extreme in torch.aminmax(x.detach()))


def infinite_mass(support: Support) -> ValueError:
    """The error for a reference density that cannot be normalized."""
    return ValueError(
        f"'support' should have finite mass, got {type(support).__name__}. Use a Box or Gaussian support, give it a "
        "'reference', or pass a 'proposal' such as Normal.fit(data) for log Z, or DataInit() for chains."
    )
