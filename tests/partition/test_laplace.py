"""The Laplace approximation of log Z."""

import math

import pytest
import torch
from torch import nn

from ebm_lightning.energies import GaussianEnergy, JointEnergy, MixtureLogits
from ebm_lightning.partition import laplace_log_z, quadrature
from ebm_lightning.supports import Box, Euclidean

WIDE = Box(-6, 6, (2,))


def test_exact_for_a_gaussian(seed):
    energy = GaussianEnergy(torch.randn(5), torch.rand(5) + 0.3)
    assert laplace_log_z(energy, Box(-6, 6, (5,))).log_z == pytest.approx(energy.log_z, abs=1e-4)


def test_a_correlated_gaussian_on_the_plane():
    precision = torch.tensor([[2.0, 0.8], [0.8, 1.0]])
    result = laplace_log_z(lambda x: 0.5 * ((x @ precision) * x).sum(1), Euclidean((2,)), starts=torch.ones(3, 2))
    assert result.log_z == pytest.approx(math.log(2 * math.pi) - 0.5 * math.log(2 - 0.64), abs=1e-4)


def test_sums_over_distinct_modes(seed):
    means = torch.tensor([[3.0, 3.0], [-3.0, 3.0], [0.0, -3.0]])
    energy = JointEnergy(MixtureLogits(means, 0.5, torch.tensor([0.2, 0.3, 0.5])), WIDE)
    result = laplace_log_z(energy, WIDE)
    assert len(result.log_weights) == 3
    assert result.log_z == pytest.approx(0, abs=1e-3)
    assert not result.reliable


def test_the_error_on_a_quartic_mode_is_small():
    def energy(x):
        return 8 * x.square().sum(1) + 2 * x.pow(4).sum(1)

    truth = quadrature(energy, WIDE)
    assert 0 < laplace_log_z(energy, WIDE).log_z - truth < 0.1


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (lambda x: -x.sum(1), "'energy' should have its modes inside the box"),
        (lambda x: x[:, 0].square(), "'energy' should have positive curvature at its modes"),
    ],
)
def test_modes_at_walls_and_flat_modes_are_refused(energy, message):
    with pytest.raises(ValueError, match=message):
        laplace_log_z(energy, WIDE, starts=torch.zeros(1, 2) + 0.5)


def test_the_model_does_not_change():
    energy = JointEnergy(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)), Euclidean((2,))).train()

    def bowl(x):
        return energy(x) + 3 * x.square().sum(1)

    with torch.inference_mode():
        laplace_log_z(bowl, WIDE, restarts=4)
    assert all(p.grad is None and p.requires_grad for p in energy.parameters())
    assert all(m.training for m in energy.modules())


@pytest.mark.parametrize(
    ("energy", "factor"),
    [
        (lambda x: x.pow(4).sum(1), 0.2),
        (lambda x: x[:, 0].pow(4) + x[:, 1].square(), 0.2),
        (lambda x: 0.1 * x[:, 0].square() + x[:, 1].square() + 50 * x[:, 1].pow(4), 0.36),  # the stiffer axis
        (lambda x: x[:, 0].square() + 1e-4 * x[:, 1].square(), 0.2),  # the standard deviation is wider than the box
    ],
)
def test_modes_whose_hessian_is_not_their_width_are_refused(energy, factor):
    """Kills: no comparison along the axes, a comparison along one axis only, points outside the box counted."""
    with pytest.raises(ValueError, match=f"close to quadratic around its modes, .* by a factor of {factor}. Use ais"):
        laplace_log_z(energy, WIDE, restarts=4)


@pytest.mark.parametrize(("power", "error"), [(0.0, 0.0), (0.25, 0.03), (1.0, 0.1)])
def test_why_gives_the_difference_along_the_axes(power, error):
    def energy(x):
        return 8 * x.square().sum(1) + 8 * power * x.pow(4).sum(1)

    result = laplace_log_z(energy, WIDE, restarts=4)
    difference = float(result.why.split("Gaussian's by ")[1].split(" nats")[0])
    assert difference == pytest.approx(quadrature(energy, WIDE) - result.log_z, rel=0.2, abs=1e-5)
    assert error <= -difference + 1e-5


def test_a_mode_without_mass_is_not_checked():
    """Its Gaussian does not fit, but it does not matter."""

    def energy(x):
        flat = 30 + (x - 4).pow(4).sum(1) + 1e-2 * (x - 4).square().sum(1)
        return -torch.stack([-flat, -8 * x.square().sum(1)]).logsumexp(0)

    result = laplace_log_z(energy, WIDE, starts=torch.tensor([[0.1, 0.1], [4.1, 4.1]]))
    assert len(result.log_weights) == 2
    assert result.log_z == pytest.approx(math.log(2 * math.pi / 16), abs=1e-4)
