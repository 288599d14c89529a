"""What an island of chains returns, and the variance of log Z over the islands."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm_lightning.partition.log_z import log_mean_exp, relative_ess

JITTER, SMALLEST = 1e-9, 1e-30  # of a covariance that may be singular


@dataclass(frozen=True)
class Island:
    """Result of one block of chains. Ranks exchange these.

    Attributes:
        log_weights: Shape (n,), float64. The log of their mean is the island's log Z.
        log_p_y: log p(y|x) at the end of each chain, shape (n, K), float64; None for an energy without classes.
        ess: Relative effective sample size along the path, before resampling, shape (T,).
        acceptance: Fraction of accepted moves along the path, shape (T,).
        ends: Where the chains ended, shape (n, *shape).
        rounding: Rounding error of their energies, in nats.
        origin: Index of the chain at beta = 0 from which each chain descends by resampling, shape (n,). None if there
            was no resampling.
        resamplings: How often chains were resampled.
        lineages: Sum of the log weights of each chain and its ancestors from beta = 0 to each of S points of the path,
            shape (S, n), float64; the last is the end. None if they were not kept.
    """

    log_weights: Tensor
    log_p_y: Tensor | None
    ess: Tensor
    acceptance: Tensor
    ends: Tensor
    rounding: float = 0.0
    origin: Tensor | None = None
    resamplings: int = 0
    lineages: Tensor | None = None


def relative_variance(parts: list[Tensor], islands: list[Island]) -> Tensor:
    """Variance of an estimate of Z relative to Z^2: the larger of :func:`two_variances`, shape (K,), float64."""
    return torch.maximum(*two_variances(parts, islands))


def two_variances(parts: list[Tensor], islands: list[Island]) -> tuple[Tensor, Tensor]:
    r"""Two estimates of the variance of an estimate of Z relative to Z^2, each of shape (K,), float64.

    The first is the spread over the islands. From 10 of them its own relative error is a half, and an island that
    missed a mode makes both Z and the spread too small. The second groups chains of an island of n by their common
    origin at beta = 0, after R resamplings:

    .. math:: V = Z^2 - \left(\frac{n}{n - 1}\right)^{R + 1} \sum_{e \ne e'} g_e g_{e'}, \qquad g_e = \sum_{i
        \text{ from } e} w_i

    It has more terms, but too few origins are left where resampling was frequent.

    References:
        Lee & Whiteley, Variance estimation in the particle filter, 2018, for the second.
        https://arxiv.org/abs/1509.00394

    Arguments:
        parts: What each chain of each island contributes to Z / Z = 1, shapes (n, K).
        islands: The islands.
    """
    totals = torch.stack([part.sum(0) for part in parts])
    sizes = torch.tensor([len(part) for part in parts], dtype=torch.float64)[:, None] / sum(map(len, parts))
    spread = (totals - sizes).square().sum(0) * len(parts) / (len(parts) - 1)
    by_origin = [variance_by_origin(part, i.origin, i.resamplings) for part, i in zip(parts, islands, strict=True)]
    return spread, sum(by_origin, torch.zeros_like(spread))


def typical_ess(islands: list[Island]) -> float:
    """Relative effective sample size from the mean of :func:`two_variances`, which is less noisy than the larger one.

    Chains without resampling are independent, so it follows from their weights.
    """
    log_weights = torch.cat([island.log_weights for island in islands])
    if not any(island.resamplings for island in islands):
        return relative_ess(log_weights)
    log_z = log_mean_exp(log_weights)
    parts = [(island.log_weights - log_z).exp()[:, None] / len(log_weights) for island in islands]
    variance = sum(float(v.clamp(min=0)) for v in two_variances(parts, islands)) / 2
    return 1 / (1 + len(log_weights) * variance)


def variance_by_origin(part: Tensor, origin: Tensor | None, resamplings: int) -> Tensor:
    """The second of :func:`two_variances` for one island, shape (K,).

    Arguments:
        part: What each chain contributes to Z / Z = 1, shape (n, K).
        origin: Index of the first chain from which each descends, shape (n,). None without resampling.
        resamplings: How often chains were resampled.
    """
    origin = torch.arange(len(part)) if origin is None else origin
    total = part.sum(0)
    of_origins = torch.zeros_like(part).index_add(0, origin, part)
    different = total.square() - of_origins.square().sum(0)
    n = len(part)
    return total.square() - (n / (n - 1)) ** (resamplings + 1) * different


def log_normal_variance(islands: list[Island]) -> float:
    r"""Variance of an estimate of Z relative to Z^2 if log weights are normal.

    An estimate that lacks the few largest weights is too low, and so is the variance of its weights. The covariance of
    log weights depends less on the largest ones. The path is divided into K = R + 1 equal parts for R resamplings. With
    the log weights :math:`a_1, \dots, a_K` of a chain and its ancestors in each part,

    .. math:: V = \frac{1}{N} \sum_k (e^{v_k} - 1), \qquad
        v_k = \mathrm{Var}\, \mathbb{E}[\textstyle\sum_j a_j | a_1, \dots, a_k]
            - \mathrm{Var}\, \mathbb{E}[\textstyle\sum_j a_j | a_1, \dots, a_{k - 1}]

    Parts that are independent, because chains mix, count separately. Where chains stay in the mode of their ancestors,
    all log weights count together, and resampling does not help. If log weights are normal, their covariance does not
    depend on the power of the weights under which it is taken. Under the square root, no single chain decides it, and
    chains of negligible weight do not count.

    Arguments:
        islands: With lineages.
    """
    lineages = torch.cat([island.lineages for island in islands if island.lineages is not None], 1)
    log_w = torch.cat([island.log_weights for island in islands])
    alive = log_w > -math.inf
    sums, w = lineages[:, alive], (log_w[alive] / 2).softmax(0)
    parts = 1 + round(sum(island.resamplings for island in islands) / len(islands))
    ends = torch.linspace(0, len(sums), min(parts, len(sums)) + 1).round().long()[1:] - 1
    log_weights = torch.diff(sums[ends], dim=0, prepend=torch.zeros_like(sums[:1]))
    centered = log_weights - (log_weights @ w)[:, None]
    covariance = (centered * w) @ centered.T
    regular = covariance + (JITTER * covariance.trace() + SMALLEST) * torch.eye(len(covariance), dtype=torch.float64)
    factor = torch.linalg.cholesky(regular)
    explained = torch.linalg.solve_triangular(factor, covariance.sum(1, keepdim=True), upper=False).square()
    return float(explained.expm1().sum()) / len(log_w)
