"""What an island of chains returns, and the variance of log Z over the islands."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ebm_lightning.partition.log_z import log_mean_exp, relative_ess


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
    """

    log_weights: Tensor
    log_p_y: Tensor | None
    ess: Tensor
    acceptance: Tensor
    ends: Tensor
    rounding: float = 0.0
    origin: Tensor | None = None
    resamplings: int = 0


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
