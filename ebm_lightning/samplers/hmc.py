"""Exact kernels: Hamiltonian Monte Carlo, MALA (one leapfrog step) and GHMC (persistent momentum).

All three use :func:`hamiltonian_move`. It operates on points that store their energy and gradient, so that a change of
temperature needs no new evaluation. Points reflect at the walls of the support, which keeps the move
volume-preserving and reversible. Nothing is clamped.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ebm_lightning.checks import check_integer, check_number, plain_numbers
from ebm_lightning.energies import Energy
from ebm_lightning.samplers.base import Sampler, State
from ebm_lightning.samplers.gradient import value_and_gradient
from ebm_lightning.samplers.preconditioner import TurnedStep
from ebm_lightning.supports import Density, Support
from ebm_lightning.supports.density import zero_gradient


class Phase(NamedTuple):
    """Chains in phase space, with the energies and gradients that a move at any temperature needs.

    Attributes:
        x: Positions, shape (N, *shape).
        v: Momenta in units of the preconditioner, standard normal in equilibrium, shape (N, *shape).
        energy: E(x), shape (N,), float64.
        gradient: Gradient of E(x), shape (N, *shape).
        log_q: Log density of the reference, shape (N,), float64. 0 without a reference.
        log_q_gradient: Gradient of ``log_q``, broadcastable to x. Shape (N, 1, ..., 1) if it is 0.
    """

    x: Tensor
    v: Tensor
    energy: Tensor
    gradient: Tensor
    log_q: Tensor
    log_q_gradient: Tensor


class Tempered:
    r"""The target on the annealing path from a normalized reference q to the model.

    .. math:: \log p_\beta(x) = (1 - \beta)^r \log q(x) - \beta E(x) + const

    Arguments:
        energy: Maps (N, *shape) to (N,).
        reference: q. May be None if ``beta`` is 1.
        beta: Inverse temperature, in [0, 1].
        path_exponent: r, at least 1. With a larger r the weight of q decreases earlier on the path.
    """

    def __init__(
        self, energy: Energy, reference: Density | None = None, beta: float = 1.0, path_exponent: float = 1.0
    ) -> None:
        self.energy = energy
        self.reference = reference
        self.beta = beta
        self.path_exponent = path_exponent

    def at(self, x: Tensor, v: Tensor) -> Phase:
        """Chains at ``x`` with momenta ``v``. Costs one evaluation of the energy and its gradient."""
        energy, gradient = value_and_gradient(self.energy, x)
        if self.reference is None:
            return Phase(
                x, v, energy.double(), gradient, torch.zeros_like(energy, dtype=torch.float64), zero_gradient(x)
            )
        return Phase(x, v, energy.double(), gradient, *self.reference.log_prob_and_gradient(x))

    def potential(self, phase: Phase) -> Tensor:
        """-log p_beta up to a constant, shape (N,), float64."""
        return self.beta * phase.energy - self._reference_weight(self.beta) * phase.log_q

    def gradient(self, phase: Phase) -> Tensor:
        """Gradient of the potential in x, shape (N, *shape)."""
        if self.beta == 1:
            return phase.gradient
        return self.beta * phase.gradient - self._reference_weight(self.beta) * phase.log_q_gradient

    def log_ratio(self, phase: Phase, beta: float) -> Tensor:
        """log p_beta - log p_(self.beta), both unnormalized, shape (N,), float64."""
        if beta == self.beta:  # 0 times an infinite energy would be NaN
            return torch.zeros_like(phase.energy)
        change = self._reference_weight(beta) - self._reference_weight(self.beta)
        return (self.beta - beta) * phase.energy + change * phase.log_q

    def _reference_weight(self, beta: float) -> float:
        """(1 - beta)^r, the exponent of q."""
        return (1 - beta) ** self.path_exponent


def hamiltonian_move(
    target: Tempered,
    phase: Phase,
    step: Tensor | TurnedStep,
    support: Support,
    kernel: "HMC",
    generator: torch.Generator | None,
) -> tuple[Phase, Tensor]:
    r"""Refresh the momentum, integrate the Hamiltonian flow, and accept or reject with a flip of the momentum.

    .. math::
        v \leftarrow \rho v + \sqrt{1 - \rho^2} \xi, \qquad
        \alpha = \min(1, \exp(U(x) - U(x') + (|v|^2 - |v'|^2) / 2)), \qquad v \leftarrow -v \text{ on rejection}

    Arguments:
        target: Provides U and its gradient.
        phase: The chains before the move.
        step: Step size times preconditioner, broadcastable to x; or one that turns, on a support without walls.
        support: Domain, at whose walls chains reflect.
        kernel: Provides the number of leapfrog steps and rho.
        generator: Source of randomness.

    Returns:
        The chains after the move, and whether each accepted it, shape (N,), bool.
    """
    start = phase._replace(v=_refresh(phase.v, kernel.momentum, generator))
    end = start
    for _ in range(kernel.leapfrogs):
        end = _leapfrog(target, end, step, support)
    log_ratio = target.potential(start) - target.potential(end) + (_kinetic(start.v) - _kinetic(end.v))
    u = torch.rand(log_ratio.shape, generator=generator, device=log_ratio.device, dtype=torch.float64)
    accepted = u.log() < log_ratio  # False where the energy is NaN or infinite
    flipped = start._replace(v=-start.v)
    return Phase(*(_where(accepted, a, b) for a, b in zip(end, flipped, strict=True))), accepted


@dataclass(frozen=True)
class HMC(Sampler):
    r"""Hamiltonian Monte Carlo with a fixed step size. Its stationary distribution is exp(-E) for any step size.

    It is exact for the energy *as computed*: in bfloat16 it samples the rounded model. The acceptance rate falls to 0
    as the step size grows. Aim for 0.6 to 0.9.

    References:
        Neal, MCMC using Hamiltonian dynamics, 2011. https://arxiv.org/abs/1206.1901
        Horowitz, A generalized guided Monte Carlo algorithm, 1991, for ``momentum`` above 0.

    Arguments:
        step_size: Step size of the leapfrog integrator, in units of x.
        steps: Moves per call.
        leapfrogs: Leapfrog steps per move. Each needs one gradient.
        momentum: rho in [0, 1), the fraction of the momentum that a move keeps.

    Raises:
        ValueError: A number is out of range.
    """

    step_size: float = 0.1
    steps: int = 20
    leapfrogs: int = 5
    momentum: float = 0.0

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_number("step_size", self.step_size, above=0)
        check_integer("steps", self.steps, at_least=1)
        check_integer("leapfrogs", self.leapfrogs, at_least=1)
        check_number("momentum", self.momentum, at_least=0, below=1)

    def transitions(
        self, energy: Energy, x: Tensor, support: Support, generator: torch.Generator | None
    ) -> Iterator[State]:
        target = Tempered(energy)
        step = torch.tensor(self.step_size, dtype=x.dtype, device=x.device)
        phase = target.at(x, torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype))
        for _ in range(self.steps):
            start = phase
            phase, accepted = hamiltonian_move(target, start, step, support, self, generator)
            yield State(phase.x, start.energy, start.gradient, accepted)

    def scale_step(self, factor: float) -> "HMC":
        return replace(self, step_size=self.step_size * factor)


@dataclass(frozen=True)
class MALA(HMC):
    """The Metropolis-adjusted Langevin algorithm: HMC with one leapfrog step.

    With ``step_size`` h, the proposal is a Langevin step of h^2 / 2 along the negative gradient with noise of standard
    deviation h.

    References:
        Roberts & Tweedie, Exponential convergence of Langevin distributions and their discrete approximations, 1996.
    """

    leapfrogs: int = 1


@dataclass(frozen=True)
class GHMC(HMC):
    """Generalized HMC: one leapfrog step per move, with 80% of the momentum kept.

    The most efficient kernel per gradient for annealing, because chains keep moving in one direction while the
    temperature changes.

    References:
        Horowitz, A generalized guided Monte Carlo algorithm, 1991.
    """

    leapfrogs: int = 1
    momentum: float = 0.8


def _leapfrog(target: Tempered, phase: Phase, step: Tensor | TurnedStep, support: Support) -> Phase:
    v = phase.v - 0.5 * _impulse(step, target.gradient(phase))
    x, sign = support.bounce(phase.x + _displacement(step, v))
    end = target.at(x, sign * v)
    return end._replace(v=end.v - 0.5 * _impulse(step, target.gradient(end)))


def _displacement(step: Tensor | TurnedStep, v: Tensor) -> Tensor:
    return step * v if isinstance(step, Tensor) else step.displacement(v)


def _impulse(step: Tensor | TurnedStep, force: Tensor) -> Tensor:
    return step * force if isinstance(step, Tensor) else step.impulse(force)


def _refresh(v: Tensor, momentum: float, generator: torch.Generator | None) -> Tensor:
    fresh = torch.randn(v.shape, generator=generator, device=v.device, dtype=v.dtype)
    return momentum * v + (1 - momentum**2) ** 0.5 * fresh


def _kinetic(v: Tensor) -> Tensor:
    # Square a copy in place: allocating a second large block costs more than the arithmetic.
    return 0.5 * v.flatten(1).to(torch.float64, copy=True).square_().sum(1)


def _where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *[1] * (a.ndim - 1)), a, b)
