"""log Z against closed forms and quadrature: unbiased for any number of temperatures, with calibrated errors.

Mutants killed by the tests of E[w]: a wrong normalizer of the proposal, weights computed after the move, a temperature
step counted twice, resampling that drops log Z, and the mean of log w. The 64-D Gaussian kills equal seeds for points
and momenta.
"""

import dataclasses
import math

import pytest
import torch
from torch import nn

from ebm_lightning.energies import GaussianEnergy, JointEnergy, MixtureLogits
from ebm_lightning.networks import MLP
from ebm_lightning.partition import Normal, ais, bracket, exact_log_z, quadrature, reverse_ais
from ebm_lightning.partition.ais import anneal
from ebm_lightning.partition.annealing_path import Annealing
from ebm_lightning.partition.log_z import log_mean_exp, student_quantile
from ebm_lightning.partition.pilot import EARLY_EXPONENT, tune_path
from ebm_lightning.partition.smc import island_sizes
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import GHMC, HMC, MALA
from ebm_lightning.supports import Box, Euclidean, Gaussian
from tests.conftest import z_score

PLANE, CPU = Box(-2, 2, (2,)), torch.device("cpu")


def net(seed: int = 0, scale: float = 3.0) -> JointEnergy:
    torch.manual_seed(seed)
    mlp = MLP(2, 3, (16, 16))
    with torch.no_grad():
        for p in mlp.parameters():
            p.mul_(scale)
    return JointEnergy(mlp, PLANE)


def linear(dimensions: int, std: float = 1.0) -> JointEnergy:
    generator = make_generator(0, "linear logits")
    layer = nn.Linear(dimensions, 10)
    with torch.no_grad():
        layer.weight.copy_(std * torch.randn(10, dimensions, generator=generator))
        layer.bias.copy_(torch.randn(10, generator=generator))
    return JointEnergy(layer, Box(-1, 1, (dimensions,)))


@pytest.mark.parametrize("resample", [False, True])
@pytest.mark.parametrize("temperatures", [1, 3, 10])
@pytest.mark.parametrize("schedule", ["linear", "adaptive"])
def test_weights_are_unbiased_for_any_number_of_temperatures(resample, temperatures, schedule, seed):
    """E[exp(log w)] = Z: the mean weight of independent islands, in standard errors."""
    energy = net()
    truth = quadrature(energy, PLANE)
    result = ais(
        energy, PLANE, temperatures=temperatures, num_chains=6000, chunk_size=20, schedule=schedule, resample=resample,
        generator=make_generator(seed, "ais"),
    )  # fmt: skip
    islands = (result.log_weights.view(300, 20) - truth).exp().mean(1)
    assert z_score(islands, 1.0) < 5


def far_modes(dimensions: int = 16) -> JointEnergy:
    """Modes that the path with exponent 1 from N(0, 4 I) under-weights by their distance from 0."""
    means = torch.zeros(3, dimensions)
    means[0, 0], means[1, 1], means[2, 2] = 4.0, 6.0, 8.0
    return JointEnergy(MixtureLogits(means, 0.7), Euclidean((dimensions,)))


WIDE = Normal(torch.zeros(16), torch.full((16,), 2.0))


@pytest.mark.parametrize("temperatures", [2, 8])
def test_weights_are_unbiased_on_a_path_with_another_exponent(temperatures, seed):
    energy, proposal = JointEnergy(MLP(2, 3, (8,)), Gaussian(0.5, 0.7, (2,))), Normal(torch.zeros(2), torch.ones(2))
    truth = quadrature(energy, Box(-6, 6, (2,)))
    annealing = Annealing(energy, energy.support, proposal, GHMC())
    path = dataclasses.replace(tune_path(annealing, temperatures, "linear", seed, CPU), path_exponent=EARLY_EXPONENT)
    islands = [
        anneal(annealing, path, 20, make_generator(seed, "island", k), True, iter(range(temperatures)))
        for k in range(300)
    ]
    means = torch.stack([(island.log_weights - truth).exp().mean() for island in islands])
    assert z_score(means, 1.0) < 5


def test_the_pilot_picks_the_exponent_by_the_energy(seed):
    """Exponent 1 starves the mode at 8. Exponent 12 would lose the heavy tails of Student's t."""

    def student(x):
        return 18.5 * torch.log1p(x.square().sum(1) / 5)  # t with 5 degrees of freedom in 32 dimensions

    far, heavy = far_modes(), Euclidean((32,))
    of_far = Annealing(far, far.support, WIDE, GHMC())
    of_heavy = Annealing(student, heavy, Normal(torch.zeros(32), torch.ones(32)), GHMC())
    assert tune_path(of_far, 5, "adaptive", seed, CPU).path_exponent == EARLY_EXPONENT
    assert tune_path(of_heavy, 5, "adaptive", seed, CPU).path_exponent == 1


