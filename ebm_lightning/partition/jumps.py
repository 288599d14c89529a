"""Metropolis moves without gradients that take the place of some moves of the kernel: flips and scalings."""

from typing import Protocol

import torch
from torch import Tensor

from ebm_lightning.samplers.hmc import Phase, Tempered
from ebm_lightning.supports import Box, Support


class Jump(Protocol):
    """A proposal that a pilot run has prepared, and that does not change while chains carry weights."""

    def to(self, device: torch.device, dtype: torch.dtype) -> "Jump": ...

    def propose(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Points, shape (N, *shape), and the log of the factor by which volumes grow there, shape (N,), float64.

        The inverse of each proposal has to be as likely as the proposal.
        """


def jump_move(
    target: Tempered, phase: Phase, jump: Jump, support: Support, generator: torch.Generator
) -> tuple[Phase, Tensor]:
    """Propose a jump for each chain, and accept or reject it. Momenta stay. Costs one evaluation of the energy.

    Arguments:
        target: Provides the potential.
        phase: The chains before the move.
        jump: What is proposed.
        support: Domain. Jumps beyond its walls are rejected.
        generator: Source of randomness.

    Returns:
        The chains after the move, and whether each accepted it, shape (N,), bool.
    """
    x, log_volume = jump.propose(phase.x, generator)
    inside = support.contains(x) if isinstance(support, Box) else torch.ones_like(phase.energy, dtype=torch.bool)
    proposed = target.at(_where(inside, x, phase.x), phase.v)
    log_ratio = target.potential(phase) - target.potential(proposed) + log_volume
    u = torch.rand(log_ratio.shape, generator=generator, device=log_ratio.device, dtype=torch.float64)
    accepted = inside & (u.log() < log_ratio)  # False where the energy is NaN or infinite
    return Phase(*(_where(accepted, a, b) for a, b in zip(proposed, phase, strict=True))), accepted


def weight_change(before: Phase, after: Phase) -> float:
    """How far a move takes chains in E + log q, on which weights depend, between 0 and 1.

    The mean squared change relative to twice the variance, which is 1 for independent points; a chain counts as 1 at
    most.
    """
    u, v = (phase.energy + phase.log_q for phase in (before, after))
    finite = u.isfinite() & v.isfinite()
    change = (v - u)[finite].square() / (2 * u[finite].var())
    return float(change.nan_to_num(0.0).clamp(max=1).mean()) if len(change) > 1 else 0.0


def _where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *[1] * (a.ndim - 1)), a, b)
