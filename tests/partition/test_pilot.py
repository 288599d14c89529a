"""Pilot runs: paths that cannot be jumped over, their limit, and preconditioners that turn.

Mutants killed: no limit on the drop of the reference's power, a second pilot for easy energies, an incomplete pilot
that does not say so, momenta without the turn, a preconditioner from the spread of all chains, one on a box, and
matrices that are never replaced.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from ebm_lightning.energies import GaussianEnergy, JointEnergy
from ebm_lightning.networks import MLP
from ebm_lightning.partition import Normal, ais, pilot
from ebm_lightning.partition.annealing_path import Annealing, Steps
from ebm_lightning.partition.pilot import EARLY_EXPONENT, MAX_POWER_DROP, run_pilot, tune_path
from ebm_lightning.partition.preconditioner import Scale
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import GHMC
from ebm_lightning.samplers.hmc import Phase, Tempered, _leapfrog
from ebm_lightning.samplers.preconditioner import Turn, TurnedStep
from ebm_lightning.supports import Box, Euclidean, Gaussian
from tests.conftest import z_score

CPU = torch.device("cpu")


def normal(dimensions: int, std: float = 1.0) -> Normal:
    return Normal(torch.zeros(dimensions), torch.full((dimensions,), std))


def half_square(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum(1)


def constant(support: Gaussian) -> JointEnergy:
    layer = nn.Linear(math.prod(support.shape), 10)
    nn.init.zeros_(layer.weight)
    return JointEnergy(layer, support)


def precision_of(std: Tensor, seed: int) -> Tensor:
    """Precision matrix of a Gaussian with these standard deviations along random axes, float64."""
    axes = torch.randn(len(std), len(std), generator=make_generator(seed, "axes"), dtype=torch.float64)
    q = torch.linalg.qr(axes).Q
    return (q / std.double().square()) @ q.T


def gaussian(precision: Tensor):
    matrix = precision.float()
    return lambda x: 0.5 * ((x @ matrix) * x).sum(1)


def test_spreads_of_whitened_precision_see_a_bad_matrix():
    """The measure of the tests below: 1 for the exact matrix, the condition number without one."""
    precision = precision_of(torch.tensor([0.1, 1.0]), 0)
    assert condition(Scale(torch.zeros(2, dtype=torch.float64)), precision) == pytest.approx(100, rel=1e-6)


def condition(scale: Scale, precision: Tensor) -> float:
    """Condition number of the precision in preconditioned coordinates."""
    matrix = scale.log_width.exp().flatten().diag()
    if scale.turn is not None:
        matrix = matrix @ scale.turn(torch.eye(len(matrix), dtype=torch.float64))
    values = torch.linalg.eigvalsh(matrix.T @ precision @ matrix)
    return float(values[-1] / values[0])


@pytest.mark.parametrize("dimensions", [64, 784, 3072])
def test_a_target_equal_to_its_proposal_is_exact(dimensions, seed):
    support, few = Gaussian(0, 1, (dimensions,)), {"temperatures": 8, "num_chains": 40}
    energy = constant(support)
    truth = float(energy.classifier.bias.double().logsumexp(0).detach())
    assert abs(ais(energy, support, generator=make_generator(seed), **few).log_z - truth) < 0.05
    result = ais(
        half_square, Euclidean((dimensions,)), proposal=normal(dimensions), generator=make_generator(seed), **few
    )
    assert abs(result.log_z - dimensions / 2 * math.log(2 * math.pi)) < 0.05


def test_an_untrained_network_is_exact(seed):
    """Simple Monte Carlo knows the answer. The pilot with exponent 12 used to jump to beta = 1: -29.9."""
    energy = JointEnergy(MLP(784, 10), Gaussian(0, 1, (784,)))
    x = energy.support.sample(20_000, generator=make_generator(seed, "mc"))
    with torch.no_grad():
        truth = float(energy.logits(x).double().logsumexp(1).exp().mean().log())
    result = ais(energy, energy.support, temperatures=50, num_chains=200, generator=make_generator(seed))
    assert abs(result.log_z - truth) < 0.05
    assert result.reliable


def test_the_early_pilot_follows_its_detour(seed):
    annealing = Annealing(half_square, Euclidean((100,)), normal(100), GHMC())
    run = run_pilot(annealing, make_generator(seed), EARLY_EXPONENT)
    powers = (1 - run.betas) ** EARLY_EXPONENT
    assert (powers[:-1] - powers[1:]).max() <= MAX_POWER_DROP + 1e-9
    assert run.barrier[-1] > 3  # the detour is long, although both ends are equal
    assert run.betas[-1] == 1


def test_an_easy_energy_needs_one_exponent(seed):
    annealing = Annealing(half_square, Euclidean((4,)), normal(4, 1.05), GHMC())
    path = tune_path(annealing, 5, "adaptive", seed, CPU)
    assert path.path_exponent == 1
    assert path.barrier < 1
    assert path.gradient_evaluations <= 2 * 200 * (1 + 4 + 1)  # one stage, perhaps once more with scalings


def test_a_pilot_has_a_limit_and_says_so(seed, monkeypatch):
    monkeypatch.setattr(pilot, "MIN_STAGES", 6)
    annealing = Annealing(
        GaussianEnergy(torch.zeros(32), torch.full((32,), 0.01)), Euclidean((32,)), normal(32), GHMC()
    )
    stages: list[int] = []

    def progress(loop):
        for stage in loop:
            stages.append(stage)
            yield stage

    path = tune_path(annealing, 2, "adaptive", seed, CPU, progress)
    assert stages == list(range(6))  # one pilot: a second cannot help
    assert path.gradient_evaluations == 200 * (1 + 6 * (4 + 1))  # 4 moves and a scaling at each stage
    assert "in 6 stages" in path.why
    assert "raise 'temperatures'" in path.why
    assert len(path.steps) == 2
    assert path.betas[0] == 0
    assert path.betas[-1] == 1
    assert (path.betas.diff() > 0).all()
    assert tune_path(annealing, 60, "adaptive", seed, CPU).why == ""


def test_a_turned_leapfrog_step_is_reversible_and_keeps_volume(seed):
    precision, d = precision_of(torch.tensor([0.3, 1.0, 3.0]), seed), 3
    energy = lambda x: 0.5 * ((x @ precision) * x).sum(1) + x.pow(4).sum(1)  # noqa: E731
    target, space = Tempered(energy), Euclidean((d,))
    matrix = precision_of(torch.tensor([0.7, 1.0, 1.5]), seed + 1)
    step = TurnedStep(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64), Turn(matrix - torch.eye(d)))
    start = torch.randn(1, 2 * d, generator=make_generator(seed), dtype=torch.float64)

    def flow(point: Tensor) -> Tensor:
        end: Phase = _leapfrog(target, target.at(point[:, :d], point[:, d:]), step, space)
        return torch.cat([end.x, end.v], 1)

    flip = torch.cat([torch.ones(d), -torch.ones(d)])
    torch.testing.assert_close(flow(flow(start) * flip) * flip, start)
    h = 1e-5 * torch.eye(2 * d, dtype=torch.float64)
    jacobian = torch.stack([(flow(start + e) - flow(start - e))[0] / 2e-5 for e in h])
    assert float(jacobian.det().abs()) == pytest.approx(1, abs=1e-6)


def test_a_turn_is_symmetric_and_low_rank_agrees_with_full(seed):
    rng = make_generator(seed)
    basis = torch.linalg.qr(torch.randn(9, 2, generator=rng)).Q
    stretch = torch.tensor([0.5, -1.0])
    low = Turn(basis * stretch.expm1(), basis.T)
    full = Turn(basis * stretch.expm1() @ basis.T)
    x, y = torch.randn(2, 5, 3, 3, generator=rng)
    torch.testing.assert_close(low(x), full(x))
    torch.testing.assert_close((low(x) * y).sum(), (x * low(y)).sum())


@pytest.mark.parametrize("exponent", [1.0, EARLY_EXPONENT])
def test_the_pilot_finds_a_rotated_covariance(exponent, seed):
    """Condition number 1e4 in 64 dimensions, from 200 chains."""
    precision = precision_of(torch.logspace(-1, 1, 64), seed)
    annealing = Annealing(gaussian(precision), Euclidean((64,)), normal(64, 3.0), GHMC())
    run = run_pilot(annealing, make_generator(seed), exponent)
    assert condition(run.scales[-1], precision) < 30
    assert len(run.scales) < 20  # not one for every stage


def test_low_rank_plus_diagonal_above_two_hundred_dimensions(seed):
    """Two wide and two narrow directions: condition number 1e4."""
    std = torch.ones(256)
    std[:2], std[2:4] = 10.0, 0.1
    precision = precision_of(std, seed)
    annealing = Annealing(gaussian(precision), Euclidean((256,)), normal(256, 3.0), GHMC())
    run = run_pilot(annealing, make_generator(seed))
    scale = run.scales[-1]
    assert scale.log_stretch is not None
    assert len(scale.log_stretch) == 32
    assert condition(scale, precision) < 1000


def test_a_rotated_gaussian_in_sixteen_dimensions(seed):
    """Kills: a force without the turn, whose moves are exact but small."""
    std = torch.logspace(-1.5, 0.5, 16)
    energy, truth = gaussian(precision_of(std, seed)), 8 * math.log(2 * math.pi) + float(std.log().sum())
    result = ais(energy, Euclidean((16,)), proposal=normal(16, 3.0), generator=make_generator(seed))
    assert abs(result.log_z - truth) < 5 * result.std_err
    assert result.std_err < 0.2


def test_weights_are_unbiased_with_a_turn(seed):
    """Moves with a matrix are exact, also where the matrix changes between temperatures."""
    std = torch.tensor([0.05, 1.0])
    energy, truth = gaussian(precision_of(std, seed)), math.log(2 * math.pi) + float(std.log().sum())
    result = ais(
        energy, Euclidean((2,)), proposal=normal(2), temperatures=12, num_chains=6000, chunk_size=20,
        generator=make_generator(seed),
    )  # fmt: skip
    assert z_score((result.log_weights.view(300, 20) - truth).exp().mean(1), 1.0) < 5


@pytest.mark.parametrize("width", [0.05, 5.0])
def test_axis_aligned_targets_keep_a_diagonal_preconditioner(width, seed):
    energy = GaussianEnergy(torch.zeros(16), width * torch.logspace(-0.5, 0.5, 16))
    annealing = Annealing(energy, Euclidean((16,)), normal(16, 2 * width), GHMC())
    run = run_pilot(annealing, make_generator(seed))
    assert not run.scales
    assert isinstance(run.path(9, "adaptive").steps[3], Tensor)


def test_chains_reflect_at_walls_so_a_box_keeps_a_diagonal_preconditioner(seed):
    box = Box(-1, 1, (2,))
    annealing = Annealing(gaussian(precision_of(torch.tensor([0.02, 1.0]), 0)), box, box, GHMC())
    assert not run_pilot(annealing, make_generator(seed)).scales


def test_the_distance_between_modes_is_not_a_width(seed):
    """Modes at +-6 along the diagonal, round and of width 1/2."""
    center = torch.full((2,), 6.0)

    def energy(x: Tensor) -> Tensor:
        return -torch.stack([-2 * (x - sign * center).square().sum(1) for sign in (-1, 1)]).logsumexp(0)

    annealing = Annealing(energy, Euclidean((2,)), normal(2, 6.0), GHMC())
    run = run_pilot(annealing, make_generator(seed))
    last = run.scales[int(run.turn_of[-1])] if run.turn_of[-1] >= 0 else Scale(run.log_steps[-1])
    assert condition(last, 4 * torch.eye(2, dtype=torch.float64)) < 3


def test_steps_share_their_matrices(seed):
    precision = precision_of(torch.tensor([0.05, 1.0, 3.0]), seed)
    annealing = Annealing(gaussian(precision), Euclidean((3,)), normal(3, 3.0), GHMC())
    steps = tune_path(annealing, 400, "adaptive", seed, CPU).steps.to(CPU, torch.float32)
    assert isinstance(steps, Steps)
    assert len(list(steps)) == len(steps) == 400
    last = steps[399]
    assert isinstance(last, TurnedStep)
    assert last.turn.left.dtype == torch.float32
    assert len(steps.turns) < 20


@pytest.mark.parametrize(("std", "at_least", "at_most"), [(1.0, 100, 100), (0.2, 101, 2000)])
def test_the_number_of_temperatures_follows_the_barrier(std, at_least, at_most, seed):
    """Mutants: the barrier instead of its square, no lower limit."""
    dimensions = 64
    result = ais(
        lambda x: 0.5 * (x / std).square().sum(1),
        Gaussian(0, 1, (dimensions,)),
        temperatures=None,
        num_chains=100,
        generator=make_generator(seed),
    )
    assert at_least <= len(result.betas) - 1 <= at_most
    exact = dimensions * math.log(std * math.sqrt(2 * math.pi))
    assert result.log_z == pytest.approx(exact, abs=5 * result.std_err + 0.05)