@pytest.mark.parametrize("width", [0.01, 1.0, 100.0])
def test_moves_have_the_target_acceptance(width, seed):
    """Kills: steps that grow slowly from a fixed start, since moves that are too short are accepted but wasted."""
    energy = GaussianEnergy(torch.zeros(2), torch.full((2,), width))
    proposal = Normal(torch.zeros(2), torch.full((2,), 4 * width))
    result = ais(energy, Euclidean((2,)), proposal=proposal, temperatures=50, generator=make_generator(seed, "ais"))
    assert 0.65 < float(result.acceptance[1::2].mean()) < 0.8  # of the kernel: scalings may be between its moves


def test_far_modes_are_not_lost(seed):
    energy = far_modes()
    result = ais(energy, energy.support, proposal=WIDE, temperatures=200, generator=make_generator(seed, "ais"))
    assert abs(result.log_z) < 0.3
    assert (result.prior - 1 / 3).abs().max() < 0.15


@pytest.mark.parametrize("kernel", [GHMC(), HMC(leapfrogs=3), MALA()], ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("resample", [False, True])
def test_every_kernel_agrees_with_the_closed_form(kernel, resample, seed):
    energy = linear(16)
    result = ais(energy, energy.support, kernel=kernel, resample=resample, generator=make_generator(seed, "ais"))
    truth = exact_log_z(energy, energy.support)
    assert abs(result.log_z - truth.log_z) < 5 * result.std_err + 1e-3
    assert result.std_err < 0.1
    assert result.reliable


def test_a_stretched_gaussian_in_64_dimensions(seed):
    """Equal seeds for initial points and first momenta bias this estimate by more than a nat."""
    energy = GaussianEnergy(torch.zeros(64), torch.logspace(-0.5, 0.5, 64))
    proposal = Normal(torch.zeros(64), torch.ones(64))
    result = ais(energy, Euclidean((64,)), proposal=proposal, temperatures=500, generator=make_generator(seed, "ais"))
    assert abs(result.log_z - energy.log_z) < 0.25
    assert result.integrable
    assert result.per_class is None


def test_log_z_of_each_class(seed):
    energy = linear(16)
    result = ais(energy, energy.support, generator=make_generator(seed, "ais"))
    truth = exact_log_z(energy, energy.support)
    assert result.per_class is not None
    assert float(result.per_class.logsumexp(0)) == pytest.approx(result.log_z, abs=1e-9)
    assert (result.prior - truth.prior).abs().max() < 0.08
    assert float(result.prior.sum()) == pytest.approx(1)


@pytest.mark.parametrize("c", [3.0, -100.0, 1e4])
def test_a_constant_added_to_the_logits_shifts_log_z_by_it(c, seed):
    energy = linear(16).double()
    generator = make_generator(seed, "ais")
    state = generator.get_state()
    before = ais(energy_in_double(energy), energy.support, temperatures=50, num_chains=100, generator=generator)
    with torch.no_grad():
        energy.classifier.bias += c
    generator.set_state(state)
    after = ais(energy_in_double(energy), energy.support, temperatures=50, num_chains=100, generator=generator)
    assert after.log_z - before.log_z == pytest.approx(c, abs=1e-6)


def energy_in_double(energy: JointEnergy):
    return lambda x: energy(x.double())


def test_gaussian_support_and_fitted_proposals_agree(seed):
    energy = JointEnergy(MLP(2, 3, (8,)), Gaussian(0.5, 0.7, (2,)))
    truth = quadrature(energy, Box(-6, 6, (2,)))
    fitted = Normal.fit(torch.randn(500, 2, generator=make_generator(seed)))
    for proposal in (None, fitted):
        result = ais(energy, energy.support, proposal=proposal, generator=make_generator(seed, "ais"))
        assert abs(result.log_z - truth) < 5 * result.std_err + 1e-3


def test_a_truncated_normal_matches_its_samples(seed):
    proposal = Normal(torch.tensor([1.5, 0.0]), torch.tensor([0.6, 3.0]), PLANE)
    assert quadrature(lambda x: -proposal.log_prob(x), PLANE) == pytest.approx(0, abs=1e-4)
    x = proposal.sample(50_000, generator=make_generator(seed))
    squared = math.exp(quadrature(lambda x: -2 * proposal.log_prob(x), PLANE))
    assert z_score(proposal.log_prob(x).exp(), squared) < 5
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(proposal.log_prob(y).sum(), y)
    torch.testing.assert_close(proposal.log_prob_and_gradient(x)[1], gradient)


def test_intervals_cover(seed):
    energy, hits, ess = net(), 0, []
    truth = quadrature(energy, PLANE)
    for repeat in range(100):
        result = ais(energy, PLANE, temperatures=25, num_chains=200, generator=make_generator(seed, "cover", repeat))
        low, high = result.interval(0.95)
        hits += low <= truth <= high
        ess.append(result.ess)
    assert sum(ess) / 100 > 0.3
    assert 88 <= hits <= 100


def test_bounds_bracket_the_truth(seed):
    means = torch.tensor([[1.5, 0.0], [-1.5, 0.0]])
    energy, plane = JointEnergy(MixtureLogits(means, 0.6), Euclidean((2,))), Euclidean((2,))
    proposal = Normal(torch.zeros(2), torch.full((2,), 2.0))
    generator = make_generator(seed, "bdmc")
    exact = means[torch.randint(2, (1000,), generator=generator)] + 0.6 * torch.randn(1000, 2, generator=generator)
    up = reverse_ais(energy, plane, exact, exact=True, proposal=proposal, generator=generator)
    down = ais(energy, plane, proposal=proposal, generator=generator, resample=False)
    both = bracket(down, up)
    assert down.lower <= 0.05
    assert both.upper is not None
    assert both.upper > -0.15
    assert both.reliable
    assert abs(up.log_z) < 5 * up.std_err


def test_inexact_samples_give_no_bound():
    energy = net()
    result = reverse_ais(energy, PLANE, PLANE.sample(100), exact=False)
    assert result.upper is None
    assert not result.reliable
    with pytest.raises(ValueError, match="'backward' should come from exact samples"):
        bracket(result, result)


def test_an_energy_that_falls_along_rays_is_not_integrable(seed):
    plane = Euclidean((2,))
    result = ais(JointEnergy(nn.Linear(2, 3), plane), plane, proposal=Normal(torch.zeros(2), torch.ones(2)))
    assert not result.integrable
    assert not result.reliable
    assert math.isnan(result.log_z)


def test_too_few_temperatures_are_unreliable(seed):
    energy = linear(64)
    result = ais(energy, energy.support, temperatures=3, num_chains=100, resample=False, generator=make_generator(seed))
    assert not result.reliable


def test_islands_have_separate_random_streams(seed):
    result = ais(net(), PLANE, temperatures=30, num_chains=137, chunk_size=12, generator=make_generator(seed, "ais"))
    assert len({round(float(w), 9) for w in result.log_weights}) > 100


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_state_does_not_change_where_gradients_are_off(mode):
    energy = JointEnergy(nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(), nn.Linear(2, 3)), PLANE).train()
    before = (
        [m.training for m in energy.modules()],
        torch.get_rng_state(),
        [p.requires_grad for p in energy.parameters()],
    )
    state = {k: v.clone() for k, v in energy.state_dict().items()}
    with mode():
        result = ais(energy, PLANE, temperatures=5, num_chains=20, generator=make_generator(0))
    assert math.isfinite(result.log_z)
    assert before[0] == [m.training for m in energy.modules()]
    assert torch.equal(before[1], torch.get_rng_state())
    assert before[2] == [p.requires_grad for p in energy.parameters()]
    assert all(torch.equal(v, state[k]) for k, v in energy.state_dict().items())


