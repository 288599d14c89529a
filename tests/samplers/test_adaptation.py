"""Step sizes that follow an acceptance rate, and chains that run again while they are behind.

Mutants that these tests kill: a change away from the target; a factor without the rate; the acceptance of the last
repeat in place of the first run; repeats without end, or from the points before the first run; a gap that is not added
to the energy of the data; energies with the reference density, or in training mode.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from ebm_lightning.energies import GaussianEnergy, JointEnergy
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import HMC, MALA, SGLD, Adaptation, State
from ebm_lightning.samplers.adaptation import AdaptedSampler
from ebm_lightning.supports import Gaussian

ENERGY = GaussianEnergy(torch.zeros(5), torch.tensor([0.3, 0.5, 1.0, 1.0, 2.0]))


def ended(accepted: list[bool] | None = None, x: float = 0.0) -> State:
    """Four chains, of which three accepted."""
    accepted = [True, True, True, False] if accepted is None else accepted
    return State(torch.full((4, 2), float(x)), torch.zeros(4), torch.zeros(4, 2), torch.tensor(accepted))


def no_repeat(x: Tensor) -> State:
    pytest.fail("the chains should not run again")


def not_evaluated(x: Tensor) -> float:
    pytest.fail("without 'max_gap' energies are not needed")


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
        state, factor, repeats = adaptation.follow(no_repeat, state, not_evaluated, x)
        kernel, x = kernel.scale_step(factor), state.x
        acceptance += [float(state.accepted.double().mean())] if i >= 70 else []
        assert repeats == 0
    assert sum(acceptance) / 10 == pytest.approx(target, abs=0.02)


def test_the_factor_is_that_of_the_first_run():
    """log h changes by rate (acceptance - target), and the acceptance of repeats does not count."""
    adaptation = Adaptation(target=0.6, rate=0.1, max_gap=1.0)
    energies = iter([0.0, 2.0, 0.0])  # of the data, and of the chains after the first and the second run
    data = torch.zeros(4, 2)
    _, factor, repeats = adaptation.follow(lambda x: ended([False] * 4), ended(), lambda x: next(energies), data)
    assert repeats == 1
    assert factor == pytest.approx(math.exp(0.1 * (0.75 - 0.6)))
    assert Adaptation(rate=0.0).follow(no_repeat, ended(), not_evaluated, data)[1] == 1


@pytest.mark.parametrize(("of_data", "max_repeats", "repeats"), [(9.0, 8, 0), (8.9, 8, 1), (4.0, 8, 2), (-2.0, 3, 3)])
def test_chains_run_again_while_they_are_behind(of_data, max_repeats, repeats):
    """Each run continues from the last and lowers the energy, from 10, by 3. The gap may be 1."""
    seen = []

    def run(x: Tensor) -> State:
        seen.append(float(x[0, 0]))
        return ended(x=len(seen))

    def mean_energy(x: Tensor) -> float:
        return of_data if len(x) == 7 else 10.0 - 3 * float(x[0, 0])

    data = torch.zeros(7, 2)
    state, _, count = Adaptation(max_gap=1.0, max_repeats=max_repeats).follow(run, ended(), mean_energy, data)
    assert count == repeats
    assert seen == list(range(repeats))
    assert float(state.x[0, 0]) == repeats


def test_the_gap_is_relative_to_the_reference_density(seed):
    """In eval mode, without a graph, and with the state of the modules restored."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.9))
    support = Gaussian(0.0, 1.0, (2,))
    energy, generator = JointEnergy(net, support), make_generator(seed, "gap")
    far, near = 3 + torch.randn(50, 2, generator=generator), torch.randn(50, 2, generator=generator)
    where = {"support": support, "generator": generator, "compute": None}

    def repeats(max_gap: float) -> int:
        adapted = AdaptedSampler(MALA(1e-9, 1), Adaptation(max_gap=max_gap, max_repeats=1))
        return adapted.run(energy, far, near, **where)[1]

    relative = float((net.eval()(near).logsumexp(1).mean() - net(far).logsumexp(1).mean()).detach())
    if relative < 0:  # chains at the other points would then be behind
        far, near, relative = near, far, -relative
    net.train()
    assert repeats(relative - 1e-3) == 1
    assert repeats(relative + 1e-3) == 0
    assert net.training
    assert all(p.requires_grad for p in net.parameters())


def test_samplers_without_acceptance_are_refused():
    state = SGLD(0.1, 0.1, 2).run(ENERGY, torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"'sampler' should accept or reject steps .* got one that does not. Use MALA"):
        Adaptation().follow(no_repeat, state, not_evaluated, state.x)


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
