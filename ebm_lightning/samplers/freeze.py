"""Temporarily set the modules behind an energy to eval mode and freeze their parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def eval_mode(energy: Any) -> Iterator[None]:
    """Set the modules behind ``energy`` to eval mode. Those that were in training mode return to it on exit."""
    trained = [module for module in modules_of(energy) if module.training]
    for module in trained:
        module.training = False
    try:
        yield
    finally:
        for module in trained:
            module.training = True


@contextmanager
def frozen(energy: Any) -> Iterator[None]:
    """Set the modules behind ``energy`` to eval mode and freeze their parameters. Both are restored on exit."""
    trainable = [p for module in modules_of(energy) for p in module.parameters(recurse=False) if p.requires_grad]
    with eval_mode(energy):
        for p in trainable:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in trainable:
                p.requires_grad_(True)


def modules_of(energy: Any) -> list[nn.Module]:
    """All modules behind an energy that is a module, a method of one, or a ``functools.partial`` of either."""
    while not isinstance(energy, nn.Module):
        energy = getattr(energy, "func", None) or getattr(energy, "__self__", None)
        if energy is None:
            return []
    return list(energy.modules())
