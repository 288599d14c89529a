"""The corners of the unit cube."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ebm_lightning.supports.base import Support, device_of, log_indicator


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
        return log_indicator(self.contains(x), x.dtype)

    def sample(
        self, n: int, *, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        u = torch.rand((n, *self.shape), generator=generator, device=device_of(generator, device))
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
