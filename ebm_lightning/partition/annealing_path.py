"""The annealing path from the proposal q_0 to the model: its schedule of temperatures, and the chains on it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ebm_lightning.energies import Energy
from ebm_lightning.partition.jumps import Jump, jump_move
from ebm_lightning.partition.preconditioner import log_width
from ebm_lightning.samplers import HMC, NoiseRefresh
from ebm_lightning.samplers.hmc import Phase, Tempered, hamiltonian_move
from ebm_lightning.samplers.preconditioner import Turn, TurnedStep
from ebm_lightning.supports import Density, Support

Schedule = Literal["adaptive", "linear", "sigmoid"]
SIGMOID_SLOPE = 4.0


def spaced_betas(schedule: Schedule, temperatures: int, knots: Tensor, barrier: Tensor) -> Tensor:
    """Inverse temperatures from 0 to 1, shape (temperatures + 1,), float64.

    Arguments:
        schedule: "adaptive" makes all steps equally hard, "linear" equally long, and "sigmoid" is dense at both ends.
        temperatures: Number of steps.
        knots: Inverse temperatures of a pilot run, shape (S,), increasing.
        barrier: How hard it was to get to each of them, shape (S,), increasing.
    """
    t = torch.linspace(0, 1, temperatures + 1, dtype=torch.float64)
    if schedule == "adaptive":
        betas = interpolate(t * barrier[-1], barrier, knots)
    elif schedule == "linear":
        betas = t
    else:
        curve = torch.sigmoid(SIGMOID_SLOPE * (2 * t - 1))
        betas = (curve - curve[0]) / (curve[-1] - curve[0])
    betas[0], betas[-1] = 0.0, 1.0
    return betas


@dataclass(frozen=True)
class Steps:
    """The step of the move at each of T temperatures. Temperatures with the same matrix refer to one copy.

    Attributes:
        sizes: Step size times diagonal preconditioner, shape (T, *shape).
        turns: Matrices that follow it.
        turn_of: Index of each temperature's matrix in ``turns``, shape (T,); -1 for none. None if there are none.
        jumps: Flips and scalings that take the place of a move at some temperatures.
        jumps_at: Index of each temperature's jump in ``jumps``, shape (T,); -1 for none. None if there are none.
    """

    sizes: Tensor
    turns: tuple[Turn, ...] = ()
    turn_of: Tensor | None = None
    jumps: tuple[Jump, ...] = ()
    jumps_at: Tensor | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, t: int) -> "Move":
        jump = -1 if self.jumps_at is None else int(self.jumps_at[t])
        if jump >= 0:
            return self.jumps[jump]
        number = -1 if self.turn_of is None else int(self.turn_of[t])
        return self.sizes[t] if number < 0 else TurnedStep(self.sizes[t], self.turns[number])

    def __iter__(self) -> "Iterator[Move]":
        return (self[t] for t in range(len(self)))

    def have(self, kind: type[Jump]) -> bool:
        """Whether jumps of that kind take the place of some moves."""
        return any(isinstance(jump, kind) for jump in self.jumps)

    @property
    def last(self) -> Tensor | TurnedStep:
        """Step of the last move, which is never a jump."""
        step = self[len(self) - 1]
        assert isinstance(step, Tensor | TurnedStep)
        return step

    def to(self, device: torch.device, dtype: torch.dtype) -> "Steps":
        turns = tuple(turn.to(device, dtype) for turn in self.turns)
        jumps = tuple(jump.to(device, dtype) for jump in self.jumps)
        return Steps(self.sizes.to(device, dtype), turns, self.turn_of, jumps, self.jumps_at)


@dataclass(frozen=True)
class AnnealingPath:
    """Temperatures, step sizes and shape of a path. They do not change while chains carry weights.

    Attributes:
        betas: Inverse temperatures from 0 to 1, shape (T + 1,), float64.
        steps: Step size times preconditioner for the move at each beta after the first, T of them.
        gradient_evaluations: Cost of the pilot runs that tuned the path.
        path_exponent: Power r of (1 - beta) that multiplies log q_0, see :class:`~ebm_lightning.samplers.hmc.Tempered`.
        barrier: How hard the path is: the sum of the standard deviations of the log weights along it, in nats.
        why: Why an estimate on this path is not reliable, in one sentence. Empty if the pilot reached beta = 1.
    """

    betas: Tensor
    steps: Steps
    gradient_evaluations: int
    path_exponent: float = 1.0
    barrier: float = 0.0
    why: str = ""


Move = Tensor | TurnedStep | Jump
"""Step size times preconditioner of one move, or a jump in its place."""


@dataclass(frozen=True)
class Annealing:
    """What is annealed: an energy on its support, starting from a proposal q_0, moved by a kernel."""

    energy: Energy
    support: Support
    proposal: Density
    kernel: HMC | NoiseRefresh

    def begin(
        self, x: Tensor, generator: torch.Generator, beta: float = 0.0, path_exponent: float = 1.0
    ) -> tuple[Tempered, Phase]:
        """The target at ``beta``, and chains at ``x`` with random momenta. Costs one gradient evaluation per chain."""
        target = Tempered(self.energy, self.proposal, beta, path_exponent)
        momenta = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return target, target.at(x, momenta)

    def integrand(self, x: Tensor) -> Tensor:
        """The energy whose exp(-E) has to have a finite integral, shape (N,)."""
        return self.energy(x)

    def move(self, target: Tempered, phase: Phase, step: Move, generator: torch.Generator) -> tuple[Phase, Tensor]:
        """One move of the kernel: the chains after it, and which proposals were accepted, shape (N,), bool."""
        assert isinstance(self.kernel, HMC)
        if isinstance(step, Tensor | TurnedStep):
            return hamiltonian_move(target, phase, step, self.support, self.kernel, generator)
        return jump_move(target, phase, step, self.support, generator)

    def log_width(self, target: Tempered, phase: Phase) -> Tensor:
        """Log of the unit of the step size, broadcastable to x."""
        return log_width(target, phase)

    max_log_step: ClassVar[float] = math.inf

    @property
    def move_cost(self) -> int:
        """Evaluations of the energy per chain and move."""
        assert isinstance(self.kernel, HMC)
        return self.kernel.leapfrogs

    def cost(self, steps: Steps) -> int:
        """Evaluations of the energy per chain of all ``steps``, and of the first energy."""
        jumps = 0 if steps.jumps_at is None else int((steps.jumps_at >= 0).sum())
        return 1 + (len(steps) - jumps) * self.move_cost + jumps

    @property
    def keeps_proposal(self) -> bool:
        """Whether moves at beta = 0 are draws of the proposal, so that nothing is far from where chains start."""
        return False


def next_beta(target: Tempered, phase: Phase, min_ess: float, highest: float = 1.0) -> float:
    """The largest beta whose weights have a relative effective sample size of at least ``min_ess``, by bisection.

    Chains at points of zero density are left out. If all are, the result is ``highest``.

    Arguments:
        target: The current beta.
        phase: The chains, equally weighted.
        min_ess: Smallest mean(w)^2 / mean(w^2).
        highest: Upper bound of the result.
    """
    alive = phase.energy != math.inf

    def too_far(beta: float) -> bool:
        log_w = target.log_ratio(phase, beta)[alive]
        w = (log_w - log_w.max()).exp()
        return float(w.mean() ** 2 / w.square().mean()) < min_ess

    if not alive.any() or not too_far(highest):
        return highest
    low, high = target.beta, highest
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if too_far(middle) else (middle, high)
    return max(low, target.beta + 1e-9)


def interpolate(at: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear interpolation through (knots, values). Knots increase; values may have more dimensions."""
    right = torch.searchsorted(knots, at).clamp(1, len(knots) - 1)
    weight = ((at - knots[right - 1]) / (knots[right] - knots[right - 1])).clamp(0, 1)
    weight = weight.view(-1, *[1] * (values.ndim - 1))
    return torch.lerp(values[right - 1], values[right], weight)
