"""Redrawing noise leaves exact samples exact, and reaches them from the reference density.

Mutants that these tests kill: a ratio with q, always accept, accept flipped; noise of rejected proposals kept; a patch
that depends on x; patches that never touch an edge; energies without q or its mass; a step size above 1.
"""

import functools
import itertools
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ebm_lightning import AutoregressiveDensity, Box, JointEnergy, NoiseRefresh, Normal, ais, reverse_ais
from ebm_lightning.partition import bracket
from ebm_lightning.partition.diagnostics.integrable import Integrability
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import Adaptation
from ebm_lightning.samplers.adaptation import AdaptedSampler
from ebm_lightning.samplers.noise_refresh import _part

SHAPE, LEVELS = (1, 2, 4), 3
N = 20_000


class OfLevels(nn.Module):
    """Logits of two classes that depend on the gray levels alone, so that sums over levels are exact."""

    def __init__(self) -> None:
        super().__init__()
        generator = make_generator(0, "logits")
        self.first = nn.Parameter(torch.randn(8, 4, generator=generator))
        self.second = nn.Parameter(torch.randn(4, 2, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        level = ((x + 1) / 2 * LEVELS).floor().clamp(0, LEVELS - 1) - 1
        return torch.tanh((level + 0 * x).flatten(1) @ self.first) @ self.second


@pytest.fixture(scope="module")
def model() -> tuple[JointEnergy, Box]:
    generator = make_generator(0, "images")
    row = torch.randint(LEVELS, (2000, 1, 2, 1), generator=generator).expand(2000, *SHAPE)
    other = torch.randint(LEVELS, (2000, *SHAPE), generator=generator)
    level = torch.where(torch.rand((2000, *SHAPE), generator=generator) < 0.7, row, other)
    density = AutoregressiveDensity(Box(-1, 1, SHAPE), LEVELS, radius=1, width=16, epochs=2)
    density.fit([((level + 0.5) / LEVELS * 2 - 1, torch.zeros(2000))], 2)
    support = Box(-1, 1, SHAPE, reference=density)
    return JointEnergy(OfLevels(), support), support


@pytest.fixture(scope="module")
def centers() -> Tensor:
    return (torch.tensor(list(itertools.product(range(LEVELS), repeat=8))).view(-1, *SHAPE) + 0.5) / LEVELS * 2 - 1


def log_p(energy: JointEnergy, centers: Tensor, y: int | None = None) -> Tensor:
    """Log of the mass of each combination of gray levels, not normalized."""
    with torch.no_grad():
        labels = None if y is None else torch.tensor([y])
        return -energy(centers, labels).double() + 8 * math.log(2 / LEVELS)


def moments(x: Tensor) -> Tensor:
    levels = (((x + 1) / 2 * LEVELS).floor() - 1).flatten(1).double()
    return (levels[:, :, None] * levels[:, None]).flatten(1)


@pytest.mark.parametrize("y", [None, 1])
@pytest.mark.parametrize("step_size", [0.3, 1.0])
def test_exact_samples_stay_exact(
    model: tuple[JointEnergy, Box], centers: Tensor, step_size: float, y: int | None
) -> None:
    energy, support = model
    p = log_p(energy, centers, y).softmax(0)
    generator = make_generator(0, "exact")
    x = centers[torch.multinomial(p, N, replacement=True, generator=generator)]
    conditional = energy if y is None else functools.partial(energy, y=torch.tensor([y]))
    state = NoiseRefresh(step_size, steps=3).run(conditional, x, support=support, generator=generator)
    assert state.accepted is not None
    assert 0.1 < state.accepted.double().mean() < 0.95
    exact, products = p @ moments(centers), moments(state.x)
    assert ((products.mean(0) - exact) / (products.std(0) / N**0.5).clamp(min=1e-4)).abs().max() < 5


def test_chains_from_the_reference_reach_the_model(model: tuple[JointEnergy, Box], centers: Tensor) -> None:
    energy, support = model
    generator = make_generator(0, "chains")
    x = NoiseRefresh(0.7, steps=100)(
        energy, support.sample(N, generator=generator), support=support, generator=generator
    )
    exact, products = log_p(energy, centers).softmax(0) @ moments(centers), moments(x)
    assert ((products.mean(0) - exact) / (products.std(0) / N**0.5).clamp(min=1e-4)).abs().max() < 5


def test_energies_are_those_before_the_step(model: tuple[JointEnergy, Box]) -> None:
    energy, support = model
    x = support.sample(50, generator=make_generator(0, "x"))
    states = list(NoiseRefresh(steps=2).trajectory(energy, x, support=support, generator=make_generator(0, "steps")))
    for before, state in zip([x, states[0].x], states, strict=True):
        torch.testing.assert_close(state.energy, energy(before).detach(), atol=1e-4, rtol=0)
        kept = ~state.accepted
        torch.testing.assert_close(state.x[kept], before[kept])


def test_log_z_is_exact(model: tuple[JointEnergy, Box], centers: Tensor) -> None:
    energy, support = model
    exact = float(log_p(energy, centers).logsumexp(0))
    estimates = [ais(energy, support, temperatures=20, num_chains=500, seed=seed) for seed in range(8)]
    assert all(estimate.reliable for estimate in estimates)
    errors = torch.tensor([(e.log_z - exact) / e.std_err for e in estimates])
    assert errors.abs().max() < 5
    z = torch.tensor([e.log_z - exact for e in estimates]).exp()
    assert abs(float((z.mean() - 1) / (z.std() / 8**0.5))) < 5


def test_reverse_annealing_from_exact_samples_bounds_log_z(model: tuple[JointEnergy, Box], centers: Tensor) -> None:
    """Kills: chains that move by GHMC, weights of the wrong sign, noise of the reference in place of the samples'."""
    energy, support = model
    log_mass, generator = log_p(energy, centers), make_generator(0, "exact samples")
    exact, estimates = float(log_mass.logsumexp(0)), []
    for _ in range(8):
        x = centers[torch.multinomial(log_mass.softmax(0), 500, replacement=True, generator=generator)]
        x = x + (torch.rand(x.shape, generator=generator) - 0.5) * 2 / LEVELS
        estimates.append(reverse_ais(energy, support, x, exact=True, temperatures=20, generator=generator))
    again = [
        reverse_ais(energy, support, x, exact=True, kernel=kernel, generator=make_generator(0, "kernel"))
        for kernel in (None, NoiseRefresh())
    ]
    assert again[0].log_z == again[1].log_z
    assert all(estimate.reliable for estimate in estimates)
    inverse = torch.tensor([exact - e.log_z for e in estimates]).exp()
    assert abs(float((inverse.mean() - 1) / (inverse.std() / 8**0.5))) < 5
    assert max(abs(e.log_z - exact) / e.std_err for e in estimates) < 5
    forward = ais(energy, support, temperatures=20, num_chains=500, seed=0)
    assert bracket(forward, estimates[0]).reliable


@pytest.mark.parametrize("direct", [False, True])
def test_a_reference_is_not_taken_for_a_pole(
    model: tuple[JointEnergy, Box], centers: Tensor, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Natural images: -log q falls by thousands of nats towards flat ones. Kills: a check of E instead of E + log q."""
    energy, support = model
    seen: list[Tensor] = []

    def integrable(energy: Callable[[Tensor], Tensor], *_: Any) -> Integrability:
        seen.append(energy(centers[:50]).double())
        return Integrability("", 0)

    monkeypatch.setattr(sys.modules[ais.__module__], "integrable", integrable)
    ais(energy, support, proposal=support.reference if direct else None, temperatures=2, num_chains=20, seed=0)
    torch.testing.assert_close(
        seen[0], energy(centers[:50]).double() + support.log_prob(centers[:50]), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("estimate", [ais, functools.partial(reverse_ais, samples=torch.zeros(20, 3), exact=True)])
def test_a_proposal_without_noise_is_rejected(estimate: Callable[..., Any]) -> None:
    box, normal = Box(-1, 1, (3,)), Normal(torch.zeros(3), torch.ones(3))
    for proposal in (None, normal):
        with pytest.raises(ValueError, match="for a proposal that does not make x from noise"):
            estimate(lambda x: x.square().sum(1), support=box, proposal=proposal, kernel=NoiseRefresh())


def test_data_where_no_chain_is_make_an_estimate_unreliable(model: tuple[JointEnergy, Box], centers: Tensor) -> None:
    energy, support = model
    tilt = log_p(energy, centers) - support.log_prob(centers)
    far = NoiseRefresh(0.1)
    lowest, highest = centers[tilt.argsort()[:1]], centers[tilt.argsort()[-30:]]
    support_of_lowest = Box(-1, 1, SHAPE, reference=_At(support.reference, lowest))
    stuck = ais(JointEnergy(energy.classifier, support_of_lowest), support_of_lowest, kernel=far, data=highest)
    assert not stuck.reliable
    assert "of the data" in stuck.why
    assert ais(energy, support, data=support.sample(30)).reliable


class _At(AutoregressiveDensity):
    """A wrong reference, all of whose draws are one image."""

    def __init__(self, density: AutoregressiveDensity, x: Tensor) -> None:
        super().__init__(density.box, LEVELS, radius=1, width=16)
        self.load_state_dict(density.state_dict())
        self.x = x

    def from_noise(self, u: Tensor) -> tuple[Tensor, Tensor]:
        x = self.x.expand(len(u), *SHAPE).clone()
        return x, self.to_noise(x)[1]


def test_patches_cover_all_pixels_alike_and_grow_with_the_step_size() -> None:
    u = torch.zeros(20_000, 1, 6, 6)
    large, small = (_part(u, size, make_generator(0, "patch")).double() for size in (1.0, 0.2))
    assert large.mean() > 2 * small.mean()
    assert (large.mean(0) > 0.05).all()
    assert (small.mean(0) > 0.02).all()
    assert large.flatten(1).all(1).double().mean() > 0.001  # all noise is redrawn now and then
    assert _part(torch.zeros(1000, 7), 1.0, make_generator(0, "vector")).double().mean() == pytest.approx(0.5, abs=0.03)


def test_its_step_adapts_up_to_all_noise(model: tuple[JointEnergy, Box]) -> None:
    _, support = model
    flat = JointEnergy(nn.Sequential(nn.Flatten(), nn.Linear(8, 2)), support)
    nn.init.zeros_(flat.classifier[1].weight)
    adapted = AdaptedSampler(NoiseRefresh(0.5), Adaptation(rate=1.0))
    x, where = support.sample(20), {"support": support, "generator": make_generator(0, "adapt"), "compute": None}
    for _ in range(10):
        adapted.run(flat, x, x, **where)
    assert adapted.current.step_size == 1
    assert adapted.step_scale < 4


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="'step_size'"):
        NoiseRefresh(1.5)
    with pytest.raises(ValueError, match="'steps'"):
        NoiseRefresh(steps=0)
    with pytest.raises(ValueError, match="AutoregressiveDensity"):
        NoiseRefresh()(lambda x: x.sum((1, 2, 3)), torch.zeros(2, *SHAPE), support=Box(-1, 1, SHAPE))
