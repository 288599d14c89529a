"""Flips of components with two modes keep the target, and pilot runs find them.

Mutants that these tests kill: always accept, a ratio of the wrong sign, no walls, energies of rejected points; a lower
threshold, which the halves of one mode pass; a middle without the center of the points; flips at the last temperature,
flips that cost as much as a trajectory.
"""

import math

import pytest
import torch
from torch import Tensor

from ebm_lightning.energies import JointEnergy, MixtureLogits
from ebm_lightning.partition import Normal, ais, reverse_ais
from ebm_lightning.partition.annealing_path import Annealing
from ebm_lightning.partition.flips import FlipFinder, Flips, flips_of
from ebm_lightning.partition.jumps import jump_move
from ebm_lightning.partition.pilot import tune_path
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import GHMC, HMC
from ebm_lightning.samplers.hmc import Tempered
from ebm_lightning.supports import Box, Euclidean
from tests.conftest import z_score

CPU = torch.device("cpu")
PLANE = Euclidean((2,))
MEANS = torch.tensor([[-3.0, 0.0], [3.0, 1.0], [3.0, 5.0]])
MIXTURE = JointEnergy(MixtureLogits(MEANS, 0.6, torch.tensor([0.2, 0.5, 0.3])), PLANE)


def samples(n: int, generator: torch.Generator) -> Tensor:
    of = torch.multinomial(torch.tensor([0.2, 0.5, 0.3]), n, replacement=True, generator=generator)
    return MEANS[of] + 0.6 * torch.randn(n, 2, generator=generator)


def normal(dimensions: int, std: float = 1.0) -> Normal:
    return Normal(torch.zeros(dimensions), torch.full((dimensions,), std))


def wells(x: Tensor) -> Tensor:
    """Independent double wells. The log odds of their two modes are 1.7."""
    return (x**4 - 6 * x.square() - x / 2).sum(1)


AXIS = torch.linspace(-6, 6, 20_001, dtype=torch.float64)[:, None]


def log_z_of_a_well() -> float:
    return float((-wells(AXIS)).logsumexp(0)) + math.log(12 / 20_000)


@pytest.mark.parametrize("middle", [(0.0, 3.0), (0.3, 2.6)])
@pytest.mark.parametrize("number", [1.0, 2.0])
def test_flips_keep_exact_samples_exact(middle, number, seed):
    rng, n = make_generator(seed), 20_000
    target, flips = Tempered(MIXTURE), Flips(torch.tensor([0, 1]), torch.tensor(middle), number)
    phase = target.at(samples(n, rng), torch.randn(n, 2, generator=rng))
    exact, accepted = samples(400_000, make_generator(seed, "exact")), torch.zeros(n, dtype=torch.bool)
    for _ in range(4):
        phase, moved = jump_move(target, phase, flips, PLANE, rng)
        accepted |= moved
    assert accepted.double().mean() > 0.2
    torch.testing.assert_close(phase.energy, MIXTURE(phase.x).double().detach(), atol=1e-4, rtol=0)
    for mean in MEANS:
        near, far = ((x - mean).square().sum(1) for x in (phase.x, exact))
        for radius in (0.3, 1.0, 3.0):
            assert z_score((near < radius).double(), float((far < radius).double().mean())) < 5


def test_flips_beyond_a_wall_are_rejected(seed):
    rng, box = make_generator(seed), Box(-1, 1, (2,))
    target = Tempered(lambda x: 0 * x.sum(1))
    phase = target.at(2 * torch.rand(500, 2, generator=rng) - 1, torch.zeros(500, 2))
    end, accepted = jump_move(target, phase, Flips(torch.tensor([0]), torch.tensor([0.5])), box, rng)
    assert torch.equal(accepted, phase.x[:, 0] >= 0)
    assert box.contains(end.x).all()


def test_two_modes_of_a_component_are_found_and_one_is_not(seed):
    rng = make_generator(seed)
    x = torch.randn(200, 40, generator=rng)
    x[:, 20:] = torch.rand(200, 20, generator=rng)
    x[:, 7] = torch.where(torch.rand(200, generator=rng) < 0.2, 5.0, 0.0) + 0.6 * x[:, 7]
    flips = flips_of(1000 + x.view(200, 4, 10), 2.0)
    assert flips is not None
    assert 7 in flips.index.tolist()
    assert len(flips.index) <= 2  # 1 of 20 uniform components may look like two by chance
    assert abs(float(flips.middle[flips.index == 7]) - 1002.5) < 0.4
    assert flips_of(x[:, :7]) is None
    assert flips_of(x[:3]) is None
    assert flips_of(torch.zeros(200, 2)) is None


