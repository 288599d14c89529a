"""SGLD against the exact law of its own discretization.

Mutants killed, each by a test: noise / sqrt 2, half the step, the wrong sign, a stale gradient, the gradient of the
batch mean, noise shared by all chains.
"""

import math

import pytest
import torch
from torch import Tensor

from ebm_lightning.energies import GaussianEnergy
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import SGLD, Sampler, State, value_and_gradient
from ebm_lightning.supports import Box
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


def test_the_law_after_all_steps(seed):
    assert worst_z(KERNEL, seed) < 5


def test_the_law_at_a_given_temperature(seed):
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


def test_reflection_keeps_chains_of_a_flat_energy_uniform(seed):
    box = Box(-1, 2, (1,))
    start = box.sample(CHAINS, generator=make_generator(seed, "start"))
    x = SGLD(0.1, 0.8, 5)(lambda x: 0 * x[:, 0], start, support=box, generator=make_generator(seed, "noise"))
    assert z_score(x, 0.5) < 5
    assert z_score(x**2, 1.0) < 5
    assert z_score(x**4, 33 / 15) < 5
    assert box.contains(x).all()


def test_clamping_accumulates_mass_on_the_walls(seed):
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
        ({"noise_std": -0.1}, "'noise_std' should be 0, positive or None, got -0.1"),
        ({"noise_std": 0.01, "temperature": 1.0}, "'noise_std' and 'temperature' should not both be given"),
        ({"temperature": -1.0}, "'temperature' should be 0, positive or None, got -1.0"),
        ({"steps": 0}, "'steps' should be at least 1, got 0"),
        ({"max_gradient": 0.0}, "'max_gradient' should be positive or None, got 0.0"),
        ({"boundary": "bounce"}, "'boundary' should be 'reflect' or 'clamp', got 'bounce'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SGLD(**arguments)


def test_max_gradient_clamps_the_gradient():
    steep = SGLD(1.0, 0.0, 1, max_gradient=1.0)
    assert steep(lambda x: 100 * x[:, 0], torch.zeros(3, 1)).tolist() == [[-1.0]] * 3


def test_each_step_evaluates_the_energy_once():
    calls = []

    def energy(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x.square().sum(1)

    KERNEL(energy, torch.zeros(3, 2))
    assert calls == [3] * STEPS
