"""HMC, MALA and GHMC leave exact samples exact for any step size, also at walls.

Mutants killed, each by a test: always accept, no half step, no momentum flip after a rejection with persistent
momentum, walls that clamp, walls that do not flip the momentum, a stale gradient.
"""

import dataclasses

import pytest
import torch

import ebm_lightning.samplers.hmc as hmc
from ebm_lightning.energies import GaussianEnergy
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import GHMC, HMC, MALA
from ebm_lightning.supports import Box
from tests.conftest import gaussian_z, z_score

N = 40_000
KERNELS = {
    "HMC": HMC(0.9, steps=4, leapfrogs=3),
    "MALA": MALA(1.0, steps=6),
    "GHMC": GHMC(0.8, steps=40),
}
TARGET = GaussianEnergy(torch.tensor([0.5]), torch.tensor([0.8]))
BOX = Box(-1, 1, (1,))


def slope(x: torch.Tensor) -> torch.Tensor:
    """exp(-E) = exp(2 x) on the box: mass against a wall."""
    return -2 * x[:, 0]


def exact_slope(n: int, generator: torch.Generator) -> torch.Tensor:
    u = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    e = torch.tensor(2.0, dtype=torch.float64).exp()
    return ((1 / e + u * (e - 1 / e)).log() / 2).float()


def z_on_line(kernel: HMC, seed: int) -> float:
    start = 0.5 + 0.8 * torch.randn(N, 1, generator=make_generator(seed, "start"))
    return gaussian_z(kernel(TARGET, start, generator=make_generator(seed, "chain"))[:, 0], 0.5, 0.64)


def z_at_walls(kernel: HMC, seed: int) -> float:
    start = exact_slope(N, make_generator(seed, "start"))
    x = kernel(slope, start, support=BOX, generator=make_generator(seed, "chain"))
    assert BOX.contains(x).all()
    reference = exact_slope(4_000_000, make_generator(seed, "reference"))
    return max(z_score(x**k, float((reference.double() ** k).mean())) for k in (1, 2, 4))


@pytest.mark.parametrize("name", KERNELS)
def test_exact_samples_stay_exact(name, seed):
    assert z_on_line(KERNELS[name], seed) < 5
    assert z_at_walls(KERNELS[name], seed) < 5


@pytest.mark.parametrize("name", KERNELS)
def test_chains_converge_from_a_distant_start(name, seed):
    kernel = dataclasses.replace(KERNELS[name], step_size=0.5, steps=120)
    x = kernel(TARGET, torch.full((4000, 1), 6.0), generator=make_generator(seed, "chain"))
    assert gaussian_z(x[:, 0], 0.5, 0.64) < 5


def test_the_law_kills_a_kernel_that_always_accepts(monkeypatch, seed):
    monkeypatch.setattr(hmc, "_where", lambda mask, a, b: a)
    assert z_on_line(KERNELS["MALA"], seed) > 5


def test_the_law_kills_a_full_step_of_the_momentum(monkeypatch, seed):
    def lopsided(target, phase, step, support):
        v = phase.v - step * target.gradient(phase)
        x, sign = support.bounce(phase.x + step * v)
        return target.at(x, sign * v)

    monkeypatch.setattr(hmc, "_leapfrog", lopsided)
    assert z_on_line(KERNELS["HMC"], seed) > 5


def test_the_law_kills_a_stale_gradient(monkeypatch, seed):
    def stale(target, phase, step, support):
        v = phase.v - step * target.gradient(phase)
        x, sign = support.bounce(phase.x + step * v)
        return target.at(x, sign * v)._replace(gradient=phase.gradient)

    monkeypatch.setattr(hmc, "_leapfrog", stale)
    assert z_on_line(KERNELS["HMC"], seed) > 5


def test_the_law_kills_walls_that_clamp(monkeypatch, seed):
    monkeypatch.setattr(Box, "bounce", lambda self, x: (self.clamp(x), torch.ones_like(x)))
    assert z_at_walls(KERNELS["HMC"], seed) > 5


def test_the_law_kills_walls_that_do_not_flip_the_momentum(monkeypatch, seed):
    """Only a persistent momentum shows it, since a new momentum has a random sign."""
    monkeypatch.setattr(Box, "bounce", lambda self, x: (self.reflect(x), torch.ones_like(x)))
    assert z_at_walls(GHMC(0.8, steps=40), seed) > 5


def test_the_law_kills_no_flip_of_persistent_momenta(monkeypatch, seed):
    original = hmc.hamiltonian_move

    def no_flip(target, phase, step, support, kernel, generator):
        end, accepted = original(target, phase, step, support, kernel, generator)
        return end._replace(v=torch.where(accepted[:, None], end.v, -end.v)), accepted

    monkeypatch.setattr(hmc, "hamiltonian_move", no_flip)
    assert z_on_line(GHMC(1.5, steps=60), seed) > 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kinetic_energy_does_not_modify_momenta(dtype, seed):
    """Kills: squaring momenta in place if they are float64 already."""
    v = torch.randn(5, 2, 3, dtype=dtype, generator=make_generator(seed))
    before = v.clone()
    torch.testing.assert_close(hmc._kinetic(v), 0.5 * v.double().square().sum((1, 2)))
    assert torch.equal(v, before)


def test_a_constant_reference_does_not_change_the_moves():
    """The gradient is that of beta E at any temperature, for both shapes of the reference's gradient."""
    x, v = torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    box = Box(-9, 9, (2, 3))
    for beta in (0.0, 0.3, 1.0):
        target = hmc.Tempered(lambda x: x.square().sum((1, 2)), box, beta)
        phase = target.at(x, v)
        assert torch.equal(target.gradient(phase), beta * 2 * x)
        full = phase._replace(log_q_gradient=torch.zeros_like(x))
        step, kernel = torch.tensor(0.3), HMC()
        moved, accepted = hmc.hamiltonian_move(target, phase, step, box, kernel, make_generator(0))
        other, other_accepted = hmc.hamiltonian_move(target, full, step, box, kernel, make_generator(0))
        assert torch.equal(moved.x, other.x)
        assert torch.equal(moved.v, other.v)
        assert torch.equal(accepted, other_accepted)
        assert not torch.equal(moved.x, x)
        assert moved.log_q_gradient.shape == (5, 1, 1)
    without = hmc.Tempered(target.energy, beta=1.0)
    moved_without, _ = hmc.hamiltonian_move(without, without.at(x, v), step, box, kernel, make_generator(0))
    assert torch.equal(moved_without.x, moved.x)


def test_each_leapfrog_step_evaluates_the_energy_once():
    calls = []

    def energy(x):
        calls.append(len(x))
        return x.square().sum(1)

    HMC(0.1, steps=7, leapfrogs=3)(energy, torch.zeros(5, 2))
    assert calls == [5] * (1 + 7 * 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": 0.0}, "'step_size' should be positive"),
        ({"steps": 0}, "'steps' should be at least 1"),
        ({"leapfrogs": 0}, "'leapfrogs' should be at least 1"),
        ({"momentum": 1.0}, r"'momentum' should be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        HMC(**arguments)


def test_moves_into_infinite_energy_are_rejected():
    x = HMC(0.5, steps=5)(lambda x: torch.where(x[:, 0] < 0, torch.inf, 1.0) + 0 * x[:, 0], torch.ones(100, 1))
    assert (x >= 0).all()
