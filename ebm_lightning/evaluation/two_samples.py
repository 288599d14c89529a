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


def two_sample_accuracy(a: Tensor, b: Tensor, seed: int = 0) -> tuple[float, float]:
    """Accuracy on held-out rows of a logistic regression that tells ``a`` from ``b``, and its error where it is 1/2.

    The features are standardized, with their squares, and regularized. Half of the rows of each sample train it.

    References:
        Lopez-Paz & Oquab, Revisiting classifier two-sample tests, 2017. https://arxiv.org/abs/1610.06545

    Arguments:
        a: Draws, shape (N, D).
        b: Other draws, shape (M, D).
        seed: Seed of the split.
    """
    n = min(len(a), len(b)) // 2 * 2
    generator = make_generator(seed, "two samples")
    rows = [x.double().cpu()[torch.randperm(len(x), generator=generator)[:n]] for x in (a, b)]
    x, y = torch.cat(rows), torch.arange(2).repeat_interleave(n).double()
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-12)
    x = torch.cat([x, (x.square() - 1) / math.sqrt(2)], 1)
    train = torch.arange(2 * n) % 2 == 0
    weights = _logistic_regression(x[train], y[train])
    accuracy = float(((x[~train] @ weights > 0).double() == y[~train]).double().mean())
    return accuracy, 0.5 / math.sqrt(n)


def _logistic_regression(x: Tensor, y: Tensor, iterations: int = 20) -> Tensor:
    """Weights (D,) by Newton's method, with a normal prior of variance 1 / D."""
    size = x.shape[1]
    weights, prior = x.new_zeros(size), torch.eye(size, dtype=x.dtype) * size
    for _ in range(iterations):
        p = torch.sigmoid(x @ weights)
        gradient = x.T @ (p - y) + prior @ weights
        hessian = x.T @ (x * (p * (1 - p))[:, None]) + prior
        weights = weights - torch.linalg.solve(hessian, gradient)
    return weights
