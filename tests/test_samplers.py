"""SGLD against the exact law of its own discretisation, and what a chain must leave as it was.

Mutants killed (each by hand below): noise / sqrt 2, half the step, the wrong sign, a stale gradient, the gradient of
the batch mean, noise shared by all chains.
"""

import functools
import math

import pytest
import torch
from torch import Tensor, nn

from ebm_lightning.energies import GaussianEnergy, JointEnergy
from ebm_lightning.networks import MLP
from ebm_lightning.samplers import SGLD, Sampler, State, value_and_gradient
from ebm_lightning.streams import make_generator
from ebm_lightning.supports import Box, Euclidean
from tests.conftest import gaussian_z, z_score

CHAINS, STEPS = 20_000, 7
TARGET = GaussianEnergy(torch.tensor([0.5]), torch.tensor([0.8]))
KERNEL = SGLD(step_size=0.3, noise_std=0.5, steps=STEPS)


def law(sampler: SGLD, start: float) -> tuple[float, float]:
    """Mean and variance after all steps from one point: x' = x - eps (x - m) / v + s xi, iterated."""
    contraction = 1 - sampler.step_size / 0.64
    mean, variance = start, 0.0
    for _ in range(sampler.steps):
        mean, variance = 0.5 + contraction * (mean - 0.5), contraction**2 * variance + sampler.noise**2
    return mean, variance


def worst_z(sampler: Sampler, seed: int) -> float:
    x = sampler(TARGET, torch.full((CHAINS, 1), 2.0), generator=make_generator(seed, "law"))
    return gaussian_z(x[:, 0], *law(KERNEL, 2.0))


def test_law_after_k_steps(seed):
    assert worst_z(KERNEL, seed) < 5


def test_law_at_a_given_temperature(seed):
    sampler = SGLD(step_size=0.3, temperature=0.25 / 0.6, steps=STEPS)
    assert sampler.noise == pytest.approx(0.5)
    assert worst_z(sampler, seed) < 5


class Mutant(SGLD):
    """SGLD with one thing wrong."""

    def transitions(self, energy, x, support, generator):
        _, stale = value_and_gradient(energy, x)
        for _ in range(self.steps):
            _, gradient = value_and_gradient(energy, x)
            noise = torch.randn(x.shape, generator=generator)
            x = self.move(x, gradient, stale, noise)
            yield State(x, x[:, 0], gradient)


