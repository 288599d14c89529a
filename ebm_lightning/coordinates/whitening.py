"""Affine coordinates in which the data have mean 0 and covariance about 1."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ebm_lightning.checks import check_number
from ebm_lightning.coordinates.base import Coordinates
from ebm_lightning.supports import Euclidean, Gaussian


class Whitening(Coordinates):
    r"""The affine map u = C^(-1/2) (x - m), with the mean m of the data and their shrunk covariance C.

    .. math:: C = (1 - \lambda) S + \lambda \, \text{diag}(S) + ridge \, I, \qquad q(x) = N(x; m, C)

    The root is symmetric (ZCA), which changes x as little as possible: whitened images still look like images, so that
    convolutions make sense. Fitted in one pass. Needs memory for 3 D^2 numbers, and D^3 operations.

    References:
        Kessy, Lewin & Strimmer, Optimal whitening and decorrelation, 2018. https://arxiv.org/abs/1512.00809
        Schaefer & Strimmer, A shrinkage approach to large-scale covariance matrix estimation, 2005, for the target.

    Arguments:
        shape: Shape of one x.
        shrinkage: lambda, from 0 (none) to 1 (no correlations). By default D / (D + N) for N data.
        ridge: Variance that is added to each component, as a fraction of the mean variance. It bounds how far
            components that are constant are stretched.

    Raises:
        ValueError: ``shrinkage`` is outside [0, 1], or ``ridge`` is not positive.
    """

    mean: Tensor
    root: Tensor
    inverse: Tensor
    log_det: Tensor

    def __init__(self, shape: tuple[int, ...], *, shrinkage: float | None = None, ridge: float = 1e-4) -> None:
        super().__init__()
        check_number("shrinkage", shrinkage, at_least=0, at_most=1, optional=True)
        check_number("ridge", ridge, above=0)
        self.shape = tuple(shape)
        self.domain = Euclidean(self.shape)
        self.codomain = Gaussian(0.0, 1.0, self.shape)
        self.shrinkage = shrinkage
        self.ridge = ridge
        size = math.prod(self.shape)
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("root", torch.zeros(size, size, dtype=torch.float64))
        self.register_buffer("inverse", torch.zeros(size, size, dtype=torch.float64), persistent=False)
        self.register_buffer("log_det", torch.zeros((), dtype=torch.float64))

    @property
    def fitted(self) -> bool:
        return bool(self.root[0, 0] > 0)

    def forward(self, x: Tensor) -> Tensor:
        self.check_fitted()
        rows = (x.flatten(1).double() - self.mean) @ self.inverse
        return rows.reshape(x.shape).to(x.dtype)

    def inv(self, u: Tensor) -> Tensor:
        self.check_fitted()
        return (u.flatten(1).double() @ self.root + self.mean).reshape(u.shape).to(u.dtype)

    def log_abs_det_jacobian(self, x: Tensor, u: Tensor) -> Tensor:
        self.check_fitted()
        return -self.log_det.expand(len(x))

    def fit_batches(self, batches: Iterable[Tensor]) -> None:
        size = len(self.mean)
        count, mean, products = 0, torch.zeros_like(self.mean), torch.zeros_like(self.root)
        for x in batches:
            rows = x.flatten(1).to(mean)
            count += len(rows)
            # Welford's update for a batch: sums of squares about the mean do not lose digits when the mean is large.
            step = rows.mean(0) - mean
            mean += step * len(rows) / count
            centered = rows - rows.mean(0)
            products += centered.T @ centered + torch.outer(step, step) * (len(rows) * (count - len(rows)) / count)
        if count < 2:
            raise ValueError(f"'batches' should hold at least 2 data for Whitening, got {count}.")
        covariance = products / count
        shrinkage = size / (size + count) if self.shrinkage is None else self.shrinkage
        diagonal = covariance.diagonal()
        ridge = self.ridge * diagonal.mean().clamp(min=torch.finfo(torch.float64).tiny)
        covariance = (1 - shrinkage) * covariance + torch.diag(shrinkage * diagonal + ridge)
        values, vectors = torch.linalg.eigh(covariance)
        self.mean.copy_(mean)
        self.root.copy_((vectors * values.sqrt()) @ vectors.T)
        self.log_det.copy_(values.log().sum() / 2)
        self._invert()

    def _invert(self) -> None:
        self.inverse.copy_(torch.linalg.inv(self.root))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.fitted:
            self._invert()
