"""The corners of the unit cube."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ebm_lightning.checks import check_shape
from ebm_lightning.supports.base import Support
from ebm_lightning.supports.density import device_of


@dataclass(frozen=True)
class Binary(Support):
    r"""The corners {0, 1}^D of the unit cube, each with weight 1.

    .. math:: q(x) = 1 \text{ for } x \in \{0, 1\}^D, \text{ else } 0

    The domain is discrete, so gradient-based kernels raise an error. Use :class:`~ebm_lightning.samplers.BlockGibbs`.

    Arguments:
        shape: Shape of one x.
        probabilities: Also accept data in [0, 1]: each value is the probability that a unit is 1, in place of a sample
            of that unit. Larochelle & Bengio (2008) treat gray pixels in this way. The model is then not a density of
            gray images.
    """

    shape: tuple[int, ...]
    probabilities: bool = False
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", check_shape("shape", self.shape))

    @property
    def constant(self) -> bool:
        return True

    @property
    def log_mass(self) -> float:
        return math.prod(self.shape) * math.log(2)

    def contains(self, x: Tensor) -> Tensor:
        """Whether each row of ``x`` is in the domain, shape (N,), bool."""
        inside = (x >= 0) & (x <= 1) if self.probabilities else (x == 0) | (x == 1)
        return inside.flatten(1).all(1)

    def log_q(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x)).masked_fill(~self.contains(x), -math.inf)

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        u = torch.rand((n, *self.shape), generator=generator, device=device_of(generator, device))
        return (u < 0.5).float()

    def reflect(self, x: Tensor) -> Tensor:
        raise ValueError(
            "'sampler' should be BlockGibbs on Binary, which is discrete, got a kernel that moves continuously. "
            "Use BlockGibbs(), rbm_ais for log Z, or a Box for continuous data."
        )

    clamp = reflect

    def check(self, x: Tensor, name: str = "x") -> None:
        super().check(x, name)
        if not self.contains(x).all():
            low, high = (v.item() for v in torch.aminmax(x.detach()))
            wanted = "in [0, 1]" if self.probabilities else "0 or 1"
            raise ValueError(
                f"'{name}' should be {wanted}, got values in [{low:.4g}, {high:.4g}]. {_binarize(low, high)}"
            )


def _binarize(low: float, high: float) -> str:
    if low >= 0 and high <= 1:
        return (
            "These look like gray pixels: draw a new torch.bernoulli(x) for each batch, or use the values as "
            "probabilities with Binary(shape, probabilities=True)."
        )
    return "Scale the data to [0, 1] and draw torch.bernoulli(x), or use Gaussian(mean, std, shape) for real numbers."
