"""Which energies have a finite Z.

Mutants killed: the growth compared with D without the widths of a valley (half and three quarters of a logarithm), rays
of one decade near the origin (small powers), no descent (rotated valleys), points that are not minima taken for the
floor of a curved valley, and a fall judged without the dimension (poles).
"""

import math

import pytest
import torch
from torch import Tensor, nn

from ebm_lightning.energies import JointEnergy
from ebm_lightning.networks import MLP
from ebm_lightning.partition import Normal
from ebm_lightning.partition.diagnostics.integrable import Integrability, integrable
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Box, Euclidean, Gaussian

ROTATION = torch.linalg.qr(torch.randn(10, 10, generator=make_generator(0, "rotation"), dtype=torch.float64))[0]


def on_space(energy, dimensions: int, seed: int, std: float = 1.0) -> Integrability:
    proposal = Normal(torch.zeros(dimensions), torch.full((dimensions,), std))
    return integrable(energy, Euclidean((dimensions,)), proposal, make_generator(seed, "rays"))


def on_box(energy, dimensions: int, seed: int) -> Integrability:
    box = Box(-1, 1, (dimensions,))
    return integrable(energy, box, box, make_generator(seed, "rays"))


def funnel(x: Tensor) -> Tensor:
    v, rest = x[:, 0], x[:, 1:]
    return v.square() / 18 + 0.5 * rest.square().sum(1) * (-v).exp() + 0.5 * rest.shape[1] * v


def valley(x: Tensor) -> Tensor:
    return 0.5 * (1 - x[:, 0]).square() + 20 * (x[:, 1:] - x[:, :-1].square()).square().sum(1)


def log_and_squares(power: float):
    """|x_1|^(-2 power) along a valley with Gaussian walls."""
    return lambda x: power * x[:, 0].square().log1p() + x[:, 1:].square().sum(1) / 2


def rotated(energy):
    return lambda x: energy(x.double() @ ROTATION)


def student(dof: float):
    return lambda x: 0.5 * (dof + x.shape[1]) * torch.log1p(x.square().sum(1) / dof)


@pytest.mark.parametrize(
    ("energy", "dimensions", "std"),
    [
        (funnel, 10, 1.0),
        (funnel, 10, 3.0),
        (lambda x: x.norm(dim=1) ** 0.2, 2, 1.0),
        (lambda x: x.norm(dim=1) ** 0.2, 10, 1.0),
        (student(0.1), 3, 1.0),
        (student(1.0), 10, 1.0),
        (lambda x: x.square().log1p().sum(1), 2, 1.0),
        (rotated(lambda x: x.square().log1p().sum(1)), 10, 1.0),
        (log_and_squares(0.75), 2, 1.0),
        (rotated(log_and_squares(0.75)), 10, 1.0),
        (valley, 2, 2.0),
        (valley, 5, 2.0),
        (lambda x: x.cosh().sum(1), 5, 1.0),
    ],
)
def test_slow_growth_that_suffices_is_accepted(energy, dimensions, std, seed):
    assert on_space(energy, dimensions, seed, std).finite


@pytest.mark.parametrize(
    ("energy", "dimensions"),
    [
        (log_and_squares(0.45), 2),
        (rotated(log_and_squares(0.45)), 10),
        (lambda x: 0.45 * x.square().log1p().sum(1), 10),
        (lambda x: 1.5 * x.square().sum(1).log1p(), 3),  # r^-3 in three dimensions
        (lambda x: x[:, 0].square(), 2),
        (lambda x: x[:, 1:].square().sum(1) - x[:, 0], 5),
        (lambda x: x[:, 1:].square().sum(1) + x[:, 0].exp(), 5),
        (lambda x: 3 * x[:, 0].abs().log() + x.square().sum(1) / 2, 2),
    ],
)
def test_infinite_mass_is_found(energy, dimensions, seed):
    assert "Z is infinite" in on_space(energy, dimensions, seed).why


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.Tanh])
def test_networks_without_walls_have_infinite_mass(activation, seed):
    net = nn.Sequential(nn.Linear(8, 32), activation(), nn.Linear(32, 4))
    assert not on_space(JointEnergy(net, Euclidean((8,))), 8, seed).finite


@pytest.mark.parametrize("dimensions", [8, 784])
def test_networks_on_a_gaussian_support_have_finite_mass(dimensions, seed):
    support = Gaussian(0.0, 1.0, (dimensions,))
    energy = JointEnergy(MLP(dimensions, 10, (32,)), support)
    assert integrable(energy, support, support, make_generator(seed, "rays")).finite


def pole(power: float, x: Tensor) -> Tensor:
    return power * (x - 0.3).norm(dim=1).log()


@pytest.mark.parametrize(
    ("energy", "dimensions"),
    [
        (lambda x: pole(3.0, x), 1),
        (lambda x: pole(1.1, x), 1),
        (lambda x: pole(3.0, x), 2),
        (lambda x: pole(70.0, x), 64),
        (lambda x: 3 * (x[:, 0] - 0.3).abs().log() + x.square().sum(1), 64),  # on a hyperplane
    ],
)
def test_an_infinite_pole_in_a_box_is_found(energy, dimensions, seed):
    assert "no lower bound" in on_box(energy, dimensions, seed).why


@pytest.mark.parametrize(
    ("energy", "dimensions"),
    [
        (lambda x: pole(0.9, x), 1),
        (lambda x: pole(1.5, x), 2),
        (lambda x: pole(3.0, x), 64),
        (lambda x: 0.5 * (x - 0.3).abs().log().sum(1), 8),
        (lambda x: 0 * x[:, 0], 2),
        (lambda x: 0.5 * (x / 1e-4).square().sum(1), 2),
        (lambda x: -30 * (-0.5 * ((x - 0.3) / 1e-3).square().sum(1)).exp(), 2),
    ],
)
def test_poles_with_finite_mass_and_narrow_modes_are_accepted(energy, dimensions, seed):
    assert on_box(energy, dimensions, seed).finite


def test_the_search_is_cheap_and_counts_its_evaluations(seed):
    calls = []

    def energy(x):
        calls.append(len(x))
        return x.square().sum(1)

    found = on_space(energy, 10, seed)
    assert found.gradient_evaluations == sum(calls)
    assert found.gradient_evaluations < 8000


def test_an_energy_that_is_nan_far_away_is_refused(seed):
    with pytest.raises(ValueError, match="'energy' should be finite inside the support, got NaN from 100"):
        on_space(lambda x: x.sum(1) * math.nan, 2, seed)
