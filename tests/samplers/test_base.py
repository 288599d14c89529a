"""The contract of all samplers: what ``State`` means, and what a call must not change.

Mutants that ``check_states`` kills, each by a test: the energy after the step, the gradient after the step, a gradient
that is never updated, positions before the step.
"""

import functools
import subprocess
import sys
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from ebm_lightning.energies import Energy, GaussianEnergy, JointEnergy
from ebm_lightning.networks import MLP
from ebm_lightning.rbm import RBMLogits
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import GHMC, HMC, MALA, PYLD, SGLD, BlockGibbs, Sampler, State
from ebm_lightning.supports import Binary, Box, Euclidean

BOX = Box(-1, 1, (3,))
SAMPLERS: dict[str, Sampler] = {
    "SGLD": SGLD(0.1, 0.2, 6, max_gradient=0.5),
    "PYLD": PYLD(0.05, 0.2, 6, 3),
    "HMC": HMC(0.4, 6, 3),
    "MALA": MALA(0.8, 6),
    "GHMC": GHMC(0.8, 6),
    "BlockGibbs": BlockGibbs(6),
}
GRADIENT_SAMPLERS = [name for name in SAMPLERS if name != "BlockGibbs"]


def steep_energy() -> JointEnergy:
    net = MLP(3, 4, (8,))
    with torch.no_grad():
        net.layers[-1].weight.mul_(8)
    return JointEnergy(net, BOX)


def energy_of(name: str) -> JointEnergy:
    return JointEnergy(RBMLogits(5, 4, 3), Binary((5,))) if name == "BlockGibbs" else steep_energy()


def check_states(name: str, energy: Energy, start: Tensor, states: Iterable[State]) -> None:
    """Assert that energies and gradients are at the previous positions, and that ``x`` is a new position."""
    x, moved = start, False
    for state in states:
        here = x.clone().requires_grad_()
        value = energy(here)
        gradient = torch.zeros_like(x) if name == "BlockGibbs" else torch.autograd.grad(value.sum(), here)[0]
        torch.testing.assert_close(state.energy.double(), value.detach().double())
        torch.testing.assert_close(state.gradient.expand_as(x), gradient)
        changed = (state.x != x).any(1)
        if state.accepted is not None:
            assert torch.equal(state.accepted, changed)
        moved = moved or bool(changed.any())
        x = state.x
    assert moved


