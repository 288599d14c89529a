"""The Pareto shape of importance weights: whether their mean is carried by enough of them to be trusted."""

import math

import torch
from torch import Tensor


def pareto_shape(log_w: Tensor) -> Tensor:
    r"""Shape k of a generalized Pareto distribution fitted to the largest weights of each column, shape (K,), float64.

    The mean of weights with k below 0.5 has a finite variance, and above 1 an infinite mean. Unlike the effective
    sample size, k does not improve when the largest weights have not been drawn.

    References:
        Zhang & Stephens, A new and efficient estimation method for the generalized Pareto distribution, 2009.
        Vehtari et al., Pareto smoothed importance sampling, 2024, app. C. https://arxiv.org/abs/1507.02646

    Arguments:
        log_w: Log weights, shape (n, K), n at least 20.
    """
    tail = min(len(log_w) // 5, math.ceil(3 * len(log_w) ** 0.5))
    largest = log_w.double().topk(tail + 1, dim=0).values.flip(0)
    weights = (largest - largest[-1]).exp()
    x = (weights[1:] - weights[:1]).clamp(min=1e-300)  # exceedances over the threshold, increasing
    grid = 30 + int(tail**0.5)
    j = torch.arange(1, grid + 1, dtype=x.dtype, device=x.device)[:, None]
    theta = 1 / x[-1] + (1 - (grid / (j - 0.5)).sqrt()) / (3 * x[int(tail / 4 + 0.5) - 1])
    k = torch.log1p(-theta[:, None] * x).mean(1)
    log_likelihood = tail * ((-theta / k).log() - k - 1)
    mean_theta = (theta * log_likelihood.softmax(0)).sum(0)
    shape = torch.log1p(-mean_theta * x).mean(0)
    shape = (tail * shape + 5) / (tail + 10)  # shrunk towards 0.5, as in the reference
    return shape.where(x[-1] > 1e-12, -math.inf)  # equal weights


def largest_reliable_shape(n: int) -> float:
    """The largest k with which the mean of ``n`` weights is reliable: min(0.7, 1 - 1 / log10(n)) (Vehtari et al.)."""
    return min(0.7, 1 - 1 / math.log10(n))
