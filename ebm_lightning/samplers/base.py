"""Base class of samplers and the state of their chains."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ebm_lightning.energies import Energy
from ebm_lightning.samplers.compute import Compute
from ebm_lightning.samplers.freeze import frozen
from ebm_lightning.supports import Euclidean, Support

Progress = Callable[[Iterable[int]], Iterable[int]]
"""Wraps an iterable to show a progress bar, such as ``tqdm.tqdm``."""


AS_GIVEN = Compute()  # the precision and layout of the surrounding code


class State(NamedTuple):
    """N chains after one step of any kernel.

    Attributes:
        x: Positions after the step, shape (N, *shape), detached.
        energy: Energies at the positions before the step, shape (N,). Energies after the step would cost one more
            evaluation.
        gradient: Gradients of the energy at the positions before the step, broadcastable to (N, *shape). 0 for
            :class:`BlockGibbs`, which does not compute them.
        accepted: Whether each chain accepted the step, shape (N,), bool. None for kernels without acceptance.
    """

    x: Tensor
    energy: Tensor
    gradient: Tensor
    accepted: Tensor | None = None


class Sampler(ABC):
    """A Markov kernel that is applied ``steps`` times to N independent chains.

    Works in training, under ``no_grad`` and in inference mode. During a step the modules behind the energy are in eval
    mode and frozen; their mode and ``requires_grad`` flags are restored afterwards. The global random state does not
    change if ``generator`` is given.
    """

    steps: int

    @property
    def implied_temperature(self) -> float:
        """T of the target distribution exp(-E / T)."""
        return 1.0

    @abstractmethod
    def transitions(
        self, energy: Energy, x: Tensor, support: Support, generator: torch.Generator | None
    ) -> Iterator[State]:
        """Yield the chains after each of the ``steps`` steps. Subclasses implement this method."""

    def trajectory(
        self,
        energy: Energy,
        x: Tensor,
        *,
        support: Support | None = None,
        generator: torch.Generator | None = None,
        compute: Compute | None = None,
    ) -> Iterator[State]:
        """Yield the state after every step.

        Arguments:
            energy: Maps (N, *shape) to (N,). For E(x, y) pass ``functools.partial(energy, y=y)``.
            x: Initial points of the chains, shape (N, *shape). Not modified.
            support: Domain of the chains. R^D by default.
            generator: Source of all randomness, on the device of ``x``.
            compute: Precision, memory layout and compilation. By default those of the caller.
        """
        transitions = self.transitions(energy, _copied(x), support or Euclidean(), generator)
        while True:
            with _prepared(energy, x.device, compute):
                state = next(transitions, None)
            if state is None:
                return
            yield state

    def __call__(
        self,
        energy: Energy,
        x: Tensor,
        *,
        support: Support | None = None,
        generator: torch.Generator | None = None,
        compute: Compute | None = None,
    ) -> Tensor:
        """The positions after all steps, shape (N, *shape), detached. Arguments as for :meth:`trajectory`."""
        return self.run(energy, x, support=support, generator=generator, compute=compute).x

    def run(
        self,
        energy: Energy,
        x: Tensor,
        *,
        support: Support | None = None,
        generator: torch.Generator | None = None,
        compute: Compute | None = None,
    ) -> State:
        """The state after all steps. Arguments as for :meth:`trajectory`."""
        with _prepared(energy, x.device, compute):
            for state in self.transitions(energy, _copied(x), support or Euclidean(), generator):
                last = state
        return last

    def with_steps(self, steps: int) -> "Sampler":
        """The same kernel with another number of steps per call."""
        changed = copy.copy(self)
        object.__setattr__(changed, "steps", steps)  # samplers of this library are frozen dataclasses
        return changed

    def scale_step(self, factor: float) -> "Sampler":
        """The same kernel with the same target, and its step size multiplied by ``factor``."""
        raise NotImplementedError(f"{type(self).__name__} has no step size.")


@contextmanager
def _prepared(energy: Energy, device: torch.device, compute: Compute | None) -> Iterator[None]:
    """Set up a step: modules frozen and in eval mode, ``compute`` applied, and a graph only for the gradient in x."""
    with frozen(energy), torch.inference_mode(False), torch.no_grad(), (compute or AS_GIVEN).applied(energy, device):
        yield


def _copied(x: Tensor) -> Tensor:
    """A copy of ``x`` in float32 or better that autograd accepts, also if ``x`` was created in inference mode."""
    with torch.inference_mode(False):
        return x.clone().detach() if x.dtype == torch.float64 else x.detach().clone().float()
