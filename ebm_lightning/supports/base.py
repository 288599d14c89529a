"""What every domain of x offers.

A joint energy model is p(x, y) = q(x) exp(f(x)[y]) / Z. The support states q, starts chains and keeps them inside.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Support(ABC):
    """A domain with a reference density q on it.

    Attributes:
        shape: Shape of one x, without the batch; ``None`` where any shape is taken.
        log_mass: Log of the integral of q, in nats.
    """

    shape: tuple[int, ...] | None

    @property
    @abstractmethod
    def log_mass(self) -> float: ...

    @abstractmethod
    def log_q(self, x: Tensor) -> Tensor:
        """log q(x), shape (N,), in nats."""

    @abstractmethod
    def sample(
        self, n: int, *, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """``n`` draws from q / mass, shape (n, *shape), float32, on the generator's device if it has one."""

    def reflect(self, x: Tensor) -> Tensor:
        """``x`` folded back into the domain as by mirrors on its walls; volume-preserving, so exact kernels use it."""
        return x

    def bounce(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` reflected, and the sign by which each component of a momentum turns, broadcastable to x."""
        return self.reflect(x), torch.ones((), dtype=x.dtype, device=x.device)

    def clamp(self, x: Tensor) -> Tensor:
        """``x`` moved to the nearest point of the domain. Mass piles up on the walls: for training presets only."""
        return x

    def check(self, x: Tensor, name: str = "x") -> None:
        """Raises ValueError, with the remedy, unless ``x`` is a finite batch of this shape inside the domain."""
        if not torch.is_floating_point(x):
            raise ValueError(f"'{name}' should be a floating point tensor, got {x.dtype}. Scale it and call .float().")
        if self.shape is not None and x.shape[1:] != self.shape:
            raise ValueError(
                f"'{name}' should have shape (N, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}. "
                "Resize or convert the data, or give the support this shape."
            )
        if not torch.isfinite(x).all():
            raise ValueError(f"'{name}' should be finite, got {int((~x.isfinite()).sum())} NaN or infinite values.")


def log_indicator(inside: Tensor, dtype: torch.dtype) -> Tensor:
    """Log of the density that is 1 in the rows that are ``inside`` and 0 in the others, shape (N,)."""
    return torch.zeros(inside.shape, dtype=dtype, device=inside.device).masked_fill(~inside, -math.inf)


def device_of(generator: torch.Generator | None, device: torch.device | str | None) -> torch.device | str | None:
    return generator.device if generator is not None and device is None else device
