"""Adaptive quadrature: narrow peaks, valleys, jumps and zero density, and an error wherever it does not converge."""

import math

import pytest
import torch
from torch import nn

from ebm_lightning.energies import JointEnergy
from ebm_lightning.partition import exact_log_z, quadrature
from ebm_lightning.partition.adaptive_quadrature import integrate
from ebm_lightning.supports import Binary, Box

LINE, PLANE = Box(-1, 1, (1,)), Box(-1, 1, (2,))
CENTER = (0.1234, -0.3217)


def peak(std, center=CENTER, log_weight=0.0):
    """A normal density with a mass of exp(log_weight), unless it is cut by the box."""
    center = torch.tensor(center, dtype=torch.float64)

    def energy(x):
        log_norm = len(center) * math.log(std * math.sqrt(2 * math.pi)) - log_weight
        return (x.double() - center).square().sum(1) / (2 * std**2) + log_norm

    return energy


def together(*energies):
    return lambda x: -torch.stack([-energy(x) for energy in energies]).logsumexp(0)


def ring(width):
    return lambda x: (x.double().norm(dim=1) - 0.5).square() / (2 * width**2)


def valley(x):
    """A normal density of standard deviations 0.05 and 1e-4, whose axes are not those of the box."""
    u, v = (x.double() - 0.05).unbind(1)
    return (((0.8 * u + 0.6 * v) / 0.05).square() + ((0.8 * v - 0.6 * u) / 1e-4).square()) / 2


@pytest.mark.parametrize(
    ("energy", "box", "truth"),
    [
        *[(peak(std), PLANE, 0.0) for std in (0.1, 1e-2, 1e-3, 1e-4)],
        *[(peak(std, CENTER[:1]), LINE, 0.0) for std in (0.1, 1e-3, 1e-5)],
        (together(peak(1e-4), peak(3e-4, (-0.70711, 0.61803), 1.0)), PLANE, math.log(1 + math.e)),
        (together(peak(0.03), peak(1e-4, (-0.70711, 0.61803), 1.0)), PLANE, math.log(1 + math.e)),
        (together(peak(1e-3, log_weight=2.0), lambda x: x.double().sum(1) * 0), PLANE, math.log(4 + math.exp(2))),
        (ring(1e-3), PLANE, math.log(2 * math.pi * 0.5 * 1e-3 * math.sqrt(2 * math.pi))),
        (valley, PLANE, math.log(2 * math.pi * 0.05 * 1e-4)),
    ],
)
def test_narrow_peaks_are_integrated(energy, box, truth):
    """Kills: no division of cells, no search between nodes, a division only where the first points have mass."""
    result = exact_log_z(energy, box)
    assert result.reliable
    assert result.std_err <= 1e-4
    assert result.log_z == pytest.approx(truth, abs=1e-4)
    assert quadrature(energy, box) == result.log_z


class PeakLogits(nn.Module):
    """One flat class, and one with a narrow peak."""

    def forward(self, x):
        return torch.stack([torch.zeros(len(x), dtype=torch.float64), 2 - peak(1e-4)(x)], 1)


def test_a_peak_of_one_class_is_found_although_the_energy_is_flat_around_it():
    result = exact_log_z(JointEnergy(PeakLogits(), PLANE), PLANE)
    assert result.reliable
    assert result.log_z == pytest.approx(math.log(4 + math.exp(2)), abs=1e-4)
    assert result.per_class.tolist() == pytest.approx([math.log(4), 2.0], abs=1e-4)
    assert result.per_class_std_err.max() <= 1e-4


