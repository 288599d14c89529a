"""The map from [0, 1] to normal scores, for compositions such as a Gaussian copula."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ebm_lightning.coordinates.base import Coordinates
from ebm_lightning.supports import Box, Gaussian


class NormalScores(Coordinates):
    r"""The inverse of the standard normal distribution function, component by component.

    .. math:: u_d = \Phi^{-1}(x_d)

    It maps the unit box to R^D, and its uniform density to the standard normal. Nothing is fitted. The outer 1e-12 of
    the box are treated as the point where they begin.

    ``Compose([Quantiles(box, 256), NormalScores(shape), Whitening(shape)])`` has the reference density of a Gaussian
    copula: the histogram of each component, and the correlations of the normal scores.

    Arguments:
        shape: Shape of one x.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.domain = Box(0.0, 1.0, self.shape)
        self.codomain = Gaussian(0.0, 1.0, self.shape)

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.ndtri(x.double().clamp(1e-12, 1 - 1e-12)).to(x.dtype)

    def inv(self, u: Tensor) -> Tensor:
        return torch.special.ndtr(u.double()).to(u.dtype)

    def log_abs_det_jacobian(self, x: Tensor, u: Tensor) -> Tensor:
        squares = u.double().square().flatten(1)
        return 0.5 * squares.sum(1) + 0.5 * math.log(2 * math.pi) * squares.shape[1]

    @property
    def fitted(self) -> bool:
        return True

    def fit_batches(self, batches: Iterable[Tensor]) -> None:
        pass
