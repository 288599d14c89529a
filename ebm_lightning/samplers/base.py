"""What every kernel shares: the call, the gradient in x, and leaving no trace on the model."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ebm_lightning.energies import Energy
from ebm_lightning.supports import Euclidean, Support


class State(NamedTuple):
    """Where chains are after one step.

    Attributes:
        x: Positions, shape (N, *shape), detached.
        energy: Energies before the step, shape (N,).
        gradient: Gradient of each chain's energy before the step, shape (N, *shape).
        accepted: Whether each chain's move was accepted, shape (N,), bool; None for a kernel that accepts all.
    """

    x: Tensor
    energy: Tensor
    gradient: Tensor
    accepted: Tensor | None = None


class Sampler(ABC):
    """A Markov kernel applied ``steps`` times to N independent chains.

    Works in training, under ``no_grad`` and in Lightning's inference mode. The energy's modules are in eval mode and
    frozen while a step runs, and then as they were; the global random state is untouched if ``generator`` is given.
    """

    steps: int

    @property
    def implied_temperature(self) -> float:
        """T of the law exp(-E / T) that the chains aim at."""
        return 1.0

    @abstractmethod
    def transitions(
        self, energy: Energy, x: Tensor, support: Support, generator: torch.Generator | None
    ) -> Iterator[State]:
        """The chains after each of the ``steps`` steps: the one method that a kernel writes."""

    def trajectory(
        self, energy: Energy, x: Tensor, *, support: Support | None = None, generator: torch.Generator | None = None
    ) -> Iterator[State]:
        """Like the call, but yields the state after every step.

        Arguments:
            energy: Maps (N, *shape) to (N,). For E(x, y) pass ``functools.partial(energy, y=y)``.
            x: Starts of the chains, shape (N, *shape). Not changed.
            support: The domain that chains stay in; all of R^D by default.
            generator: Source of all randomness, on the device of ``x``.
        """
        transitions = self.transitions(energy, _own(x), support or Euclidean(), generator)
        while True:
            with quiet(energy), torch.inference_mode(False), torch.no_grad():
                state = next(transitions, None)
            if state is None:
                return
            yield state

    def __call__(
        self, energy: Energy, x: Tensor, *, support: Support | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The chains after all steps, shape (N, *shape), detached. Arguments as for :meth:`trajectory`."""
        return self.run(energy, x, support=support, generator=generator).x

    def run(
        self, energy: Energy, x: Tensor, *, support: Support | None = None, generator: torch.Generator | None = None
    ) -> State:
        """Like the call, but returns all that is known of the last step."""
        with quiet(energy), torch.inference_mode(False), torch.no_grad():
            for state in self.transitions(energy, _own(x), support or Euclidean(), generator):
                last = state
        return last

    def shortened(self, factor: float) -> "Sampler":
        """The same kernel, aimed at the same law, with its step ``factor`` times as long."""
        raise NotImplementedError(f"{type(self).__name__} has no step that could be shortened.")


def value_and_gradient(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """Each chain's energy (N,) and its gradient in x (N, *shape), both detached.

    The gradient is of the batch sum, so that a chain does not depend on how many run beside it.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = energy(x)
        scaled = _in_float16(x)
        # Each operation's backward pass is in its own precision; under autocast, those in float32 would lose it.
        with torch.autocast(x.device.type, enabled=False):
            gradient = _scaled_gradient(value.sum(), x) if scaled else torch.autograd.grad(value.sum(), x)[0]
    return value.detach(), gradient


def _in_float16(x: Tensor) -> bool:
    device = x.device.type
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16


def _scaled_gradient(total: Tensor, x: Tensor) -> Tensor:
    """The gradient by way of larger ones: inside a float16 network those below 6e-8 would be 0.

    Lightning's gradient scaler knows of the weights' gradients alone. The scale is the largest of a few powers of 2
    with which nothing overflows; it changes no digit, so a chain still does not depend on those beside it.
    """
    for scale in (2.0**16, 2.0**12, 2.0**8, 2.0**4, 1.0):
        (gradient,) = torch.autograd.grad(total, x, torch.full_like(total, scale), retain_graph=True)
        if torch.isfinite(gradient).all():
            break
    return gradient / scale


@contextmanager
def eval_mode(energy: Any) -> Iterator[None]:
    """The energy's modules in eval mode, each put back as it was (a frozen batch norm stays frozen)."""
    trained = [module for module in _modules(energy) if module.training]
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
    learnt = [p for module in _modules(energy) for p in module.parameters(recurse=False) if p.requires_grad]
    with eval_mode(energy):
        for p in learnt:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in learnt:
                p.requires_grad_(True)


def _modules(energy: Any) -> list[nn.Module]:
    """The modules behind an energy: a module, one of its methods, or a ``functools.partial`` of either."""
    while not isinstance(energy, nn.Module):
        energy = getattr(energy, "func", None) or getattr(energy, "__self__", None)
        if energy is None:
            return []
    return list(energy.modules())


def _own(x: Tensor) -> Tensor:
    """A float32 (or better) copy of ``x`` that autograd may use, also if inference mode made ``x``."""
    with torch.inference_mode(False):
        return x.clone().detach() if x.dtype == torch.float64 else x.detach().clone().float()
