"""Estimates that used to be wrong and reliable say why they are not.

Mutants killed: evidence that is not asked for, reasons that are dropped, costs that are not counted, an efficiency
without the length of the path.
"""

import dataclasses
import math

import pytest
import torch

from ebm_lightning.energies import GaussianEnergy
from ebm_lightning.partition import LogZ, Normal, ais
from ebm_lightning.partition.annealing_path import AnnealingPath, Steps
from ebm_lightning.partition.diagnostics.evidence import inefficient
from ebm_lightning.partition.flips import Flips
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Box, Euclidean


def normal(dimensions: int, std: float) -> Normal:
    return Normal(torch.zeros(dimensions), torch.full((dimensions,), std))


def rosenbrock(x):
    return 0.5 * (1 - x[:, 0]).square() + 20 * (x[:, 1:] - x[:, :-1].square()).square().sum(1)


def spikes(x):
    """A plateau of mass 1 in [0, 1]^16, and a spike of mass e^3 and standard deviation .05 at .3."""
    log_peak = 3 - 16 * math.log(0.05 * math.sqrt(2 * math.pi))
    return -torch.logaddexp(log_peak - 0.5 * ((x - 0.3) / 0.05).square().sum(1), torch.zeros(len(x), device=x.device))


@pytest.mark.parametrize(
    ("energy", "dimensions", "std", "reason"),
    [
        (rosenbrock, 5, 2.0, "valley"),
        (lambda x: x.abs().pow(0.2).sum(1), 1, 1.0, "heavy tails"),
        (lambda x: 1e9 + 0.5 * x.square().sum(1), 2, 2.0, "rounding"),
        (lambda x: 0.45 * torch.log1p(x[:, 0].square()) + 0.5 * x[:, 1].square(), 2, 1.0, "infinite"),
    ],
    ids=["curved valley", "slow growth", "large offset", "no integral"],
)
def test_a_wrong_estimate_says_why(energy, dimensions, std, reason, seed):
    proposal = normal(dimensions, std)
    estimate = ais(energy, Euclidean((dimensions,)), proposal=proposal, temperatures=100, seed=seed)
    assert not estimate.reliable
    assert reason in estimate.why or "independent chains" in estimate.why  # weights are judged first
    assert estimate.why.endswith(".")


def test_a_spike_that_no_chain_finds_is_known_from_data(seed):
    box = Box(0, 1, (16,))
    data = 0.3 + 0.05 * torch.randn(300, 16, generator=make_generator(seed))
    blind = ais(spikes, box, temperatures=60, seed=seed)
    assert blind.log_z == pytest.approx(0, abs=0.1)  # the truth is log(1 + e^3)
    informed = ais(spikes, box, temperatures=60, seed=seed, data=data)
    assert informed.log_z == blind.log_z
    assert "Chains that start at the data" in informed.why
    found = ais(spikes, box, temperatures=100, seed=seed, data=data, proposal="data")
    assert found.reliable
    assert abs(found.log_z - math.log1p(math.exp(3))) < max(5 * found.std_err, 0.05)


def test_right_estimates_stay_reliable_with_and_without_data(seed):
    energy = GaussianEnergy(torch.zeros(8), torch.full((8,), 2.0))
    space = Euclidean((8,))
    data = 2 * torch.randn(200, 8, generator=make_generator(seed))
    for s in range(3):
        for given in (None, data):
            estimate = ais(energy, space, proposal=normal(8, 1.0), temperatures=100, seed=seed + s, data=given)
            assert estimate.reliable, estimate.why
            assert abs(estimate.log_z - energy.log_z) < max(5 * estimate.std_err, 0.05)


@pytest.mark.parametrize("rotated", [False, True])
def test_a_gaussian_wider_than_its_proposal_is_reliable(rotated, seed):
    """A condition number of 1000 from N(0, 1), of which one axis is 10 wide, was taken for heavy tails."""
    rotation = torch.eye(8)
    if rotated:
        rotation = torch.linalg.qr(torch.randn(8, 8, generator=make_generator(0, "rotation")))[0]
    std = torch.logspace(-0.5, 1, 8)
    energy, space = lambda x: 0.5 * ((x @ rotation.to(x)) / std.to(x)).square().sum(1), Euclidean((8,))
    truth = float(std.log().sum()) + 4 * math.log(2 * math.pi)
    estimates = [ais(energy, space, proposal=normal(8, 1.0), seed=seed + s) for s in range(3)]
    assert all(abs(e.log_z - truth) < max(5 * e.std_err, 0.05) for e in estimates)
    assert sum(e.reliable for e in estimates) >= 2


def test_data_have_to_be_given_to_start_at_them():
    with pytest.raises(ValueError, match="'proposal' should be a Density, or 'data' together with data="):
        ais(spikes, Box(0, 1, (16,)), proposal="data")


def test_weights_are_compared_with_what_the_path_allows():
    path = AnnealingPath(torch.linspace(0, 1, 101), Steps(torch.ones(100, 1)), 0, barrier=10.0)
    assert inefficient(0.9 * math.exp(-1), path) == ""
    assert "worth 10% of what the path allows" in inefficient(0.1 * math.exp(-1), path)
    assert inefficient(0.15 * math.exp(-1), path) == ""  # half of the right runs on linear-64 with 60 temperatures
    wells = Steps(torch.ones(100, 1), jumps=(Flips(torch.tensor([0]), torch.zeros(1)),))
    assert "worth 15% of" in inefficient(0.15 * math.exp(-1), dataclasses.replace(path, steps=wells))
    assert inefficient(0.1, dataclasses.replace(path, barrier=0.0)) != ""
    assert inefficient(0.1, dataclasses.replace(path, barrier=1e4)) == ""  # exp(1e6) would overflow


def test_a_lower_bound_follows_from_the_estimate():
    assert LogZ(3.0).lower_bound(0.1) == pytest.approx(3 + math.log(0.1))
    with pytest.raises(ValueError, match="'lower_bound' should be asked of ais"):
        LogZ(3.0, reverse=True).lower_bound()
    with pytest.raises(ValueError, match=r"'delta' should be in \(0, 1\)"):
        LogZ(3.0).lower_bound(1.0)
