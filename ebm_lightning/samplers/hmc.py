"""Exact kernels: Hamiltonian Monte Carlo, its one-step case MALA, and its persistent-momentum case GHMC.

All three are one move, :func:`hamiltonian_move`, on points that carry their energy and gradient with them, so that
a change of temperature costs no evaluation. Walls are reflected at, which keeps the move volume-preserving and
reversible; nothing is clamped.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ebm_lightning.energies import Energy
from ebm_lightning.samplers.base import Sampler, State
from ebm_lightning.samplers.gradient import value_and_gradient
from ebm_lightning.supports import Support

Reference = Callable[[Tensor], tuple[Tensor, Tensor]]
"""log q(x) in float64 and its gradient: (N, *shape) -> (N,), and (N, *shape) or what broadcasts to it."""


class Phase(NamedTuple):
    """Chains in phase space, with all that a move at any temperature needs to know of where they are.

    Attributes:
        x: Positions, shape (N, *shape).
        v: Momenta in units of the preconditioner, standard normal in equilibrium, shape (N, *shape).
        energy: E(x), shape (N,), float64.
        gradient: Its gradient, shape (N, *shape).
        log_q: log density of the reference, shape (N,), float64; 0 without one.
        log_q_gradient: Its gradient, broadcastable to x; shape (N, 1, ..., 1) where it is 0.
    """

    x: Tensor
    v: Tensor
    energy: Tensor
    gradient: Tensor
    log_q: Tensor
    log_q_gradient: Tensor


class Tempered:
    r"""The target between a normalised reference q and the model.

    .. math:: \log p_\beta(x) = (1 - \beta)^r \log q(x) - \beta E(x) + const

    Arguments:
        energy: Maps (N, *shape) to (N,).
        reference: log q and its gradient; may be left out where ``beta`` is 1.
        beta: Inverse temperature of the path, in [0, 1].
        release: r, at least 1: the larger, the earlier the reference lets go.
    """

    def __init__(
        self, energy: Energy, reference: Reference | None = None, beta: float = 1.0, release: float = 1.0
    ) -> None:
        self.energy = energy
        self.reference = reference
        self.beta = beta
        self.release = release

    def at(self, x: Tensor, v: Tensor) -> Phase:
        """The chains at ``x``: one evaluation of the energy and its gradient."""
        energy, gradient = value_and_gradient(self.energy, x)
        if self.reference is None:
            return Phase(x, v, energy.double(), gradient, torch.zeros_like(energy, dtype=torch.float64), flat(x))
        return Phase(x, v, energy.double(), gradient, *self.reference(x))

    def potential(self, phase: Phase) -> Tensor:
        """-log p_beta, shape (N,), float64."""
        return self.beta * phase.energy - self._hold(self.beta) * phase.log_q

    def gradient(self, phase: Phase) -> Tensor:
        if self.beta == 1:
            return phase.gradient
        return self.beta * phase.gradient - self._hold(self.beta) * phase.log_q_gradient

    def log_ratio(self, phase: Phase, beta: float) -> Tensor:
        """log of unnormalised p at ``beta`` over p at ``self.beta``, shape (N,), float64."""
        hold = self._hold(beta) - self._hold(self.beta)
        return (self.beta - beta) * phase.energy + hold * phase.log_q

    def _hold(self, beta: float) -> float:
        """The power of the reference."""
        return (1 - beta) ** self.release


def hamiltonian_move(
    target: Tempered, phase: Phase, step: Tensor, support: Support, kernel: "HMC", generator: torch.Generator | None
) -> tuple[Phase, Tensor]:
    r"""Refresh the momentum, follow the Hamiltonian flow for some leapfrog steps, accept or turn round.

    .. math::
        v \leftarrow \rho v + \sqrt{1 - \rho^2} \xi, \qquad
        \alpha = \min(1, \exp(U(x) - U(x') + (|v|^2 - |v'|^2) / 2)), \qquad v \leftarrow -v \text{ on rejection}

    Arguments:
        target: U and its gradient.
        phase: Where chains are.
        step: Step size times preconditioner, broadcastable to x.
        support: Its walls reflect.
        kernel: The number of leapfrog steps, and rho.
        generator: Source of randomness.

    Returns:
        The chains after the move, and which were accepted, shape (N,), bool.
    """
    start = phase._replace(v=_refresh(phase.v, kernel.momentum, generator))
    end = start
    for _ in range(kernel.leapfrogs):
        end = _leapfrog(target, end, step, support)
    log_ratio = target.potential(start) - target.potential(end) + (_kinetic(start.v) - _kinetic(end.v))
    u = torch.rand(log_ratio.shape, generator=generator, device=log_ratio.device, dtype=torch.float64)
    accepted = u.log() < log_ratio  # False where the energy is NaN or infinite
    turned = start._replace(v=-start.v)
    return Phase(*(_where(accepted, a, b) for a, b in zip(end, turned, strict=True))), accepted


@dataclass(frozen=True)
class HMC(Sampler):
    r"""Hamiltonian Monte Carlo with a fixed step: exact for exp(-E) whatever the step size.

    Exact for the energy *as computed*: under bfloat16 it samples the rounded model. The acceptance rate falls to 0 as
    the step grows; 0.6 to 0.9 is right.

    References:
        Neal, MCMC using Hamiltonian dynamics, 2011. https://arxiv.org/abs/1206.1901
        Horowitz, A generalized guided Monte Carlo algorithm, 1991, for ``momentum`` above 0.

    Arguments:
        step_size: Of the leapfrog integrator, in units of x.
        steps: Moves per call.
        leapfrogs: Leapfrog steps in a move: one gradient each.
        momentum: rho in [0, 1), the share of the momentum kept from move to move.

    Raises:
        ValueError: A number outside its range.
    """

    step_size: float = 0.1
    steps: int = 20
    leapfrogs: int = 5
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not self.step_size > 0:
            raise ValueError(f"'step_size' should be positive, got {self.step_size}.")
        if self.steps < 1:
            raise ValueError(f"'steps' should be at least 1, got {self.steps}.")
        if self.leapfrogs < 1:
            raise ValueError(f"'leapfrogs' should be at least 1, got {self.leapfrogs}.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"'momentum' should be in [0, 1), got {self.momentum}.")

    def transitions(
        self, energy: Energy, x: Tensor, support: Support, generator: torch.Generator | None
    ) -> Iterator[State]:
        target = Tempered(energy)
        step = torch.tensor(self.step_size, dtype=x.dtype, device=x.device)
        phase = target.at(x, torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype))
        for _ in range(self.steps):
            phase, accepted = hamiltonian_move(target, phase, step, support, self, generator)
            yield State(phase.x, phase.energy, phase.gradient, accepted)

    def shortened(self, factor: float) -> "HMC":
        return replace(self, step_size=self.step_size * factor)


@dataclass(frozen=True)
class MALA(HMC):
    """The Metropolis-adjusted Langevin algorithm: HMC with one leapfrog step.

    ``step_size`` h is the integrator's: the Langevin step is h^2 / 2 along the gradient with noise of deviation h.

    References:
        Roberts & Tweedie, Exponential convergence of Langevin distributions and their discrete approximations, 1996.
    """

    leapfrogs: int = 1


@dataclass(frozen=True)
class GHMC(HMC):
    """Generalised HMC: one leapfrog step a move, and four fifths of the momentum kept.

    The best kernel per gradient for annealing: a chain makes way while the temperature changes under it.

    References:
        Horowitz, A generalized guided Monte Carlo algorithm, 1991.
    """

    leapfrogs: int = 1
    momentum: float = 0.8


def flat(x: Tensor) -> Tensor:
    """The gradient of a constant: one 0 for each chain, shape (N, 1, ..., 1), which costs a move next to nothing."""
    return x.new_zeros((len(x), *[1] * (x.ndim - 1)))


def _leapfrog(target: Tempered, phase: Phase, step: Tensor, support: Support) -> Phase:
    v = phase.v - 0.5 * step * target.gradient(phase)
    x, sign = support.bounce(phase.x + step * v)
    end = target.at(x, sign * v)
    return end._replace(v=end.v - 0.5 * step * target.gradient(end))


def _refresh(v: Tensor, momentum: float, generator: torch.Generator | None) -> Tensor:
    fresh = torch.randn(v.shape, generator=generator, device=v.device, dtype=v.dtype)
    return momentum * v + (1 - momentum**2) ** 0.5 * fresh


def _kinetic(v: Tensor) -> Tensor:
    # A copy squared in place: a second large block would be new memory, which costs more than the squares.
    return 0.5 * v.flatten(1).to(torch.float64, copy=True).square_().sum(1)


def _where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *[1] * (a.ndim - 1)), a, b)
