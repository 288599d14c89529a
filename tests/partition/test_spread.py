"""Covariances from few points: exact coordinates help, and real structure is kept.

Mutants killed: no replacement of eigenvalues, replacement of those beyond the noise, coordinates transposed, ignored
weights.
"""

import math

import pytest
import torch
from torch import Tensor

from ebm_lightning.partition.spread import mean_and_factor
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers.preconditioner import Turn, TurnedStep


def divergence(covariance: Tensor, factor: Tensor) -> float:
    """KL(N(0, C) | N(0, L L^T)), in nats."""
    ratio = torch.linalg.solve(factor @ factor.T, covariance.double())
    return float(ratio.trace() - len(ratio) - torch.linalg.slogdet(ratio)[1]) / 2


def rotated(dimensions: int, decades: float) -> tuple[Tensor, Tensor]:
    """A covariance and its symmetric root."""
    q = torch.linalg.qr(torch.randn(dimensions, dimensions, generator=make_generator(0, "rotation")).double())[0]
    std = torch.logspace(-decades, decades, dimensions, dtype=torch.float64)
    return q @ std.square().diag() @ q.T, q @ std.diag() @ q.T


def test_noise_of_few_points_is_removed(seed):
    """The sample covariance of 400 points in 100 dimensions is 8 nats away."""
    x = torch.randn(400, 100, generator=make_generator(seed, "x"))
    assert divergence(torch.eye(100), mean_and_factor(x)[1]) < 0.5
    few = torch.randn(60, 100, generator=make_generator(seed, "few"))
    assert divergence(torch.eye(100), mean_and_factor(few)[1]) < 5


def test_directions_that_differ_are_kept(seed):
    covariance = torch.eye(50)
    covariance[0, 1] = covariance[1, 0] = 0.99
    x = torch.randn(1000, 50, generator=make_generator(seed, "x")) @ torch.linalg.cholesky(covariance).T
    assert divergence(covariance, mean_and_factor(x)[1]) < 0.5


def test_a_rotated_gaussian_is_known_from_the_preconditioner(seed):
    covariance, root = rotated(64, 1.0)
    x = (torch.randn(300, 64, generator=make_generator(seed, "x")).double() @ root).float()
    plain = mean_and_factor(x)[1]
    assert divergence(covariance, plain) > 2
    step = TurnedStep(torch.full((64,), 0.3), Turn((root - torch.eye(64)).float()))
    assert divergence(covariance, mean_and_factor(x, step=step)[1]) < 1


def test_weights_count(seed):
    x = torch.randn(2000, 3, generator=make_generator(seed, "x"))
    log_w = 1.5 * x[:, 0].double()  # a normal shifted by 1.5
    mean, factor = mean_and_factor(x, log_w)
    assert abs(float(mean[0]) - 1.5) < 0.5
    assert divergence(torch.eye(3), factor) < 0.2


def test_degenerate_points_have_a_factor():
    x = torch.ones(10, 3)
    mean, factor = mean_and_factor(x)
    assert mean.tolist() == pytest.approx([1, 1, 1])
    assert bool(factor.diagonal().gt(0).all())
    assert math.isfinite(float(factor.sum()))


def test_coordinates_may_be_stretched_after_a_turn(seed):
    """P = S R is not symmetric where a diagonal S follows the turn R."""
    turn, width = rotated(16, 0.5)[1], torch.logspace(-1, 1, 16)
    p = width.double()[:, None] * turn
    x = (torch.randn(100, 16, generator=make_generator(seed, "x")).double() @ p.T).float()
    step = TurnedStep(width, Turn((turn - torch.eye(16)).float()))
    assert divergence(p @ p.T, mean_and_factor(x, step=step)[1]) < 0.4 < divergence(p @ p.T, mean_and_factor(x)[1])
