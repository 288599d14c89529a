"""Modules behind an energy are found wherever a callable holds them, and their state comes back.

Mutants that these tests kill: no search of closures, of globals, of nested functions, of defaults, of keyword
arguments, of the attributes of objects, of containers; a search that follows the functions of torch or large
containers.
"""

import functools
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ebm_lightning.energies import JointEnergy
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import GHMC, SGLD, eval_mode, frozen
from ebm_lightning.samplers.freeze import called_modules, modules_of
from ebm_lightning.supports import Box

NET = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
BOX = Box(-1, 1, (2,))


class Model:
    """Not a module, as a hand-written training loop has it."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def energy(self, x: Tensor) -> Tensor:
        return -self.net(x).logsumexp(1)

    def from_global(self, x: Tensor) -> Tensor:
        return energy_of_global(x)


class Callable(Model):
    def __call__(self, x: Tensor) -> Tensor:
        return self.energy(x)


def energy_of_global(x: Tensor) -> Tensor:
    return -NET(x).logsumexp(1)


def energy_with_argument(net: nn.Module, x: Tensor) -> Tensor:
    return -net(x).logsumexp(1)


def energy_with_keyword(x: Tensor, *, net: nn.Module) -> Tensor:
    return -net(x).logsumexp(1)


def energy_with_default(x: Tensor, net: nn.Module = NET) -> Tensor:
    return -net(x).logsumexp(1)


def energy_with_keyword_default(x: Tensor, *, net: nn.Module = NET) -> Tensor:
    return -net(x).logsumexp(1)


def enclosed():
    net = NET
    return lambda x: -net(x).logsumexp(1)


def ensemble():
    nets = {"first": [NET]}
    return lambda x: sum(-net(x).logsumexp(1) for net in nets["first"])


def of_a_namespace():
    holder = SimpleNamespace(net=NET)
    return lambda x: -holder.net(x).logsumexp(1)


def wrapped():
    inner = enclosed()

    @functools.wraps(inner)
    def outer(x):
        return 2 * inner(x)

    return outer


def of_itself():
    def energy(x, again=True):
        return energy(x, False) if again else -NET(x).logsumexp(1)

    return energy


HIDDEN = {
    "closure": enclosed(),
    "global": lambda x: -NET(x).logsumexp(1),
    "global function": lambda x: energy_of_global(x),
    "nested function": lambda x: (lambda: -NET(x).logsumexp(1))(),
    "default": energy_with_default,
    "keyword default": energy_with_keyword_default,
    "partial argument": functools.partial(energy_with_argument, NET),
    "partial keyword": functools.partial(energy_with_keyword, net=NET),
    "partial of a closure": functools.partial(enclosed()),
    "method of an object": Model(NET).energy,
    "method that calls a function": Model(nn.Identity()).from_global,
    "callable object": Callable(NET),
    "closure over a method": (lambda energy: lambda x: energy(x))(JointEnergy(NET, BOX).forward),
    "object in a closure": of_a_namespace(),
    "containers": ensemble(),
    "decorated": wrapped(),
    "recursive": of_itself(),
}


def state() -> list[object]:
    flags = [(m.training, [p.requires_grad for p in m.parameters()]) for m in NET.modules()]
    return [flags, {k: v.tolist() for k, v in NET.state_dict().items()}]


@pytest.fixture
def training():
    NET.train()
    NET[0].bias.requires_grad_(False)
    yield state()
    NET[0].bias.requires_grad_(True)


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_modules_are_in_eval_mode_and_frozen_meanwhile(name, training):
    assert {id(m) for m in NET.modules()} <= {id(m) for m in modules_of(HIDDEN[name])}
    with eval_mode(HIDDEN[name]):
        assert not any(m.training for m in NET.modules())
    with frozen(HIDDEN[name]):
        assert not any(p.requires_grad for p in NET.parameters())
    assert state() == training


@pytest.mark.parametrize("kernel", [SGLD(0.1, 0.1, 4), GHMC(0.1, 4)], ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("name", ["closure", "global", "callable object"])
def test_a_kernel_does_not_change_a_hidden_module(name, kernel, training):
    """Batch norm of a hidden module moved with every step, and dropout made the energy random."""
    x = BOX.sample(20, generator=make_generator(0, "points"))
    ends = [kernel(HIDDEN[name], x, support=BOX, generator=make_generator(0, "chain")) for _ in range(2)]
    assert torch.equal(*ends)
    assert state() == training


def test_modules_are_restored_after_an_error(training):
    with pytest.raises(RuntimeError), frozen(HIDDEN["closure"]):
        HIDDEN["closure"](torch.zeros(2, 99))
    assert state() == training


def test_each_module_is_found_once_in_the_order_of_modules():
    energy = JointEnergy(NET, BOX)
    for bound in (energy, energy.forward, functools.partial(energy, y=torch.tensor([1])), lambda x: energy(x)):
        assert modules_of(bound) == list(energy.modules())


def test_only_direct_calls_of_a_module_can_be_cut_into_rows():
    """A closure may hold tensors with one entry for each chain, such as labels, which would not be cut along."""
    energy = JointEnergy(NET, BOX)
    assert called_modules(functools.partial(energy.forward, y=None)) == list(energy.modules())
    assert called_modules(lambda x: energy(x)) == []


def test_what_is_not_a_module_is_not_searched_for_long():
    data = [[float(i)] for i in range(100_000)]
    calls = []

    class Entry:
        @property
        def __dict__(self):
            calls.append(self)
            return {}

    entries = [Entry() for _ in range(2000)]
    assert modules_of(lambda x: x.square().sum(1) + len(data) + len(entries)) == []
    assert modules_of(lambda x: torch.relu(x).sum(1)) == modules_of(nn.functional.softplus) == modules_of(abs) == []
    assert not calls