MUTANTS = {
    "noise over sqrt 2": lambda x, g, stale, noise: x - 0.3 * g + 0.5 / math.sqrt(2) * noise,
    "half the step": lambda x, g, stale, noise: x - 0.15 * g + 0.5 * noise,
    "wrong sign": lambda x, g, stale, noise: x + 0.3 * g + 0.5 * noise,
    "stale gradient": lambda x, g, stale, noise: x - 0.3 * stale + 0.5 * noise,
    "mean over the batch": lambda x, g, stale, noise: x - 0.3 * g / len(x) + 0.5 * noise,
    "shared noise": lambda x, g, stale, noise: x - 0.3 * g + 0.5 * noise[:1],
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_law_kills(mutant, seed):
    sampler = Mutant(step_size=0.3, noise_std=0.5, steps=STEPS)
    object.__setattr__(sampler, "move", MUTANTS[mutant])
    assert worst_z(sampler, seed) > 5


def test_flat_energy_stays_uniform_under_reflection(seed):
    box = Box(-1, 2, (1,))
    start = box.sample(CHAINS, generator=make_generator(seed, "start"))
    x = SGLD(0.1, 0.8, 5)(lambda x: 0 * x[:, 0], start, support=box, generator=make_generator(seed, "noise"))
    assert z_score(x, 0.5) < 5
    assert z_score(x**2, 1.0) < 5
    assert z_score(x**4, 33 / 15) < 5
    assert box.contains(x).all()


def test_clamping_piles_mass_on_the_walls(seed):
    box = Box(-1, 1, (1,))
    x = SGLD(0.1, 1.0, 3, boundary="clamp")(lambda x: 0 * x[:, 0], torch.zeros(1000, 1), support=box)
    assert (x.abs() == 1).float().mean() > 0.2


@pytest.mark.parametrize(
    ("sampler", "temperature"),
    [(SGLD.jem(), 5e-5), (SGLD.langevin(0.01), 1.0), (SGLD(0.5), 1.0), (SGLD(0.5, temperature=3.0), 3.0)],
)
def test_implied_temperature(sampler, temperature):
    assert sampler.implied_temperature == pytest.approx(temperature)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": -1.0}, "'step_size' should be positive, got -1.0"),
        ({"noise_std": -0.1}, "'noise_std' should be 0 or positive, got -0.1"),
        ({"noise_std": 0.01, "temperature": 1.0}, "'noise_std' and 'temperature' should not both be given"),
        ({"temperature": -1.0}, "'temperature' should be 0 or positive"),
        ({"steps": 0}, "'steps' should be at least 1, got 0"),
        ({"max_gradient": 0.0}, "'max_gradient' should be positive"),
        ({"boundary": "bounce"}, "'boundary' should be 'reflect' or 'clamp', got 'bounce'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SGLD(**arguments)


def test_gradient_clamp():
    steep = SGLD(1.0, 0.0, 1, max_gradient=1.0)
    assert steep(lambda x: 100 * x[:, 0], torch.zeros(3, 1)).tolist() == [[-1.0]] * 3


class Noisy(nn.Module):
    """A classifier with everything that sampling might disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.frozen_norm = nn.BatchNorm1d(4).eval()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        self.net[0].bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.frozen_norm(self.norm(x)))


@pytest.fixture
def noisy(seed) -> JointEnergy:
    return JointEnergy(Noisy(), Euclidean()).train()


def fingerprint(energy: nn.Module) -> list[object]:
    modes = [m.training for m in energy.modules()]
    flags = [(p.requires_grad, p.grad) for p in energy.parameters()]
    return [modes, flags, {k: v.tolist() for k, v in energy.state_dict().items()}, torch.get_rng_state().tolist()]


@pytest.mark.parametrize("method", ["call", "trajectory", "partial"])
def test_a_chain_leaves_no_trace(noisy, method):
    noisy.classifier.frozen_norm.eval()
    before, x = fingerprint(noisy), torch.randn(6, 4, generator=make_generator(0))
    start, generator = x.clone(), make_generator(0, "chain")
    if method == "call":
        KERNEL(noisy, x, generator=generator)
    elif method == "partial":
        KERNEL(functools.partial(noisy, y=torch.arange(6) % 3), x, generator=generator)
    else:
        for _ in KERNEL.trajectory(noisy, x, generator=generator):
            assert fingerprint(noisy) == before, "also between the steps"
    assert fingerprint(noisy) == before
    assert torch.equal(x, start)


def test_a_chain_that_fails_leaves_no_trace(noisy):
    noisy.classifier.frozen_norm.eval()
    before = fingerprint(noisy)
    with pytest.raises(RuntimeError):
        KERNEL(noisy, torch.zeros(2, 99), generator=make_generator(0))
    assert fingerprint(noisy) == before


def test_chains_do_not_feel_their_neighbours(noisy):
    x, descent = torch.randn(6, 4), SGLD(0.1, 0.0, 5)
    together = descent(noisy, x)
    alone = torch.cat([descent(noisy, row[None]) for row in x])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_samples_where_gradients_are_off(noisy, mode):
    x = torch.randn(6, 4)
    expected = KERNEL(noisy, x, generator=make_generator(1))
    with mode():
        inside = KERNEL(noisy, x.clone(), generator=make_generator(1))
        path = [state.x for state in KERNEL.trajectory(noisy, x.clone(), generator=make_generator(1))]
        assert not torch.is_grad_enabled()
    assert torch.equal(inside, expected)
    assert len(path) == STEPS
    assert torch.equal(path[-1], expected)
    assert not inside.is_inference()


def test_one_energy_and_gradient_for_each_step():
    calls = []

    def energy(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x.square().sum(1)

    KERNEL(energy, torch.zeros(3, 2))
    assert calls == [3] * STEPS


def test_half_precision_starts_are_not_stepped_in_half_precision():
    assert KERNEL(TARGET, torch.zeros(3, 1, dtype=torch.bfloat16)).dtype == torch.float32
    assert KERNEL(TARGET, torch.zeros(3, 1, dtype=torch.float64)).dtype == torch.float64


def test_equal_streams_give_equal_chains_and_others_do_not():
    x = torch.zeros(3, 1)
    a, b, c = (KERNEL(TARGET, x, generator=make_generator(0, rank, "chains")) for rank in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_float16_keeps_the_gradients_that_it_could_not_hold(seed):
    """Kills: no scaling (gradients of 1e-8 are 0), no unscaling, a scale that overflows and is not lowered."""
    box = Box(-1, 1, (4,))
    x = box.sample(64)
    for size in (1e-7, 1.0, 1e3):
        net = MLP(4, 3, (8,))
        net.layers[-1].weight.data *= size  # the head is in float32, what is before it in float16
        energy = JointEnergy(net, box)
        exact = value_and_gradient(energy, x)[1]
        with torch.autocast("cpu", dtype=torch.float16):
            half = value_and_gradient(energy, x)[1]
        assert half.dtype == torch.float32
        assert (half - exact).norm() < 0.02 * exact.norm(), size
