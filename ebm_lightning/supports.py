"""The domain of x: where a density lives, and the reference density q that makes its mass finite.

A joint energy model is p(x, y) = q(x) exp(f(x)[y]) / Z. The support states q, starts chains and keeps them inside.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

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


@dataclass(frozen=True)
class Box(Support):
    r"""The box [low, high]^D with Lebesgue measure: images, once scaled.

    .. math:: q(x) = 1 \text{ for } x \in [low, high]^D, \text{ else } 0

    Data must lie inside: energies outside are infinite.

    Arguments:
        low: Lower wall, in the units of x.
        high: Upper wall.
        shape: Shape of one x.

    Raises:
        ValueError: ``low`` is not below ``high``.
    """

    low: float
    high: float
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"'low' should be finite and below 'high', got low={self.low}, high={self.high}.")
        object.__setattr__(self, "shape", tuple(self.shape))

    @property
    def log_mass(self) -> float:
        return math.prod(self.shape) * math.log(self.high - self.low)

    def contains(self, x: Tensor) -> Tensor:
        """Which rows of ``x`` lie inside, shape (N,), bool."""
        return ((x >= self.low) & (x <= self.high)).flatten(1).all(1)

    def log_q(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=x.dtype, device=x.device).masked_fill(~self.contains(x), -math.inf)

    def sample(
        self, n: int, *, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        u = torch.rand((n, *self.shape), generator=generator, device=_device(generator, device))
        return self.clamp(self.low + (self.high - self.low) * u)

    def reflect(self, x: Tensor) -> Tensor:
        # By floor and in place: the remainder of floats is five times slower, with the same digits.
        width = self.high - self.low
        phase = x - self.low
        phase.sub_((phase / (2 * width)).floor_(), alpha=2 * width)
        mirrored = phase.sub_(width).abs_().neg_().add_(self.high)
        return mirrored.clamp_(self.low, self.high)  # mends the last bit of rounding only

    def bounce(self, x: Tensor) -> tuple[Tensor, Tensor]:
        walls_met = ((x - self.low) / (self.high - self.low)).floor_()
        odd = walls_met - 2 * (walls_met / 2).floor_()
        return self.reflect(x), 1 - 2 * odd

    def clamp(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)

    def check(self, x: Tensor, name: str = "x") -> None:
        super().check(x, name)
        smallest, largest = (v.item() for v in torch.aminmax(x.detach())) if x.numel() else (self.low, self.high)
        if smallest < self.low or largest > self.high:
            raise ValueError(
                f"'{name}' should be in the box [{self.low:g}, {self.high:g}], got values in "
                f"[{smallest:.4g}, {largest:.4g}]. {self._remedy(smallest, largest)}"
            )

    def _remedy(self, smallest: float, largest: float) -> str:
        target = f"[{self.low:g}, {self.high:g}]"
        shift = f"{'-' if self.low < 0 else '+'} {abs(self.low):g}"
        if smallest >= 0 and 1 < largest <= 255:
            return f"These look like 8-bit pixels: use x / 255 * {self.high - self.low:g} {shift}."
        if smallest >= 0 and largest <= 1:
            return f"These look like pixels in [0, 1]: use x * {self.high - self.low:g} {shift}."
        if smallest >= -2.2 and largest <= 2.7:
            return (
                f"These look like ImageNet-normalised pixels: map [0, 1] to {target} instead, and make the "
                "normalisation the first layer of the classifier."
            )
        return f"Scale the data to {target}, or widen the box."


@dataclass(frozen=True, eq=False)
class Gaussian(Support):
    r"""R^D with a normalised diagonal Gaussian reference: the classifier tilts it.

    .. math:: q(x) = \prod_d N(x_d; mean_d, std_d^2)

    Arguments:
        mean: Mean, a number or a tensor that broadcasts to ``shape``.
        std: Standard deviation, likewise, positive.
        shape: Shape of one x.

    Raises:
        ValueError: ``std`` is not positive.
    """

    mean: float | list[float] | Tensor
    std: float | list[float] | Tensor
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not (torch.as_tensor(self.std) > 0).all():
            raise ValueError(f"'std' should be positive, got {self.std}.")
        object.__setattr__(self, "shape", tuple(self.shape))

    @property
    def log_mass(self) -> float:
        return 0.0

    def log_q(self, x: Tensor) -> Tensor:
        constant = (torch.as_tensor(self.std).to(x).log() + 0.5 * math.log(2 * math.pi)).expand(self.shape).sum()
        return -0.5 * self.standardise(x).square().flatten(1).sum(1) - constant

    def sample(
        self, n: int, *, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        z = torch.randn((n, *self.shape), generator=generator, device=_device(generator, device))
        return self.destandardise(z)

    def standardise(self, x: Tensor) -> Tensor:
        """(x - mean) / std."""
        return (x - torch.as_tensor(self.mean).to(x)) / torch.as_tensor(self.std).to(x)

    def destandardise(self, z: Tensor) -> Tensor:
        """mean + std z."""
        return torch.as_tensor(self.mean).to(z) + torch.as_tensor(self.std).to(z) * z


@dataclass(frozen=True)
class Binary(Support):
    r"""The corners {0, 1}^D, each with weight 1.

    .. math:: q(x) = 1 \text{ for } x \in \{0, 1\}^D, \text{ else } 0

    Nothing lies between two corners, so chains move by Gibbs alone: kernels that follow a gradient are refused.

    Arguments:
        shape: Shape of one x.
        probabilities: Take data in [0, 1] too, each the probability of a unit that is on, in place of draws of it.
            That is what Larochelle & Bengio (2008) do with grey pixels; the density then is not one of images.
    """

    shape: tuple[int, ...]
    probabilities: bool = False
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))

    @property
    def log_mass(self) -> float:
        return math.prod(self.shape) * math.log(2)

    def contains(self, x: Tensor) -> Tensor:
        """Which rows of ``x`` lie in the domain, shape (N,), bool."""
        inside = (x >= 0) & (x <= 1) if self.probabilities else (x == 0) | (x == 1)
        return inside.flatten(1).all(1)

    def log_q(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=x.dtype, device=x.device).masked_fill(~self.contains(x), -math.inf)

    def sample(
        self, n: int, *, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        u = torch.rand((n, *self.shape), generator=generator, device=_device(generator, device))
        return (u < 0.5).float()

    def reflect(self, x: Tensor) -> Tensor:
        raise ValueError(
            "'sampler' should be BlockGibbs on Binary, whose points have nothing between them, got a kernel that moves "
            "by steps. Use BlockGibbs(), rbm_ais for log Z, or a Box for continuous data."
        )

    clamp = reflect

    def check(self, x: Tensor, name: str = "x") -> None:
        super().check(x, name)
        if not self.contains(x).all():
            low, high = (v.item() for v in torch.aminmax(x.detach()))
            wanted = "in [0, 1]" if self.probabilities else "0 or 1"
            raise ValueError(
                f"'{name}' should be {wanted}, got values in [{low:.4g}, {high:.4g}]. {_binarise(low, high)}"
            )


def _binarise(low: float, high: float) -> str:
    if low >= 0 and high <= 1:
        return (
            "These look like grey pixels: draw torch.bernoulli(x) anew for each batch, or take them as probabilities "
            "with Binary(shape, probabilities=True)."
        )
    return "Scale the data to [0, 1] and draw torch.bernoulli(x), or use Gaussian(mean, std, shape) for real numbers."


@dataclass(frozen=True)
class Euclidean(Support):
    """All of R^D with Lebesgue measure, whose mass is infinite.

    Energies, scores and chains work. Log Z does not, without a proposal: the logsumexp of a piecewise linear network
    grows along some direction, so it has no integral over R^D. Chains cannot start here by themselves.

    Arguments:
        shape: Shape of one x, or ``None`` to take any.
    """

    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.shape is not None:
            object.__setattr__(self, "shape", tuple(self.shape))

    @property
    def log_mass(self) -> float:
        return math.inf

    def log_q(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=x.dtype, device=x.device)

    def sample(
        self, n: int, *, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        raise ValueError(
            "'support' should have finite mass to draw from it, got Euclidean. Use Box or Gaussian, or start chains "
            "from data with DataInit."
        )


def _device(generator: torch.Generator | None, device: torch.device | str | None) -> torch.device | str | None:
    return generator.device if generator is not None and device is None else device
