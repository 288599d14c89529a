"""All of R^D, whose mass is infinite."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm_lightning.supports.base import Support


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
