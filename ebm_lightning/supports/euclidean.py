"""R^D with Lebesgue measure or a reference density."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm_lightning.checks import check_kind, check_shape
from ebm_lightning.supports.base import Support, infinite_mass
from ebm_lightning.supports.density import Density


@dataclass(frozen=True)
class Euclidean(Support):
    """R^D with Lebesgue measure, which has infinite mass, unless a reference density is given.

    Without a reference, energies, scores and chains work, but chains need an initial distribution and log Z needs a
    proposal. The integral behind log Z may not exist: the logsumexp of a piecewise linear network grows along some
    direction of R^D.

    Arguments:
        shape: Shape of one x. None accepts any shape.
        reference: A density on R^D that replaces the flat q, such as ``Normal.fit(data)``. The mass is then 1.

    Raises:
        ValueError: ``reference`` is truncated to a box.
    """

    shape: tuple[int, ...] | None = None
    reference: Density | None = None

    def __post_init__(self) -> None:
        if self.shape is not None:
            object.__setattr__(self, "shape", check_shape("shape", self.shape))
        check_kind("reference", self.reference, Density, optional=True)
        if self.reference is not None and self.reference.box is not None:
            raise ValueError(
                f"'reference' should be a density on R^D, got {type(self.reference).__name__} with "
                f"box={self.reference.box}. Use Normal(mean, std), or Box(low, high, shape, reference)."
            )

    @property
    def log_mass(self) -> float:
        return 0.0 if self.reference else math.inf

    def log_q(self, x: Tensor) -> Tensor:
        if self.reference is not None:
            return self.reference.log_prob(x).to(x.dtype)
        return torch.zeros(len(x), dtype=x.dtype, device=x.device)

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        if self.reference is None:
            raise infinite_mass(self)
        return self.reference.sample(n, labels=labels, generator=generator, device=device)