def test_the_number_of_flips_at_once_is_tuned(seed):
    """All flips are accepted where the wells are symmetric, and then all components flip independently."""
    rng, finder = make_generator(seed), FlipFinder(Euclidean((12,)))
    target = Tempered(lambda x: 40 * (x.square() - 1).square().sum(1))
    x = torch.where(torch.rand(200, 12, generator=rng) < 0.5, 1.0, -1.0) + 0.01 * torch.randn(200, 12, generator=rng)
    phase = target.at(x, torch.zeros(200, 12))
    for _ in range(8):
        phase = finder.stage(target, phase, rng)
    assert finder.found[0].number == 1
    assert finder.found[-1].number == 12
    assert finder.evaluations == 8 * 200


def test_every_well_flips(seed):
    """256 modes. Without flips the share of each side stays what it was at a high temperature."""
    annealing = Annealing(lambda x: wells(x[:, ::2]) + x[:, 1::2].square().sum(1), Euclidean((16,)), normal(16), GHMC())
    flips = tune_path(annealing, 100, "adaptive", seed, CPU).steps.jumps[-1]
    assert isinstance(flips, Flips)
    assert flips.index.tolist() == list(range(0, 16, 2))
    assert flips.middle.abs().max() < 0.5
    assert 1 <= flips.number < 8
    few = {"temperatures": 100, "num_chains": 400}
    estimate = ais(wells, Euclidean((8,)), proposal=normal(8), generator=make_generator(seed), **few)
    assert abs(estimate.log_z - 8 * log_z_of_a_well()) < 5 * estimate.std_err
    exact = (-wells(AXIS)).softmax(0)[10_001:].sum()
    weights = estimate.log_weights.softmax(0)
    assert (weights @ (estimate.samples > 0).double() - exact).abs().max() < 0.15


def test_weights_are_unbiased_with_flips(seed):
    space, settings = Euclidean((4,)), {"proposal": normal(4, 1.5), "temperatures": 24}
    assert tune_path(Annealing(wells, space, normal(4, 1.5), GHMC()), 24, "adaptive", seed, CPU).steps.jumps
    truth, rng = 4 * log_z_of_a_well(), make_generator(seed, "exact")
    forward = ais(wells, space, num_chains=2400, chunk_size=20, generator=make_generator(seed), **settings)
    assert z_score((forward.log_weights.view(120, 20) - truth).exp().mean(1), 1.0) < 5
    at = torch.multinomial((-wells(AXIS)).softmax(0), 16_000, replacement=True, generator=rng)
    x = (AXIS[at] + (AXIS[1] - AXIS[0]) * (torch.rand(16_000, 1, generator=rng) - 0.5)).view(4000, 4).float()
    box = Box(-4.0, 4.0, (4,))  # from R^D the weights of reverse annealing have heavy tails
    path = tune_path(Annealing(wells, box, box, GHMC()), 60, "adaptive", seed, CPU)
    assert any(isinstance(jump, Flips) for jump in path.steps.jumps)
    back = reverse_ais(wells, box, x, exact=True, generator=rng, temperatures=60)
    assert z_score((truth - back.log_weights).exp(), 1.0) < 5


def test_a_few_components_with_two_modes_do_not_flip(seed):
    annealing = Annealing(MIXTURE, PLANE, normal(2, 3.0), GHMC())
    assert not any(isinstance(jump, Flips) for jump in tune_path(annealing, 24, "adaptive", seed, CPU).steps.jumps)


@pytest.mark.parametrize(("dimensions", "flip"), [(60, True), (784, False)])
def test_a_few_of_many_components_do_not_flip(dimensions, flip, seed):
    """Flips of 8 to 16 of 784 components took a quarter of the moves of linear-784, whose RMSE rose from .014 to .022.

    Kills: four components, however many there are.
    """
    rng, finder = make_generator(seed, "x"), FlipFinder(Euclidean((dimensions,)))
    x = torch.randn(200, dimensions, generator=rng)
    x[:, :8] = torch.where(torch.rand(200, 8, generator=rng) < 0.5, 1.0, -1.0) + 0.1 * x[:, :8]
    target = Tempered(lambda x: 0 * x.sum(1))
    finder.stage(target, target.at(x, torch.zeros_like(x)), rng)
    (found,) = finder.found
    assert (found is not None) == flip


def test_one_move_in_four_flips_but_not_the_last(seed):
    annealing = Annealing(wells, Euclidean((4,)), normal(4), HMC(leapfrogs=3))
    steps = tune_path(annealing, 40, "adaptive", seed, CPU).steps
    flips = [t for t, step in enumerate(steps.to(CPU, torch.float32)) if isinstance(step, Flips)]
    assert flips
    assert all(t % 4 == 3 for t in flips)
    assert 39 not in flips
    assert steps.last is not None
    assert annealing.cost(steps) == 1 + 3 * (40 - len(flips)) + len(flips)


def test_one_mode_has_no_flips(seed):
    annealing = Annealing(lambda x: x.square().sum(1), Euclidean((4,)), normal(4), GHMC())
    assert not any(isinstance(jump, Flips) for jump in tune_path(annealing, 40, "adaptive", seed, CPU).steps.jumps)
