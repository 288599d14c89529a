"""Step sizes that follow an acceptance rate during training, and chains that keep up with the model."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ebm_lightning.checks import check_integer, check_number, plain_numbers
from ebm_lightning.energies import Energy, log_tilt
from ebm_lightning.samplers.base import Sampler, State
from ebm_lightning.samplers.freeze import frozen


@dataclass(frozen=True)
class Adaptation:
    r"""How the chains of a :class:`~ebm_lightning.JEM` follow the model that is being trained.

    The energy gets steeper during training, so a step that is right at first is rejected later. After each training
    step the step size is changed towards an acceptance rate:

    .. math:: \log h \leftarrow \log h + rate \, (acceptance - target)

    If the learning rate is too high for the chains, the model changes faster than they move: the mean energy of the
    negatives rises above that of the data without limit. With ``max_gap``, chains that are further behind run again,
    up to ``max_repeats`` times, before the weights change. Each repeat costs as much as the chains of one training
    step.

    The step size is part of the model's state. It is saved in checkpoints, and does not change outside of training.

    References:
        Roberts & Rosenthal, Optimal scaling of discrete approximations to Langevin diffusions, 1998, for the target.
        Andrieu & Thoms, A tutorial on adaptive MCMC, 2008, eq. 20.

    Arguments:
        target: Acceptance rate to reach, in (0, 1). 0.574 is the optimum of MALA in high dimension.
        rate: How fast the step size changes. 0 keeps it.
        max_gap: Mean energy of the negatives minus that of the data, both relative to the reference density, in nats,
            above which chains run again. None never runs them again.
        max_repeats: Largest number of further runs for one training step.

    Raises:
        ValueError: A number is out of range.
    """

    target: float = 0.6
    rate: float = 0.05
    max_gap: float | None = None
    max_repeats: int = 8

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_number("target", self.target, above=0, below=1)
        check_number("rate", self.rate, at_least=0)
        check_number("max_gap", self.max_gap, above=0, optional=True)
        check_integer("max_repeats", self.max_repeats, at_least=1)

    def follow(
        self, run: Callable[[Tensor], State], state: State, mean_energy: Callable[[Tensor], float], data: Tensor
    ) -> tuple[State, float, int]:
        """Run chains again while their mean energy is more than ``max_gap`` above that of the data.

        Arguments:
            run: Moves chains from x (N, *shape), by one call of the sampler.
            state: The chains after the first call.
            mean_energy: Maps points to the mean of their energies.
            data: Shape (N, *shape).

        Returns:
            The last state, the factor of the step size, and the number of repeats.

        Raises:
            ValueError: The sampler does not accept or reject steps.
        """
        if state.accepted is None:
            raise ValueError(
                "'sampler' should accept or reject steps for an Adaptation, got one that does not. Use MALA, HMC or "
                "NoiseRefresh."
            )
        repeats, change = 0, float(state.accepted.float().mean()) - self.target
        limit = math.inf if self.max_gap is None else mean_energy(data) + self.max_gap
        while limit < math.inf and repeats < self.max_repeats and mean_energy(state.x) > limit:
            state, repeats = run(state.x), repeats + 1
        return state, math.exp(self.rate * change), repeats


class AdaptedSampler(nn.Module):
    """A sampler whose step size follows an :class:`Adaptation`, as part of a model's state.

    Arguments:
        sampler: Moves chains, with its first step size.
        adaptation: How the step size changes. None keeps it; there is then no state.
    """

    step_scale: Tensor | None

    def __init__(self, sampler: Sampler, adaptation: Adaptation | None = None) -> None:
        super().__init__()
        self.adaptation = adaptation
        self._sampler = sampler
        self.register_buffer("step_scale", None if adaptation is None else torch.ones((), dtype=torch.float64))

    @property
    def current(self) -> Sampler:
        """The sampler with the adapted step size."""
        return self._sampler if self.step_scale is None else self._sampler.scale_step(float(self.step_scale))

    def restart(self, sampler: Sampler) -> None:
        """Use another sampler, with its own step size."""
        self._sampler = sampler
        if self.step_scale is not None:
            self.step_scale.fill_(1.0)

    def scale_step(self, factor: float) -> None:
        """Multiply the first step size by ``factor``. What was adapted is kept."""
        if factor != 1:
            self._sampler = self._sampler.scale_step(factor)

    def run(self, energy: Energy, start: Tensor, data: Tensor, **where: Any) -> tuple[State, int]:
        """Move chains, and adapt the step size.

        Arguments:
            energy: Maps (N, *shape) to (N,).
            start: Initial points, shape (N, *shape).
            data: Data whose mean energy the chains should reach, shape (N, *shape).
            where: ``support``, ``generator`` and ``compute``, as for :meth:`Sampler.run`.

        Returns:
            The last state, and how often the chains ran again.
        """

        def run(x: Tensor) -> State:
            return self.current.run(energy, x, **where)

        state = run(start)
        if self.adaptation is None or self.step_scale is None:
            return state, 0

        def mean_energy(x: Tensor) -> float:
            # Relative to the reference density, which has the same gradient and varies less from batch to batch.
            with frozen(energy), torch.no_grad():
                return -float(log_tilt(energy, where["support"], x).mean())

        state, factor, repeats = self.adaptation.follow(run, state, mean_energy, data)
        changed = float(self.step_scale) * factor
        if self._sampler.scale_step(changed) != self.current:  # a step at its limit would count up without effect
            self.step_scale.fill_(changed)
        return state, repeats
