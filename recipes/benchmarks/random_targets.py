"""Random targets with known log Z, one per seed: mixtures, funnels, Student tails, valleys, spikes, RBMs and boxes.

The seeds take turns with these kinds. One more kind, tails in many dimensions, has to be asked for.
"""

import math

import torch
from adversarial_targets import on_space
from known_energies import Funnel, Shells, Spikes, Student, Valley, mixture, mixture_samples, two_phases
from targets import Target, anneal_rbm, normal

from ebm_lightning.partition import Mixture, StudentT
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Box

DATA = 300  # samples, where a target comes with data
KINDS = ("mixture", "funnel", "student", "valley", "spikes", "two-phase RBM", "peaks in a box")
MANY_DIMENSIONS = "tails in many dimensions"


class Draws:
    """Random numbers of one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = make_generator(seed, "random target")

    def integer(self, low: int, high: int) -> int:
        """Uniform on low, ..., high."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def scale(self, low: float, high: float) -> float:
        """Uniform in the logarithm."""
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def coin(self) -> bool:
        return self.integer(0, 1) == 1


def kind_of(seed: int) -> str:
    """The kinds take turns."""
    return KINDS[seed % len(KINDS)]


def random_target(seed: int, kind: str | None = None) -> Target:
    """The target of this seed, by default of the kind whose turn it is."""
    makers = (random_mixture, random_funnel, random_student, random_valley, random_spikes, random_rbm, random_peaks)
    draws = Draws(seed)
    return random_tails(draws) if kind == MANY_DIMENSIONS else makers[seed % len(makers)](draws)


def random_mixture(draws: Draws) -> Target:
    """2 to 8 Gaussians in 2 to 32 dimensions. Without data, the proposal is at least as wide as the mixture."""
    modes, dimensions, std = draws.integer(2, 8), draws.integer(2, 32), draws.scale(0.2, 1.5)
    means = draws.scale(1, 6) * torch.randn(modes, dimensions, generator=draws.generator)
    weights = (2 * torch.randn(modes, generator=draws.generator)).softmax(0)
    energy, with_data = mixture(means, std, weights), draws.coin()
    spread = math.sqrt(float(means.square().mean()) + std**2)
    proposal = normal(dimensions, spread * draws.uniform(0.5 if with_data else 1, 2))
    data = mixture_samples(energy, DATA, draws.generator) if with_data else None
    return Target(energy, energy.support, proposal, 0.0, data)


def random_funnel(draws: Draws) -> Target:
    funnel = Funnel(draws.integer(2, 12), draws.uniform(1, 3))
    return on_space(funnel, draws.uniform(1, 3))


def random_student(draws: Draws) -> Target:
    return on_space(Student(draws.integer(1, 12), draws.integer(1, 5)), draws.scale(0.5, 5))


def random_valley(draws: Draws) -> Target:
    valley = Valley(draws.integer(2, 6), draws.scale(0.05, 1), draws.scale(2, 50))
    return on_space(valley, draws.uniform(1, 3))


def random_spikes(draws: Draws) -> Target:
    """1 to 4 spikes in 4 to 64 dimensions, with data."""
    count, dimensions, std = draws.integer(1, 4), draws.integer(4, 64), draws.scale(0.02, 0.06)
    centers = 0.3 + 0.4 * torch.rand(count, dimensions, generator=draws.generator)
    spikes = Spikes(centers, std, torch.tensor([draws.uniform(0, 6) for _ in range(count)]))
    return Target(spikes, Box(0, 1, (dimensions,)), None, spikes.log_z, spikes.sample(DATA, draws.generator))


def random_rbm(draws: Draws) -> Target:
    """5 to 12 hidden units. Half of these targets have data."""
    visible, hidden = draws.integer(20, 100), draws.integer(5, 12)
    roughness = draws.uniform(0, 0.5) * torch.randn(visible, hidden, generator=draws.generator)
    rbm = two_phases(visible, hidden, draws.uniform(0.3, 0.8), draws.uniform(-3, 8), roughness)
    data = rbm.sample(DATA, draws.generator) if draws.coin() else None
    return Target(rbm, rbm.support, None, rbm.log_z, data, anneal_rbm)


def random_peaks(draws: Draws) -> Target:
    """One or two Student densities of equal shape in 2 to 16 dimensions, in a box that is much wider, without data."""
    dimensions, half, degrees_of_freedom = draws.integer(2, 16), draws.scale(5, 60), draws.scale(1, 30)
    box = Box(-half, half, (dimensions,))
    scale = draws.scale(0.3, 1.5) * (0.5 * torch.randn(dimensions, generator=draws.generator)).exp()
    centers = half * (torch.rand(draws.integer(1, 2), dimensions, generator=draws.generator) - 0.5)
    density = Mixture([StudentT(center, scale, degrees_of_freedom, box) for center in centers])
    return Target(lambda x: -density.log_prob(x), box, None, 0.0)


def random_tails(draws: Draws) -> Target:
    """A Student density, a funnel, or a normal density within a wider one, in 24 to 128 dimensions."""
    dimensions, kind = draws.integer(24, 128), draws.integer(0, 2)
    if kind == 0:
        return on_space(Student(dimensions, draws.integer(2, 8)), draws.uniform(0.7, 2.2))
    if kind == 1:
        return on_space(Funnel(dimensions, draws.uniform(0.3, 1.5)), draws.uniform(0.8, 1.8))
    std, share = draws.uniform(1.2, 2.5), draws.uniform(0.02, 0.32)
    return on_space(Shells(dimensions, std, share), draws.uniform(1, 1.5))
