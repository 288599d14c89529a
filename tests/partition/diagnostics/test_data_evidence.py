"""Data contradict an estimate that lacks the mass where they lie, and only then.

Mutants killed: the difference of total masses in place of that of regions, no standard errors, and a search that stops
at its limit without saying so.
"""

import importlib
import math

import pytest
import torch

from ebm_lightning.energies import GaussianEnergy, JointEnergy, MixtureLogits
from ebm_lightning.partition.annealing_path import Annealing
from ebm_lightning.partition.diagnostics.data_evidence import DataEvidence, data_evidence
from ebm_lightning.partition.log_z import LogZ
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import GHMC
from ebm_lightning.supports import Box, Euclidean, Gaussian, Support

evidence_module = importlib.import_module("ebm_lightning.partition.diagnostics.data_evidence")
BOX = Box(0, 1, (64,))
CENTERS = 0.2 + 0.6 * torch.rand(3, 64, generator=make_generator(0, "centers"))
PLANE = Gaussian(0.0, 3.0, (16,))
MODES = torch.eye(4, 16) * 6


def spikes(log_mass: float):
    """Three modes of that log mass and standard deviation .05, on a plateau of mass 1."""

    def energy(x):
        squares = (x[:, None] - CENTERS).square().sum(2)
        log_p = log_mass - squares / (2 * 0.05**2) - 64 * math.log(0.05 * math.sqrt(2 * math.pi))
        return -torch.cat([log_p, torch.zeros_like(log_p[:, :1])], 1).logsumexp(1)

    return energy


def spike_data(seed: int, modes: int = 3):
    y = torch.arange(300) % modes
    return (CENTERS[y] + 0.05 * torch.randn(300, 64, generator=make_generator(seed, "data"))).clamp(0, 1), y


def held_against(energy, support: Support, ends: torch.Tensor, log_z: float, data, labels, seed: int) -> DataEvidence:
    """The verdict on an estimate whose chains end at ``ends`` with equal weights."""
    estimate = LogZ(log_z, 0.01, 1.0, torch.full((len(ends),), log_z, dtype=torch.float64))
    annealing = Annealing(energy, support, support, GHMC())
    return data_evidence(estimate, list(ends.split(100)), annealing, data, labels, make_generator(seed, "evidence"))


@pytest.mark.parametrize("labeled", [False, True])
@pytest.mark.parametrize("log_mass", [3.0, 0.0, -3.0])
def test_spikes_that_no_chain_visited_are_found(log_mass, labeled, seed):
    """Also spikes that are much lighter than the plateau, of which the mass of all of them is .15."""
    x, y = spike_data(seed)
    plateau = BOX.sample(1000, generator=make_generator(seed, "ends"))
    found = held_against(spikes(log_mass), BOX, plateau, 0.0, x, y if labeled else None, seed)
    assert "Chains that start at the data find mass that the estimate lacks" in found.why
    assert abs(found.missing - math.log1p(3 * math.exp(log_mass))) < 0.3
    assert found.gradient_evaluations < 0.1 * 250_000


def exact_ends(seed: int) -> torch.Tensor:
    y = torch.randint(4, (1000,), generator=make_generator(seed, "y"))
    return MODES[y] + 0.7 * torch.randn(1000, 16, generator=make_generator(seed, "ends"))


def mode_data(seed: int, modes: int, std: float = 0.7):
    y = torch.arange(300) % modes
    return MODES[y] + std * torch.randn(300, 16, generator=make_generator(seed, "data")), y


MIXTURE = JointEnergy(MixtureLogits(MODES, 0.7), Euclidean((16,)))


@pytest.mark.parametrize("std", [0.4, 0.7, 1.4])
@pytest.mark.parametrize("modes", [1, 4])
@pytest.mark.parametrize("repeat", range(3))
def test_a_right_estimate_is_not_contradicted(modes, std, repeat, seed):
    """By data of one mode or of all, narrower or wider than the model."""
    x, y = mode_data(100 * seed + repeat, modes, std)
    found = held_against(MIXTURE, PLANE, exact_ends(100 * seed + repeat), 0.0, x, y, 100 * seed + repeat)
    assert found.why == ""


def test_data_far_from_the_model_do_not_contradict(seed):
    x = 3 * torch.randn(300, 16, generator=make_generator(seed, "data"))
    assert held_against(MIXTURE, PLANE, exact_ends(seed), 0.0, x, None, seed).why == ""


def test_one_missing_mode_of_four_is_found(seed):
    """The estimate is too low by log(4/3) nats."""
    ends = exact_ends(seed)
    ends = ends[ends.matmul(MODES.T).argmax(1) > 0]
    x, _ = mode_data(seed, 4)
    found = held_against(MIXTURE, PLANE, ends[:700], math.log(0.75), x, None, seed)
    assert abs(found.missing - math.log(4 / 3)) < 0.15
    assert found.why


def test_a_gaussian_of_many_widths_is_not_contradicted(seed):
    energy = GaussianEnergy(torch.zeros(64), torch.logspace(-1, 0.5, 64))
    x, ends = (energy.std * torch.randn(n, 64, generator=make_generator(seed, "x", n)) for n in (300, 1000))
    assert held_against(energy, Euclidean((64,)), ends, energy.log_z, x, None, seed).why == ""


def test_a_search_that_stops_at_its_limit_says_so(seed, monkeypatch):
    monkeypatch.setattr(evidence_module, "MAX_STAGES", 1)
    monkeypatch.setattr(evidence_module, "STAGE_MOVES", 1)
    x, _ = spike_data(seed)
    off = (x + 0.08 * torch.randn(x.shape, generator=make_generator(seed, "off"))).clamp(0, 1)
    plateau = BOX.sample(1000, generator=make_generator(seed, "ends"))
    assert (
        "end where no chain of the estimate does" in held_against(spikes(-3.0), BOX, plateau, 0.0, off, None, seed).why
    )


def test_evidence_depends_on_its_generator_only(seed):
    x, y = mode_data(seed, 4)
    state = torch.get_rng_state()
    a, b = (held_against(MIXTURE, PLANE, exact_ends(0), -0.7, x, y, seed) for _ in range(2))
    assert a == b
    assert torch.equal(torch.get_rng_state(), state)


def test_data_whose_normal_densities_have_no_mass_in_the_model_leave_it_unchecked(seed):
    """Points on a thin sphere: draws of normal densities fitted to them are off it, where the density is 0.

    Kills: a search that counts as complete because no chain is left.
    """

    def energy(x):
        return torch.where((x.norm(dim=1) - 1).abs() < 1e-6, 0 * x.sum(1), math.inf)

    x = torch.randn(300, 16, generator=make_generator(seed, "sphere"))
    x = x / x.norm(dim=1, keepdim=True)
    ends = 5 + torch.zeros(1000, 16)
    assert "need more than" in held_against(energy, PLANE, ends, 0.0, x, None, seed).why