@pytest.mark.parametrize(
    ("energy", "box", "truth"),
    [
        (lambda x: torch.where(x.norm(dim=1) < 0.7, 0.0, math.inf), PLANE, math.log(math.pi * 0.49)),
        (lambda x: torch.where(x[:, 0] < CENTER[0], peak(0.05)(x), math.inf), PLANE, -math.log(2)),
        (lambda x: torch.where(x[:, 0] < CENTER[0], math.inf, 0.0), LINE, math.log(1 - CENTER[0])),
        (lambda x: torch.where((x - 0.3).norm(dim=1) < 3e-3, 0.0, math.inf), PLANE, math.log(math.pi * 9e-6)),
    ],
)
def test_infinite_energies_are_zero_density(energy, box, truth):
    result = exact_log_z(energy, box)
    assert result.reliable
    assert result.log_z == pytest.approx(truth, abs=1e-4)


class Masked(nn.Module):
    """No class has density for x > 0, and the second class has none at all."""

    def forward(self, x):
        return torch.stack([torch.where(x[:, 0] > 0, -math.inf, 0.0), torch.full((len(x),), -math.inf)], 1)


def test_classes_without_density():
    result = exact_log_z(JointEnergy(Masked(), PLANE), PLANE)
    assert result.reliable
    assert result.log_z == pytest.approx(math.log(2))
    assert result.per_class.tolist() == [pytest.approx(math.log(2)), -math.inf]
    assert result.per_class_std_err.tolist() == [pytest.approx(0, abs=1e-4), 0.0]
    assert exact_log_z(JointEnergy(Masked(), Binary((3,))), Binary((3,))).log_z == pytest.approx(math.log(4))


@pytest.mark.parametrize(
    "energy",
    [
        lambda x: peak(1e-6)(x),  # float32 points are too coarse
        ring(1e-4),  # needs more points than allowed
        lambda x: 3 * x[:, 0].abs().log(),  # the integral is infinite
        lambda x: (x[:, 0] - 0.3).abs().log(),
        lambda x: 1e7 + x.square().sum(1) / 0.02,  # float32 rounds the energy to integers
    ],
)
def test_integrals_that_do_not_converge_are_not_reliable(energy):
    """Kills: a standard error of 0, an error without the part of rounding."""
    result = exact_log_z(energy, PLANE)
    assert not result.reliable
    assert result.std_err > 1e-4
    assert "has an error of" in result.why
    with pytest.raises(ValueError, match=r"'energy' should be smooth enough for quadrature to converge to 0.0001 nats"):
        quadrature(energy, PLANE)


def test_the_error_covers_the_difference_from_the_truth(seed):
    for std in torch.empty(6).uniform_(-3, -1).exp().tolist():
        center = torch.empty(2).uniform_(-0.3, 0.3).tolist()
        result = integrate(peak(std, center), Box(-2, 2, (2,)), 1e-2)
        assert abs(float(result.log_z)) <= float(result.error) <= 1e-2


def test_the_number_of_points_is_limited_and_counted():
    calls = []

    def energy(x):
        calls.append(len(x))
        return peak(1e-3)(x)

    assert integrate(energy, PLANE).points == sum(calls) < 1_500_000
    smooth = integrate(lambda x: x.square().sum(1), PLANE)
    assert smooth.points == 5 * 64**2 * 16
    with pytest.raises(ValueError, match=r"at 3\d+ points\. Raise 'max_points'"):
        quadrature(lambda x: torch.where(x.norm(dim=1) < 0.7, 0.0, math.inf), PLANE, max_points=1)
    assert max(calls) <= 65_536


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (lambda x: torch.where(x[:, 0] > 0.5, math.nan, 0.0), "'energy' should be a number or [+]inf"),
        (lambda x: torch.full((len(x),), math.inf), "'energy' should be finite somewhere in the box"),
    ],
)
def test_energies_without_a_density_are_refused(energy, message):
    with pytest.raises(ValueError, match=message):
        exact_log_z(energy, PLANE)


def test_modules_are_integrated_in_eval_mode_and_in_their_precision(seed):
    net = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3)).double()
    energy = JointEnergy(net, LINE).train()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    first = exact_log_z(energy, LINE)
    assert first.reliable
    assert first.log_z == exact_log_z(energy, LINE).log_z == exact_log_z(energy.eval(), LINE).log_z
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