@pytest.mark.parametrize("labeled", [False, True], ids=["E(x)", "E(x, y)"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_energy_and_gradient_are_before_the_step_and_x_is_after(name, labeled, seed):
    joint = energy_of(name)
    energy: Energy = functools.partial(joint, y=torch.arange(40) % 3) if labeled else joint
    start = joint.support.sample(40, generator=make_generator(seed, "start"))
    arguments = {"support": joint.support}
    states = list(SAMPLERS[name].trajectory(energy, start, generator=make_generator(seed, "chain"), **arguments))
    assert len(states) == 6
    check_states(name, energy, start, states)
    for state in states:
        assert state.x.shape == start.shape
        assert state.energy.shape == (40,)
        assert not any(t.requires_grad for t in (state.x, state.energy, state.gradient))
        assert joint.support.contains(state.x).all()
        assert (state.accepted is None) == (name in ("SGLD", "PYLD", "BlockGibbs"))
    last = SAMPLERS[name].run(energy, start, generator=make_generator(seed, "chain"), **arguments)
    for a, b in zip(last, states[-1], strict=True):
        assert a is b is None or torch.equal(a, b)
    called = SAMPLERS[name](energy, start, generator=make_generator(seed, "chain"), **arguments)
    assert torch.equal(called, last.x)


def shifted(states: list[State], field: str) -> list[State]:
    later = [*states[1:], states[-1]]
    return [s._replace(**{field: getattr(t, field)}) for s, t in zip(states, later, strict=True)]


MUTANTS = {
    "energy after the step": lambda states, start: shifted(states, "energy"),
    "gradient after the step": lambda states, start: shifted(states, "gradient"),
    "stale gradient": lambda states, start: [s._replace(gradient=states[0].gradient) for s in states],
    "x before the step": lambda states, start: [
        s._replace(x=x) for s, x in zip(states, [start, *(s.x for s in states)], strict=False)
    ],
}


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("name", GRADIENT_SAMPLERS)
def test_the_contract_kills(name, mutant, seed):
    energy, start = steep_energy(), BOX.sample(40, generator=make_generator(seed, "start"))
    states = list(SAMPLERS[name].trajectory(energy, start, support=BOX, generator=make_generator(seed, "chain")))
    check_states(name, energy, start, states)
    with pytest.raises(AssertionError):
        check_states(name, energy, start, MUTANTS[mutant](states, start))


# A call changes nothing but the chains.

TARGET = GaussianEnergy(torch.tensor([0.5]), torch.tensor([0.8]))
KERNEL = SGLD(step_size=0.3, noise_std=0.5, steps=7)


class Noisy(nn.Module):
    """A classifier with everything that sampling could change."""

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
def test_a_call_does_not_change_the_module_or_the_global_random_state(noisy, method):
    noisy.classifier.frozen_norm.eval()
    before, x = fingerprint(noisy), torch.randn(6, 4, generator=make_generator(0))
    start, generator = x.clone(), make_generator(0, "chain")
    if method == "call":
        KERNEL(noisy, x, generator=generator)
    elif method == "partial":
        KERNEL(functools.partial(noisy, y=torch.arange(6) % 3), x, generator=generator)
    else:
        for _ in KERNEL.trajectory(noisy, x, generator=generator):
            assert fingerprint(noisy) == before, "also between steps"
    assert fingerprint(noisy) == before
    assert torch.equal(x, start)


def test_a_call_that_fails_does_not_change_the_module(noisy):
    noisy.classifier.frozen_norm.eval()
    before = fingerprint(noisy)
    with pytest.raises(RuntimeError):
        KERNEL(noisy, torch.zeros(2, 99), generator=make_generator(0))
    assert fingerprint(noisy) == before


def test_chains_do_not_depend_on_each_other(noisy):
    x, descent = torch.randn(6, 4), SGLD(0.1, 0.0, 5)
    together = descent(noisy, x)
    separate = torch.cat([descent(noisy, row[None]) for row in x])
    torch.testing.assert_close(together, separate)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_sampling_works_without_gradients(noisy, mode):
    x = torch.randn(6, 4)
    expected = KERNEL(noisy, x, generator=make_generator(1))
    with mode():
        inside = KERNEL(noisy, x.clone(), generator=make_generator(1))
        path = [state.x for state in KERNEL.trajectory(noisy, x.clone(), generator=make_generator(1))]
        assert not torch.is_grad_enabled()
    assert torch.equal(inside, expected)
    assert len(path) == KERNEL.steps
    assert torch.equal(path[-1], expected)
    assert not inside.is_inference()


def test_half_precision_chains_are_stepped_in_float32():
    assert KERNEL(TARGET, torch.zeros(3, 1, dtype=torch.bfloat16)).dtype == torch.float32
    assert KERNEL(TARGET, torch.zeros(3, 1, dtype=torch.float64)).dtype == torch.float64


def test_equal_streams_give_equal_chains_and_others_do_not():
    x = torch.zeros(3, 1)
    a, b, c = (KERNEL(TARGET, x, generator=make_generator(0, rank, "chains")) for rank in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_kernel_without_a_step_size_cannot_scale_it():
    with pytest.raises(NotImplementedError, match="BlockGibbs has no step size"):
        BlockGibbs().scale_step(0.5)


IMPORTS = """
import sys, torch
before = set(sys.modules)
from ebm_lightning import chains, energies, networks, partition, rbm, rng, samplers, supports
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names)), sum(name.startswith("torch.") for name in set(sys.modules) - before))
"""


@pytest.mark.slow
def test_core_modules_only_import_what_torch_has_imported():
    """Kills: an import of torch._dynamo, which takes as long as that of torch."""
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ebm_lightning", "0"]
