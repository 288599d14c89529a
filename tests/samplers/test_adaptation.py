"""Step sizes that follow an acceptance rate, and chains that run again while they are behind.

Mutants that these tests kill: a change away from the target; a factor without the rate; the acceptance of the last
repeat in place of the first run; repeats without end, or from the points before the first run; a gap that is not added
to the energy of the data; an energy of the data in training mode.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from ebm_lightning.energies import GaussianEnergy
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import HMC, MALA, SGLD, Adaptation, State

ENERGY = GaussianEnergy(torch.zeros(5), torch.tensor([0.3, 0.5, 1.0, 1.0, 2.0]))


def ended(energy: float, accepted: list[bool] | None = None, x: float = 0.0) -> State:
    """Four chains, of which three accepted."""
    accepted = [True, True, True, False] if accepted is None else accepted
    return State(torch.full((4, 2), float(x)), torch.full((4,), energy), torch.zeros(4, 2), torch.tensor(accepted))


@pytest.mark.parametrize(
    ("sampler", "target"),
    [(MALA(0.01, 2), 0.4), (MALA(0.01, 2), 0.9), (MALA(5.0, 2), 0.6), (HMC(0.05, 2, leapfrogs=3), 0.9)],
)
def test_the_acceptance_converges_to_the_target(sampler, target, seed):
    """From steps that are much too short or too long. Chains start, and so stay, at draws of the Gaussian."""
    adaptation, generator = Adaptation(target, rate=1.0), make_generator(seed, "chains")
    x = ENERGY.std * torch.randn(2000, 5, generator=generator)
    kernel, acceptance = sampler, []
    for i in range(80):
        state = kernel.run(ENERGY, x, generator=generator)
        state, factor, repeats = adaptation.follow(lambda x: pytest.fail("no repeat"), state, math.inf)
        kernel, x = kernel.scale_step(factor), state.x
        acceptance += [float(state.accepted.double().mean())] if i >= 70 else []
        assert repeats == 0
    assert sum(acceptance) / 10 == pytest.approx(target, abs=0.02)


def test_the_factor_is_that_of_the_first_run():
    """log h changes by rate (acceptance - target), and the acceptance of repeats does not count."""
    adaptation = Adaptation(target=0.6, rate=0.1, max_gap=1.0)
    _, factor, repeats = adaptation.follow(lambda x: ended(0.0, [False] * 4), ended(2.0), limit=1.0)
    assert repeats == 1
    assert factor == pytest.approx(math.exp(0.1 * (0.75 - 0.6)))
    assert Adaptation(rate=0.0).follow(ended, ended(0.0), math.inf)[1] == 1


@pytest.mark.parametrize(
    ("limit", "max_repeats", "repeats"), [(math.inf, 8, 0), (10.0, 8, 0), (9.9, 8, 1), (5.0, 8, 2), (-1.0, 3, 3)]
)
def test_chains_run_again_while_they_are_behind(limit, max_repeats, repeats):
    """Each run continues from the last and lowers the energy by 3."""
    seen = []

    def run(x: Tensor) -> State:
        seen.append(float(x[0, 0]))
        return ended(10.0 - 3 * len(seen), x=len(seen))

    state, _, count = Adaptation(max_gap=1.0, max_repeats=max_repeats).follow(run, ended(10.0), limit)
    assert count == repeats
    assert seen == list(range(repeats))
    assert float(state.x[0, 0]) == repeats


def test_the_limit_is_above_the_mean_energy_of_the_data(seed):
    """In eval mode, without a graph, and with the state of the modules restored."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.9))

    def energy(x: Tensor) -> Tensor:
        return -net(x).logsumexp(1)

    x = torch.randn(50, 2)
    limit = Adaptation(max_gap=2.5).limit(energy, x)
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    net.eval()
    assert limit == pytest.approx(float(energy(x).detach().mean()) + 2.5)
    assert Adaptation().limit(lambda x: pytest.fail("not evaluated"), x) == math.inf


def test_samplers_without_acceptance_are_refused():
    state = SGLD(0.1, 0.1, 2).run(ENERGY, torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"'sampler' should accept or reject steps .* got one that does not. Use MALA"):
        Adaptation().follow(ended, state, math.inf)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 0.0}, "'target' should be"),
        ({"target": 1.0}, "'target' should be"),
        ({"rate": -0.1}, "'rate' should be"),
        ({"max_gap": 0.0}, "'max_gap' should be"),
        ({"max_repeats": 0}, "'max_repeats' should be"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Adaptation(**arguments)
