"""Whether two samples have the same distribution: mean energies, shares of classes, and a classifier between them."""

import math

import torch
from torch import Tensor

from ebm_lightning.rng import make_generator


def energy_gap(energy: Tensor, other: Tensor, log_weights: Tensor) -> tuple[float, float]:
    """Mean energy of a sample minus that of a weighted sample, and the standard error, in nats.

    Arguments:
        energy: Energies of independent draws, shape (N,).
        other: Energies of weighted draws, shape (M,).
        log_weights: Their log weights, shape (M,).
    """
    weights = log_weights.double().softmax(0)
    mean = (weights * other).sum()
    variance = (weights.square() * (other - mean).square()).sum()
    error = math.sqrt(float(energy.double().var() / len(energy) + variance))
    return float(energy.double().mean() - mean), error


def class_distance(log_p_y: Tensor, prior: Tensor) -> tuple[float, float]:
    """Total variation distance of the shares of classes from ``prior``, and what sampling alone gives on average.

    Arguments:
        log_p_y: log p(y|x) of independent draws, shape (N, K).
        prior: Z_y / Z, shape (K,).
    """
    share = log_p_y.double().exp()
    noise = share.std(0) / math.sqrt(len(share)) * math.sqrt(2 / math.pi)  # mean absolute value of a normal error
    return 0.5 * float((share.mean(0) - prior).abs().sum()), 0.5 * float(noise.sum())


def two_sample_accuracy(
    a: Tensor, b: Tensor, log_weights: Tensor | None = None, *, seed: int = 0
) -> tuple[float, float]:
    """Accuracy on held-out rows of a logistic regression that tells ``a`` from ``b``, and its error where it is 1/2.

    The features are standardized, with their squares, and regularized. Half of the rows of each sample train it. The
    two samples count equally, and the rows of ``b`` by their weights: an accuracy is the mean of the two samples'.

    References:
        Lopez-Paz & Oquab, Revisiting classifier two-sample tests, 2017. https://arxiv.org/abs/1610.06545

    Arguments:
        a: Independent draws, shape (N, D), at least 2.
        b: Other draws, shape (M, D), at least 2.
        log_weights: Log weights of ``b``, shape (M,); equal by default.
        seed: Seed of the split.
    """
    generator = make_generator(seed, "two samples")
    of_a, of_b = (torch.randperm(len(x), generator=generator) for x in (a, b))
    log_w = torch.zeros(len(b)) if log_weights is None else log_weights.cpu()
    x = torch.cat([a.double().cpu()[of_a], b.double().cpu()[of_b]])
    y = torch.arange(2).repeat_interleave(torch.tensor([len(a), len(b)])).double()
    log_w = torch.cat([torch.zeros(len(a), dtype=torch.float64), log_w.double()[of_b]])
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-12)
    x = torch.cat([x, (x.square() - 1) / math.sqrt(2)], 1)
    train = torch.cat([torch.arange(len(a)) < len(a) // 2, torch.arange(len(b)) < len(b) // 2])
    weights = _logistic_regression(x[train], y[train], _shares(log_w[train], y[train]) * train.sum())
    share = _shares(log_w[~train], y[~train])
    accuracy = float((share * ((x[~train] @ weights > 0).double() == y[~train])).sum())
    return min(accuracy, 1.0), 0.5 * math.sqrt(float(share.square().sum()))


def _shares(log_w: Tensor, y: Tensor) -> Tensor:
    """Weights that sum to 1/2 in each of the two samples, shape (N,)."""
    of_a, of_b = (log_w.masked_fill(y != sample, -math.inf).softmax(0) for sample in (0, 1))
    return (of_a + of_b) / 2


def _logistic_regression(x: Tensor, y: Tensor, w: Tensor, iterations: int = 20) -> Tensor:
    """Weights (D,) by Newton's method, with a normal prior of variance 1 / D. Row i counts ``w[i]`` times."""
    size = x.shape[1]
    weights, prior = x.new_zeros(size), torch.eye(size, dtype=x.dtype) * size
    for _ in range(iterations):
        p = torch.sigmoid(x @ weights)
        gradient = x.T @ (w * (p - y)) + prior @ weights
        hessian = x.T @ (x * (w * p * (1 - p))[:, None]) + prior
        weights = weights - torch.linalg.solve(hessian, gradient)
    return weights