def test_a_second_run_works_in_inference_mode():
    """Of a model that is wider than its reference, which a density fitted to the ends of the chains confirms."""
    support, results = Gaussian(0.0, 1.0, (3,)), []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            results.append(ais(lambda x: x.square().sum(1) / 32, support, temperatures=100, num_chains=200, seed=0))
    assert results[0].log_z == results[1].log_z
    assert results[0].gradient_evaluations == results[1].gradient_evaluations
    assert abs(results[0].log_z - 1.5 * math.log(32 * math.pi)) < 5 * results[0].std_err


def test_gradient_evaluations_and_progress_are_counted():
    rows, loops = [], []

    def energy(x):
        rows.append(len(x))
        return x.square().sum(1)

    def progress(loop):
        ticks = []
        loops.append((loop, ticks))
        for tick in loop:
            ticks.append(tick)
            yield tick

    result = ais(
        energy, PLANE, temperatures=7, num_chains=103, chunk_size=9, generator=make_generator(0), progress=progress
    )
    assert result.gradient_evaluations == sum(rows)
    assert sum(n <= 9 for n in rows) >= 84, "all moves of the estimate; checks have more rows"
    *pilots, (steps, islands) = loops
    assert len(pilots) in (1, 2), "the second with scalings"
    for stages, pilot in pilots:
        assert stages == range(200), "the limit of a pilot"
        assert pilot == list(range(len(pilot)))
        assert 0 < len(pilot) < 200
    assert (steps, islands) == (range(7 * 12), list(range(7 * 12)))
    assert result.ess_curve.shape == result.acceptance.shape == (7,)


def test_a_nan_energy_is_an_error():
    with pytest.raises(ValueError, match="'energy' should be finite inside the support"):
        ais(lambda x: x.sum(1) * math.nan, PLANE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_chains": 19}, "'num_chains' should be at least 20"),
        ({"chunk_size": 1}, "'chunk_size' should be at least 2"),
        ({"temperatures": 0}, "'temperatures' should be at least 1"),
        ({"support": Euclidean((2,))}, "'support' should have finite mass, got Euclidean.*'proposal'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ais(lambda x: x.square().sum(1), **({"support": PLANE} | arguments))


def test_small_helpers():
    assert island_sizes(103, 9) == [9] * 7 + [8] * 5
    assert student_quantile(0.975, 9) == pytest.approx(2.2622, abs=2e-3)
    assert student_quantile(0.975, math.inf) == pytest.approx(1.95996, abs=1e-4)
    assert float(log_mean_exp(torch.tensor([1e4, 1e4]))) == 1e4
    with pytest.raises(ValueError, match="'level' should be in"):
        exact_log_z(net(), PLANE).interval(1.5)
