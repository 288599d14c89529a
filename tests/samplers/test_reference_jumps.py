"""Jumps to draws of the reference density leave exact samples exact, and reach them from anywhere.

Mutants that these tests kill, the first four by name: a ratio without q, always accept, accept flipped, a proposal that
is never accepted; a log q of the kernel's support without its mass; cycles without steps; steps that scale the number
of cycles down; random numbers of the global state.
"""

import functools
import math

import pytest
import torch
from torch import Tensor, nn

import ebm_lightning.samplers.reference_jumps as reference_jumps
from ebm_lightning import MALA, Box, ClassGaussians, Euclidean, Gaussian, JointEnergy, ReferenceJumps
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import GHMC, HMC
from ebm_lightning.samplers.reference_jumps import jump
from ebm_lightning.supports import Support
from tests.conftest import z_score

N = 40_000


class Waves(nn.Module):
    """Logits of two classes with several modes on a line."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([1.5 * torch.sin(3 * x), torch.cos(2 * x) - 0.5 * x], 1)


def class_gaussians() -> ClassGaussians:
    y = torch.arange(400) % 4 // 3
    x = torch.randn(400, 1, generator=make_generator(0, "data")) * (0.3 + 0.4 * y[:, None]) + 2 * y[:, None] - 1
    density = ClassGaussians()
    density.fit([(x, y)], 2)
    return density


SUPPORTS = {
    "box": (Box(-2, 2, (1,)), -2.0, 2.0),
    "gaussian": (Gaussian(0.5, 1.2, (1,)), -8.0, 9.0),
    "class gaussians": (Euclidean((1,), reference=class_gaussians()), -7.0, 8.0),
}
KERNELS = {"jumps and MALA": ReferenceJumps(MALA(0.5, 2), cycles=3), "GHMC": ReferenceJumps(GHMC(0.3, 5), cycles=2)}


class Law:
    """The exact distribution of an energy on an interval, by its cumulative sums."""

    def __init__(self, energy, low: float, high: float, cells: int = 40_000) -> None:
        self.edges = torch.linspace(low, high, cells + 1, dtype=torch.float64)
        middle = (self.edges[1:] + self.edges[:-1]) / 2
        with torch.no_grad():
            self.mass = (-energy(middle[:, None].float()).double()).softmax(0)
        self.cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), self.mass.cumsum(0)])

    def sample(self, n: int, seed: int) -> Tensor:
        u = torch.rand(n, generator=make_generator(seed, "exact"), dtype=torch.float64)
        cell = torch.searchsorted(self.cumulative, u).clamp(1, len(self.mass)) - 1
        return (self.edges[cell] + (u - self.cumulative[cell]) / self.mass[cell] * self.edges.diff()[0])[
            :, None
        ].float()

    def z(self, x: Tensor) -> float:
        """The largest z of the shares of 8 bins of equal mass."""
        cell = torch.searchsorted(self.edges, x[:, 0].double()).clamp(1, len(self.mass)) - 1
        u = self.cumulative[cell]
        shares = [((u >= i / 8) & (u < (i + 1) / 8)).double() for i in range(8)]
        return max(abs(float(share.mean()) - 1 / 8) / math.sqrt(7 / 64 / len(x)) for share in shares)


@functools.cache
def target(kind: str) -> tuple[JointEnergy, Support, Law]:
    support, low, high = SUPPORTS[kind]
    energy = JointEnergy(Waves(), support)
    return energy, support, Law(energy, low, high)


def z_after(kind: str, seed: int, move) -> float:
    """Chains that start at exact draws, after ``move``, against the exact law."""
    energy, support, law = target(kind)
    start = law.sample(N, seed)
    assert law.z(start) < 5
    return law.z(move(energy, start, support, make_generator(seed, "jumps")))


@pytest.mark.parametrize("kind", SUPPORTS)
def test_exact_samples_stay_exact(kind, seed):
    assert z_after(kind, seed, jump) < 5
    for kernel in KERNELS.values():
        assert z_after(kind, seed, lambda e, x, s, g, k=kernel: k(e, x, support=s, generator=g)) < 5


@pytest.mark.parametrize("kind", SUPPORTS)
def test_chains_converge_from_one_point(kind, seed):
    """Between modes too. The number of jumps is that of a chain whose chance to stay is below 1e-4 of a mode."""
    energy, support, law = target(kind)
    kernel = ReferenceJumps(MALA(0.3, 1), cycles=50)
    x = kernel(energy, torch.full((8000, 1), 0.5), support=support, generator=make_generator(seed, "chain"))
    assert law.z(x) < 5


@pytest.mark.parametrize("kind", SUPPORTS)
def test_the_acceptance_is_that_of_the_formula(kind, seed):
    """From one point: the integral of q(x') min(1, e^(-E(x')) q(x) / e^(-E(x)) q(x')), by quadrature."""
    energy, support, law = target(kind)
    middle = ((law.edges[1:] + law.edges[:-1]) / 2)[:, None].float()
    for start in (-0.4, 1.1):
        x = torch.full((N, 1), start)
        with torch.no_grad():
            log_ratio = -energy(middle).double() - support.log_prob(middle) + energy(x[:1]) + support.log_prob(x[:1])
            q = support.log_prob(middle).exp() * law.edges.diff()
        expected = float((q * log_ratio.exp().clamp(max=1)).sum())
        assert 0.05 < expected < 0.98
        moved = jump(energy, x, support, make_generator(seed, "formula"))
        assert z_score((moved != x)[:, 0], expected) < 5


MUTANTS = {
    "no q": (lambda energy, support, x: -energy(x).double(), ("gaussian", "class gaussians")),
    "always accept": (lambda energy, support, x: torch.zeros(len(x), dtype=torch.float64), SUPPORTS),
    "flipped": (lambda energy, support, x: energy(x).double() + support.log_prob(x), SUPPORTS),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_law_kills_mutants(mutant, monkeypatch, seed):
    tilt, kinds = MUTANTS[mutant]
    monkeypatch.setattr(reference_jumps, "log_tilt", tilt)
    for kind in kinds:
        assert z_after(kind, seed, jump) > 5, kind


def test_points_of_infinite_energy_are_never_reached_and_are_left(seed):
    """The density is 0 below -0.5: half of all chains start there."""
    inner, support, _ = target("box")

    def energy(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] < -0.5, math.inf, inner(x))

    law = Law(energy, -2, 2)
    x = torch.cat([law.sample(N // 2, seed), torch.full((N // 2, 1), -1.0)])
    x = jump(energy, x, support, make_generator(seed, "wall"))
    first, second = x.split(N // 2)
    assert first.min() >= -0.5
    assert law.z(first) < 5
    assert z_score((second[:, 0] >= -0.5), 2.5 / 4) < 5, "every proposal of positive density is accepted"
    assert (second[second < -0.5] == -1.0).all()


def test_chains_follow_the_energy_of_a_label(seed):
    energy, support, _ = target("class gaussians")
    of_class = functools.partial(energy, y=torch.tensor([1]))
    law = Law(of_class, *SUPPORTS["class gaussians"][1:])
    start = law.sample(N, seed)
    x = KERNELS["jumps and MALA"](of_class, start, support=support, generator=make_generator(seed, "label"))
    assert law.z(x) < 5
    assert target("class gaussians")[2].z(x) > 5


@pytest.mark.parametrize("kind", SUPPORTS)
def test_only_the_generator_is_used(kind, seed):
    energy, support, law = target(kind)
    start, before = law.sample(20, seed), torch.get_rng_state()
    kernel = KERNELS["jumps and MALA"]
    one, two = (kernel(energy, start, support=support, generator=make_generator(seed)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(one, start)


def test_a_call_yields_the_states_of_the_kernel(seed):
    energy, support, law = target("box")
    kernel = ReferenceJumps(MALA(0.5, 4), cycles=3)
    states = list(kernel.trajectory(energy, law.sample(30, seed), support=support))
    assert len(states) == kernel.steps == 12
    assert all(state.accepted is not None and state.energy.shape == (30,) for state in states)
    torch.testing.assert_close(states[2].energy, energy(states[1].x).detach().double())


@pytest.mark.parametrize(
    ("steps", "cycles", "of_kernel"), [(1, 1, 1), (4, 1, 4), (5, 1, 5), (6, 2, 5), (10, 2, 5), (400, 80, 5)]
)
def test_another_number_of_steps(steps, cycles, of_kernel):
    changed = ReferenceJumps(HMC(0.2, 5, 3), cycles=7).with_steps(steps)
    assert changed == ReferenceJumps(HMC(0.2, of_kernel, 3), cycles)


def test_the_step_size_is_that_of_the_kernel():
    kernel = ReferenceJumps(MALA(0.2, 5), 3)
    assert kernel.scale_step(0.5) == ReferenceJumps(MALA(0.1, 5), 3)
    assert kernel.scale_step(0.5).step_size == 0.1
    assert ReferenceJumps().kernel == MALA()


def test_bad_arguments():
    with pytest.raises(ValueError, match="'cycles' should be at least 1, got 0"):
        ReferenceJumps(cycles=0)
    with pytest.raises(ValueError, match="'support' should have finite mass, got Euclidean"):
        ReferenceJumps()(lambda x: x.square().sum(1), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="'energy' should return"):
        ReferenceJumps()(lambda x: x, torch.zeros(3, 1), support=Gaussian(0.0, 1.0, (1,)))
