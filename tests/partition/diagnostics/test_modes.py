"""Modes without chains are found by descent, and their mass is measured.

Mutants killed: no second look at what chains carry, starts as wide as the proposal only, masses without widths, a
region counted for two modes, mass beyond walls, a verdict from masses that importance sampling cannot measure, and an
error that ignores the difference.
"""

import math

import pytest
import torch
from torch import Tensor

from ebm_lightning.energies import GaussianEnergy, JointEnergy, MixtureLogits
from ebm_lightning.partition import LogZ, Normal, ais
from ebm_lightning.partition.annealing_path import Annealing
from ebm_lightning.partition.diagnostics.modes import missed_modes
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import GHMC
from ebm_lightning.supports import Box, Euclidean

N = 1000
EQUAL = torch.zeros(N, dtype=torch.float64)


def normal(dimensions: int, std: float = 1.0) -> Normal:
    return Normal(torch.zeros(dimensions), torch.full((dimensions,), std))


def two_modes(distance: float, dimensions: int = 2) -> JointEnergy:
    """Two normal densities of weight 1/2: log Z = 0."""
    means = torch.zeros(2, dimensions)
    means[1, 0] = distance
    return JointEnergy(MixtureLogits(means, 1.0), Euclidean((dimensions,)))


def search(energy, x: Tensor, estimate: LogZ, proposal: Normal, seed: int):
    annealing = Annealing(energy, Euclidean(tuple(x.shape[1:])), proposal, GHMC())
    return missed_modes(annealing, x, estimate, make_generator(seed, "modes"))


@pytest.mark.parametrize(("distance", "dimensions"), [(12.0, 2), (12.0, 8), (25.0, 2)])
def test_a_mode_without_chains_is_found_and_weighed(distance, dimensions, seed):
    x = torch.randn(N, dimensions, generator=make_generator(seed, "x"))
    estimate = LogZ(-math.log(2), 0.02, 0.7, EQUAL)
    found = search(two_modes(distance, dimensions), x, estimate, normal(dimensions, 2.0), seed)
    assert "modes that hold" in found.why
    assert found.missing == pytest.approx(1, abs=0.15)  # its region holds 9 tenths of it
    assert found.std_err == pytest.approx(math.log(2), abs=0.1)  # in nats: masses of e^12 gave 1e5
    assert found.gradient_evaluations < 12_000


def test_modes_with_their_share_of_chains_are_not_missed(seed):
    x = torch.randn(N, 2, generator=make_generator(seed, "x"))
    x[::2, 0] += 12
    found = search(two_modes(12.0), x, LogZ(0.0, 0.02, 0.7, EQUAL), normal(2, 5.0), seed)
    assert not found.why
    assert abs(found.missing) < 5 / math.sqrt(0.7 * N)


@pytest.mark.parametrize("std", [torch.ones(32), torch.logspace(-1, 1, 16)], ids=["round", "stretched"])
def test_the_mass_of_a_gaussian_is_known_to_a_percent(std, seed):
    """So a run that is .2 nats too high or too low shows, although its weights do not tell."""
    energy = GaussianEnergy(torch.zeros(len(std)), std)
    x = std * torch.randn(N, len(std), generator=make_generator(seed, "x"))
    for error in (-0.2, 0.0, 0.2):
        estimate = LogZ(energy.log_z + error, 0.1, 0.1, EQUAL)
        found = search(energy, x, estimate, normal(len(std)), seed)
        assert found.missing == pytest.approx(math.exp(-error) - 1, abs=0.07)


def test_what_importance_sampling_cannot_measure_is_left_out(seed):
    """The Hessian of a quartic is almost zero at its minimum, so that a normal density does not fit."""
    x = 0.5 * torch.randn(N, 10, generator=make_generator(seed, "x"))
    truth = 10 * (math.log(2) + math.lgamma(1.25))
    found = search(lambda x: (x**4).sum(1), x, LogZ(truth, 0.02, 0.7, EQUAL), normal(10), seed)
    assert not found.why
    assert abs(found.missing) < 0.1


@pytest.mark.parametrize("center", [12.0, 19.5])
def test_a_mode_inside_a_box_is_found(center, seed):
    """Also next to a wall, which takes half of the mode. Kills: no search on a box, mass beyond the walls."""
    box, means = Box(-20, 20, (2,)), torch.tensor([[0.0, 0.0], [center, center]])
    model = JointEnergy(MixtureLogits(means, 1.0), Euclidean((2,)))
    inside = torch.special.ndtr(torch.tensor(20 - center)).item() ** 2
    annealing, x = Annealing(model, box, box, GHMC()), torch.randn(N, 2, generator=make_generator(seed, "x"))
    estimate = LogZ(-math.log(2), 0.02, 0.7, EQUAL)
    found = missed_modes(annealing, x, estimate, make_generator(seed, "modes"))
    assert "modes that hold" in found.why
    assert found.missing == pytest.approx(inside, abs=0.15)
    assert found.gradient_evaluations < 12_000
    x[::2] += center
    x = x[box.contains(x)]
    whole = LogZ(math.log(0.5 + 0.5 * inside), 0.02, 0.7, EQUAL[: len(x)])
    assert not missed_modes(annealing, x, whole, make_generator(seed, "modes")).why


def test_only_few_dimensions_are_searched(seed):
    found = search(lambda x: x.square().sum(1), torch.zeros(N, 33), LogZ(0.0), normal(33), seed)
    assert found.gradient_evaluations == 0


def test_a_run_that_misses_a_far_mode_is_not_reliable(seed):
    estimate = ais(two_modes(25.0), Euclidean((2,)), proposal=normal(2), temperatures=60, num_chains=500, seed=seed)
    assert estimate.log_z < -0.2
    assert not estimate.reliable


def test_a_run_is_told_its_error_by_its_modes(seed):
    """All runs with few temperatures are within 4 of their errors, which are at least the difference found."""
    energy = GaussianEnergy(torch.zeros(8), torch.logspace(-1, 0, 8))
    for k in range(20):
        estimate = ais(
            energy, Euclidean((8,)), proposal=normal(8), temperatures=12, num_chains=200, seed=100 * seed + k
        )
        assert not estimate.reliable or abs(estimate.log_z - energy.log_z) < max(4 * estimate.std_err, 0.05)
