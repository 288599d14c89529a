"""Mean and covariance of weighted points, regularized so that few points per dimension suffice."""

import math

import torch
from torch import Tensor

from ebm_lightning.samplers.preconditioner import TurnedStep

MAX_DIMENSIONS = 1024  # only variances above
DENSE = 4  # points per dimension from which small eigenvalues of their covariance are meaningful
ROUNDS = 10


def mean_and_factor(
    x: Tensor, log_w: Tensor | None = None, step: Tensor | TurnedStep | None = None
) -> tuple[Tensor, Tensor]:
    r"""Mean of weighted points, and the lower triangular factor L of their covariance L L^T; both float64.

    With coordinates z = P^-1 (x - mean), eigenvalues of the covariance of z are replaced by their mean where n points
    of a round Gaussian have as different ones, between (1 - sqrt(D / n))^2 and (1 + sqrt(D / n))^2. Where P fits,
    as that of a pilot run does on a Gaussian, all are replaced, and the error does not grow with D.

    References:
        Donoho, Gavish & Johnstone, Optimal shrinkage of eigenvalues in the spiked covariance model, 2018.
        https://arxiv.org/abs/1311.0851

    Arguments:
        x: Points, shape (N, *shape).
        log_w: Log weight of each, shape (N,); equal by default.
        step: The preconditioner P, as a step of an exact kernel. By default the standard deviation of each component.

    Returns:
        The mean, shape (D,), and L, shape (D, D); above 1024 dimensions, the standard deviations, shape (D,).
    """
    rows = x.detach().flatten(1).double()
    w = (torch.zeros(len(x)) if log_w is None else log_w).double().to(x.device).softmax(0)
    mean, effective = w @ rows, float(1 / w.square().sum())
    centered = (rows - mean) * (w / max(1 - 1 / effective, 0.5)).sqrt()[:, None]
    std = centered.square().sum(0).clamp(min=1e-12).sqrt()
    if len(mean) > MAX_DIMENSIONS:
        return mean, std
    p = _matrix(std.view(x.shape[1:]) if step is None else step, x[0])
    z = torch.linalg.solve(p, centered.T)
    values, vectors = torch.linalg.eigh(z @ z.T)
    root = p @ vectors * _without_noise(values, effective).sqrt()
    return mean, torch.linalg.cholesky(root @ root.T)


def _matrix(step: Tensor | TurnedStep, point: Tensor) -> Tensor:
    """The preconditioner as a matrix, shape (D, D), float64."""
    if isinstance(step, Tensor):
        return step.double().to(point.device).expand(point.shape).flatten().diag()
    eye = torch.eye(point.numel(), device=point.device, dtype=step.step.dtype)
    return step.displacement(eye.view(-1, *point.shape)).flatten(1).T.double()


def _without_noise(values: Tensor, points: float) -> Tensor:
    """Eigenvalues, shape (D,), ascending, of which those that noise explains are replaced by their mean."""
    ratio = (len(values) / points) ** 0.5
    high = (1 + ratio) ** 2
    low = (1 - ratio) ** 2 if len(values) * DENSE <= points else -math.inf
    noise = torch.ones_like(values, dtype=torch.bool)
    for _ in range(ROUNDS):
        middle = values[noise].mean() if noise.any() else values.median()
        noise = (values <= high * middle) & (values >= low * middle)
    kept = torch.where(noise, middle, values)
    return kept.clamp(min=max(1e-10 * float(kept.max()), 1e-12))
