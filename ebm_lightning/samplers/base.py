"""What every kernel shares: the call."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ebm_lightning.energies import Energy
from ebm_lightning.samplers.compute import Compute
from ebm_lightning.samplers.quiet import quiet
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
        self,
        energy: Energy,
        x: Tensor,
        *,
        support: Support | None = None,
        generator: torch.Generator | None = None,
        compute: Compute | None = None,
    ) -> Iterator[State]:
        """Like the call, but yields the state after every step.

        Arguments:
            energy: Maps (N, *shape) to (N,). For E(x, y) pass ``functools.partial(energy, y=y)``.
            x: Starts of the chains, shape (N, *shape). Not changed.
            support: The domain that chains stay in; all of R^D by default.
            generator: Source of all randomness, on the device of ``x``.
            compute: Precision, layout and compilation; by default as the energy and its surroundings have it.
        """
        transitions = self.transitions(energy, _own(x), support or Euclidean(), generator)
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
        """The chains after all steps, shape (N, *shape), detached. Arguments as for :meth:`trajectory`."""
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
        """Like the call, but returns all that is known of the last step."""
        with _prepared(energy, x.device, compute):
            for state in self.transitions(energy, _own(x), support or Euclidean(), generator):
                last = state
        return last

    def shortened(self, factor: float) -> "Sampler":
        """The same kernel, aimed at the same law, with its step ``factor`` times as long."""
        raise NotImplementedError(f"{type(self).__name__} has no step that could be shortened.")


@contextmanager
def _prepared(energy: Energy, device: torch.device, compute: Compute | None) -> Iterator[None]:
    """What a step needs around it: the model quiet and set up, and no graph but that of the gradient in x."""
    with quiet(energy), torch.inference_mode(False), torch.no_grad(), (compute or Compute()).applied(energy, device):
        yield


def _own(x: Tensor) -> Tensor:
    """A float32 (or better) copy of ``x`` that autograd may use, also if inference mode made ``x``."""
    with torch.inference_mode(False):
        return x.clone().detach() if x.dtype == torch.float64 else x.detach().clone().float()
