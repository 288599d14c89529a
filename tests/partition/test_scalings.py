"""Scalings keep the target, pilot runs choose them under heavy tails, and annealing from a wide box needs them.

Mutants that these tests kill: no factor s^D, D - 1 or D + 1 in its place, a wrong sign, no walls, a center that is not
subtracted; scalings for a normal density, none at the early stages, one at the last temperature.
"""

import pytest
import torch
from torch import Tensor

from ebm_lightning.partition import Normal, StudentT, ais, reverse_ais
from ebm_lightning.partition.annealing_path import Annealing
from ebm_lightning.partition.jumps import jump_move, weight_change
from ebm_lightning.partition.pilot import tune_path
from ebm_lightning.partition.scalings import Scaling
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import GHMC, HMC
from ebm_lightning.samplers.hmc import Tempered
from ebm_lightning.supports import Box, Euclidean
from tests.conftest import z_score

CPU = torch.device("cpu")
DOF, HALF = 3.0, 20.0  # of the density in the box, and half the width of the box
BOX = Box(-HALF, HALF, (4,))
IN_BOX = StudentT(torch.zeros(4), torch.ones(4), DOF, BOX)


def normal(dimensions: int, std: float = 1.0) -> Normal:
    return Normal(torch.zeros(dimensions), torch.full((dimensions,), std))


def energy(x: Tensor) -> Tensor:
    """Of a Student density in four dimensions, up to a constant."""
    return 0.5 * (DOF + 4) * torch.log1p(x.square().sum(1) / DOF)


LOG_Z = -float(IN_BOX.log_prob(torch.zeros(1, 4)))


@pytest.mark.parametrize("center", [(0.0, 0.0, 0.0), (0.5, -1.0, 0.3)])
@pytest.mark.parametrize("spread", [0.3, 1.5])
def test_scalings_keep_exact_samples_exact(center, spread, seed):
    rng, n, space = make_generator(seed), 20_000, Euclidean((3,))
    density = StudentT(torch.zeros(3), torch.tensor([0.5, 1.0, 2.0]), 2.0)
    target, scaling = Tempered(lambda x: -density.log_prob(x)), Scaling(torch.tensor(center), spread)
    phase = target.at(density.sample(n, generator=rng), torch.randn(n, 3, generator=rng))
    exact, accepted = density.sample(400_000, generator=make_generator(seed, "exact")), torch.zeros(n)
    for _ in range(4):
        phase, moved = jump_move(target, phase, scaling, space, rng)
        accepted += moved
    assert accepted.mean() > 0.8
    torch.testing.assert_close(phase.energy, -density.log_prob(phase.x), atol=1e-4, rtol=0)
    for radius in (0.5, 1.0, 2.0, 4.0, 16.0):
        inside = (exact.norm(dim=1) < radius).double().mean()
        assert z_score((phase.x.norm(dim=1) < radius).double(), float(inside)) < 5
    assert z_score((phase.x[:, 2] > 1).double(), float((exact[:, 2] > 1).double().mean())) < 5


def test_the_uniform_density_in_a_box_stays_uniform(seed):
    """Kills: no walls, and another power of s."""
    rng, box = make_generator(seed), Box(-1, 1, (2,))
    target = Tempered(lambda x: 0 * x.sum(1))
    phase = target.at(2 * torch.rand(20_000, 2, generator=rng) - 1, torch.zeros(20_000, 2))
    for _ in range(4):
        phase, accepted = jump_move(target, phase, Scaling(torch.tensor([0.2, 0.0]), 0.5), box, rng)
        assert 0.3 < accepted.double().mean() < 0.9
    assert box.contains(phase.x).all()
    for bound in (-0.5, 0.0, 0.2, 0.5):
        assert z_score((phase.x[:, 0] < bound).double(), (1 + bound) / 2) < 5


def test_the_change_of_weights_is_one_for_independent_points_and_zero_for_equal_ones(seed):
    rng, target = make_generator(seed), Tempered(lambda x: 0.5 * x.square().sum(1), normal(3, 2.0), 0.5)
    one, two = (target.at(torch.randn(50_000, 3, generator=rng), torch.zeros(50_000, 3)) for _ in range(2))
    assert weight_change(one, one) == 0
    assert 0.4 < weight_change(one, two) < 1
    constant = Tempered(lambda x: 0 * x.sum(1))
    still = constant.at(torch.randn(10, 3, generator=rng), torch.zeros(10, 3))
    assert weight_change(still, still) == 0


def test_heavy_tails_are_scaled_and_normal_ones_are_not(seed):
    space = Euclidean((10,))
    student = StudentT(torch.zeros(10), torch.ones(10), 2.0)
    heavy = Annealing(lambda x: -student.log_prob(x), space, normal(10), GHMC())
    assert tune_path(heavy, 40, "adaptive", seed, CPU).steps.have(Scaling)
    for decades in (0.3, 1.0):
        std = torch.logspace(-decades, decades, 10)
        light = Annealing(lambda x, std=std: 0.5 * (x / std).square().sum(1), space, normal(10), GHMC())
        assert not tune_path(light, 40, "adaptive", seed, CPU).steps.have(Scaling)


def test_every_second_move_scales_but_not_the_last(seed):
    annealing = Annealing(energy, BOX, BOX, HMC(leapfrogs=3))
    steps = tune_path(annealing, 41, "adaptive", seed, CPU).steps
    scalings = [t for t, step in enumerate(steps.to(CPU, torch.float32)) if isinstance(step, Scaling)]
    assert scalings == list(range(0, 40, 2))
    assert steps.last is not None
    assert annealing.cost(steps) == 1 + 3 * 21 + 20


def test_log_z_from_the_uniform_density_in_a_wide_box(seed):
    """Without scalings, 4 of 6 runs with twice as many temperatures were reliable and .2 to .5 nats too low."""
    estimate = ais(energy, BOX, temperatures=120, num_chains=600, generator=make_generator(seed))
    assert abs(estimate.log_z - LOG_Z) < max(5 * estimate.std_err, 0.05)
    assert abs(estimate.log_z - LOG_Z) < 0.15


def test_weights_are_unbiased_with_scalings(seed):
    settings = {"proposal": normal(4, 2.0), "temperatures": 24}
    space = Euclidean((4,))
    exact = StudentT(torch.zeros(4), torch.ones(4), DOF)
    truth, rng = -float(exact.log_prob(torch.zeros(1, 4))), make_generator(seed, "exact")
    assert tune_path(Annealing(energy, space, normal(4, 2.0), GHMC()), 24, "adaptive", seed, CPU).steps.have(Scaling)
    forward = ais(energy, space, num_chains=2400, chunk_size=20, generator=make_generator(seed), **settings)
    assert z_score((forward.log_weights.view(120, 20) - truth).exp().mean(1), 1.0) < 5
    box = Box(-6.0, 6.0, (4,))  # in reverse, a box keeps the weights bounded
    inside = StudentT(torch.zeros(4), torch.ones(4), DOF, box)
    truth = -float(inside.log_prob(torch.zeros(1, 4)))
    assert tune_path(Annealing(energy, box, box, GHMC()), 24, "adaptive", seed, CPU).steps.have(Scaling)
    back = reverse_ais(energy, box, inside.sample(4000, generator=rng), exact=True, generator=rng, temperatures=24)
    assert z_score((truth - back.log_weights).exp(), 1.0) < 5
