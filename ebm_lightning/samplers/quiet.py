"""Leaving no trace on the modules behind an energy: eval mode and frozen weights, each then as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def eval_mode(energy: Any) -> Iterator[None]:
    """The energy's modules in eval mode, each put back as it was (a frozen batch norm stays frozen)."""
    trained = [module for module in modules_of(energy) if module.training]
    for module in trained:
        module.training = False
    try:
        yield
    finally:
        for module in trained:
            module.training = True


@contextmanager
def quiet(energy: Any) -> Iterator[None]:
    """The energy's modules in eval mode and its parameters frozen, each put back as it was."""
    learnt = [p for module in modules_of(energy) for p in module.parameters(recurse=False) if p.requires_grad]
    with eval_mode(energy):
        for p in learnt:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in learnt:
                p.requires_grad_(True)


def modules_of(energy: Any) -> list[nn.Module]:
    """The modules behind an energy: a module, one of its methods, or a ``functools.partial`` of either."""
    while not isinstance(energy, nn.Module):
        energy = getattr(energy, "func", None) or getattr(energy, "__self__", None)
        if energy is None:
            return []
    return list(energy.modules())
