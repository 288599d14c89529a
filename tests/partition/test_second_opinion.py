"""A second opinion: nested sampling by another package on ten random networks whose log Z has no closed form.

Annealing and nested sampling share no code and no method. In two dimensions a grid is compared too. Mutants killed:
log Z without the volume of the box, a reference density that is not normalized, and a path that stops before beta = 1.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from nautilus import Sampler
from torch import Tensor, nn

from ebm_lightning.energies import JointEnergy
from ebm_lightning.partition import LogZ, ais
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Box, Gaussian, Support

pytestmark = pytest.mark.slow
CLASSES, SPREAD = 3, 2.0  # nats: standard deviation of the energy over the reference density
LIVE_POINTS, EFFECTIVE_SAMPLES = 400, 1500  # of nested sampling
GRID, WIDTH = 1201, 8.0  # nodes per axis, and half width of the grid in standard deviations of the Gaussian
SUPPORTS: dict[str, Callable[[int], Support]] = {
    "box": lambda d: Box(-1.5, 1.5, (d,)),
    "gaussian": lambda d: Gaussian(0, 1, (d,)),
}
CASES = [(kind, d, number) for kind in SUPPORTS for d, number in ((2, 0), (2, 1), (3, 0), (3, 1), (4, 0))]


class Estimate(NamedTuple):
    """log Z in nats, and its standard error."""

    log_z: float
    std_err: float


@functools.cache
def random_energy(kind: str, dimensions: int, number: int) -> JointEnergy:
    """A random network with large weights. Its energy is bounded and not convex, and varies by SPREAD."""
    rng, support = make_generator(number, kind, dimensions), SUPPORTS[kind](dimensions)
    layers = [nn.Linear(dimensions, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, CLASSES)]
    network = nn.Sequential(*layers)
    with torch.no_grad():
        for p in network.parameters():
            scale = 2 / math.sqrt(p.shape[1]) if p.ndim == 2 else 1.0
            p.copy_(scale * torch.randn(p.shape, generator=rng))
        x = support.sample(4000, generator=rng)
        for _ in range(5):  # logsumexp is not linear in the logits
            factor = SPREAD / float(network(x).logsumexp(1).std())
            for p in layers[-1].parameters():
                p.mul_(factor)
    return JointEnergy(network, support)


@functools.cache
def annealed(kind: str, dimensions: int, number: int, seed: int) -> LogZ:
    energy = random_energy(kind, dimensions, number)
    return ais(energy, energy.support, generator=make_generator(seed, "second opinion"))


def nested(kind: str, dimensions: int, number: int, seed: int) -> Estimate:
    """Importance nested sampling (Lange 2023), which draws from the normalized reference density of the support."""
    energy = random_energy(kind, dimensions, number)
    support = energy.support

    def from_unit_cube(u: np.ndarray) -> np.ndarray:
        if isinstance(support, Box):
            return support.low + (support.high - support.low) * u
        return torch.special.ndtri(torch.from_numpy(u)).numpy()

    @torch.no_grad()
    def log_likelihood(x: np.ndarray) -> np.ndarray:
        return energy.classifier(torch.from_numpy(x).float()).logsumexp(1).double().numpy()

    sampler = Sampler(
        from_unit_cube, log_likelihood, dimensions, n_live=LIVE_POINTS, n_networks=1, vectorized=True, pass_dict=False,
        seed=seed,
    )  # fmt: skip
    sampler.run(n_eff=EFFECTIVE_SAMPLES, verbose=False)
    log_volume = dimensions * math.log(support.high - support.low) if isinstance(support, Box) else 0.0
    return Estimate(float(sampler.log_z) + log_volume, EFFECTIVE_SAMPLES**-0.5)


def on_grid(kind: str, number: int) -> float:
    """log Z in two dimensions by the midpoint rule."""
    energy = random_energy(kind, 2, number)
    low, high = (energy.support.low, energy.support.high) if isinstance(energy.support, Box) else (-WIDTH, WIDTH)
    step = (high - low) / GRID
    axis = low + step * (torch.arange(GRID, dtype=torch.float64) + 0.5)

    @torch.no_grad()
    def row(y: Tensor) -> Tensor:
        return (-energy(torch.stack([axis, y.expand(GRID)], 1).float()).double()).logsumexp(0)

    return float(torch.stack([row(y) for y in axis]).logsumexp(0)) + 2 * math.log(step)


@pytest.mark.parametrize(("kind", "dimensions", "number"), CASES)
def test_nested_sampling_agrees(kind, dimensions, number, seed):
    ours, other = annealed(kind, dimensions, number, seed), nested(kind, dimensions, number, seed)
    assert ours.reliable, ours.why
    assert abs(ours.log_z - other.log_z) < 5 * math.hypot(ours.std_err, other.std_err)
    assert ours.std_err < 0.1


@pytest.mark.parametrize("kind", SUPPORTS)
@pytest.mark.parametrize("number", [0, 1])
def test_a_grid_agrees_in_two_dimensions(kind, number, seed):
    ours = annealed(kind, 2, number, seed)
    assert abs(ours.log_z - on_grid(kind, number)) < 5 * ours.std_err + 1e-3


@pytest.mark.parametrize("kind", SUPPORTS)
def test_the_energies_are_interesting(kind):
    """Far from constant: log Z is more than a nat above the mean log density, which the constant would reach."""
    for dimensions in (2, 3, 4):
        energy = random_energy(kind, dimensions, 0)
        with torch.no_grad():
            logits = energy.classifier(energy.support.sample(2000, generator=make_generator(0))).logsumexp(1)
        assert logits.logsumexp(0) - math.log(2000) > logits.mean() + 1
