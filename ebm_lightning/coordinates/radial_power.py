"""Coordinates in which the length of a vector matters less than its direction."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ebm_lightning.checks import check_number
from ebm_lightning.coordinates.base import Coordinates
from ebm_lightning.supports import Euclidean


class RadialPower(Coordinates):
    r"""The direction of x is kept, and its length is raised to a power between 0 and 1.

    .. math:: u = \frac{x}{|x|} |x|^p, \qquad \log \left| \det \frac{du}{dx} \right| = \log p + D (p - 1) \log |x|

    For the features of a classifier. Those of unusual inputs are often shorter, so that a density of x finds them
    likely, although their direction is rare. Detectors therefore divide features by their length, which is not
    invertible and leaves a surface on which there is no density. A small power is close to that and invertible. A
    density of u does not prefer short vectors. Nothing is fitted.

    References:
        Sun et al., Out-of-distribution detection with deep nearest neighbors, 2022, for the division by the length.
        https://arxiv.org/abs/2204.06507

    Arguments:
        shape: Shape of one x, with D components.
        power: p, in (0, 1]. 1 is the identity.

    Raises:
        ValueError: ``power`` is outside (0, 1].
    """

    def __init__(self, shape: tuple[int, ...], power: float = 0.2) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.power = check_number("power", power, above=0, at_most=1)
        self.domain = self.codomain = Euclidean(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        return x * self._to(x, self.power - 1)

    def inv(self, u: Tensor) -> Tensor:
        return u * self._to(u, 1 / self.power - 1)

    def log_abs_det_jacobian(self, x: Tensor, u: Tensor) -> Tensor:
        dimensions = math.prod(self.shape)
        return math.log(self.power) + dimensions * (self.power - 1) * _length(x.double()).flatten().log()

    @property
    def fitted(self) -> bool:
        return True

    def fit_batches(self, batches: Iterable[Tensor]) -> None:
        pass

    def _to(self, x: Tensor, exponent: float) -> Tensor:
        """The length of each x to a power, in float64, shape (N, 1, ..., 1), with the type of ``x``."""
        factor = _length(x.double()) ** exponent
        return factor.to(x.dtype).view(-1, *[1] * len(self.shape))


def _length(x: Tensor) -> Tensor:
    """|x|, shape (N, 1). 0, where no direction exists, counts as 1e-12."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1, keepdim=True).clamp(min=1e-12)
