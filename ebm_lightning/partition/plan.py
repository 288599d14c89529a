"""The path of an annealing run: its shape, temperatures and step sizes, tuned on pilots and then frozen.

Tuning on the chains that carry the weights would bias them.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ebm_lightning.energies import Energy
from ebm_lightning.partition.proposals import Proposal
from ebm_lightning.samplers.hmc import HMC, Phase, Tempered, hamiltonian_move
from ebm_lightning.streams import make_generator
from ebm_lightning.supports import Support

Schedule = Literal["adaptive", "linear", "sigmoid"]
STAGE_CESS = 0.9  # coarser than the run: the pilot only maps the path
STAGE_MOVES = 4
STEP_GAIN = 2.0
TARGET_ACCEPTANCE = 0.7
SIGMOID_SLOPE = 4.0
EARLY_RELEASE = 12.0
LONGER = 0.25  # what an early release may add to the path


@dataclass(frozen=True)
class Plan:
    """A frozen path.

    Attributes:
        betas: Inverse temperatures from 0 to 1, shape (T + 1,), float64.
        steps: Step size times diagonal preconditioner of the move at each later temperature, shape (T, *shape).
        gradient_evaluations: What the pilots cost.
        release: How early the path lets go of q_0, see :class:`~ebm_lightning.samplers.hmc.Tempered`.
    """

    betas: Tensor
    steps: Tensor
    gradient_evaluations: int
    release: float = 1.0


@dataclass(frozen=True)
class Pilot:
    """What a pilot saw at the temperatures that it chose: log steps (S, *shape) and the barrier up to each (S,)."""

    betas: Tensor
    log_steps: Tensor
    barrier: Tensor
    gradient_evaluations: int
    release: float

    def plan(self, temperatures: int, schedule: Schedule) -> Plan:
        """``temperatures`` steps: equally hard ("adaptive"), equally long, or dense at both ends ("sigmoid")."""
        t = torch.linspace(0, 1, temperatures + 1, dtype=torch.float64)
        if schedule == "adaptive":
            betas = _interpolate(t * self.barrier[-1], self.barrier, self.betas)
        elif schedule == "linear":
            betas = t
        else:
            curve = torch.sigmoid(SIGMOID_SLOPE * (2 * t - 1))
            betas = (curve - curve[0]) / (curve[-1] - curve[0])
        betas[0], betas[-1] = 0.0, 1.0
        steps = _interpolate(betas[1:], self.betas, self.log_steps).exp()
        return Plan(betas, steps, self.gradient_evaluations, self.release)


def choose_path(
    energy: Energy, support: Support, proposal: Proposal, kernel: HMC, chains: int, seed: int, device: torch.device
) -> Pilot:
    """The pilot of the better of two paths from q_0: the straight one, or one that lets go of q_0 early.

    On the straight path q_0 thins out modes far from its centre half way, and chains that left them do not come back.
    Letting go early spares the modes, but where the energy's tails are heavy chains then wander off, which shows as
    a longer path. Both pilots see the same random numbers. A uniform q_0 pulls nowhere: all paths are one.

    References:
        Syed et al., Parallel tempering on optimized paths, 2021, for paths off the straight one.
        https://arxiv.org/abs/2102.07720
    """
    straight = run_pilot(energy, support, proposal, kernel, chains, make_generator(seed, "pilot", device=device))
    if proposal.uniform:
        return straight
    most = straight.barrier[-1].item() * (1 + LONGER)
    rng = make_generator(seed, "pilot", device=device)
    early = run_pilot(energy, support, proposal, kernel, chains, rng, EARLY_RELEASE, most)
    chosen = early if early.betas[-1] == 1 else straight
    both = straight.gradient_evaluations + early.gradient_evaluations
    return replace(chosen, gradient_evaluations=both)


def run_pilot(
    energy: Energy,
    support: Support,
    proposal: Proposal,
    kernel: HMC,
    chains: int,
    generator: torch.Generator,
    release: float = 1.0,
    longest: float = math.inf,
) -> Pilot:
    """Sequential Monte Carlo that picks each next temperature by its conditional effective sample size.

    Step sizes follow the target acceptance by Robbins-Monro. Gives up where the barrier passes ``longest``.
    """
    x = proposal.sample(chains, generator)
    target = Tempered(energy, proposal, 0.0, release)
    phase = target.at(x, torch.randn(x.shape, generator=generator, device=x.device))
    log_step, evaluations = -0.25 * math.log(x[0].numel()), chains  # of a width, as leapfrog steps scale with D
    betas, barrier, log_steps = [0.0], [0.0], [_log_scale(target, phase) + log_step]
    while betas[-1] < 1:
        beta = _next_beta(target, phase)
        log_w = target.log_ratio(phase, beta)
        if barrier[-1] + float(log_w.std()) > longest:
            break
        barrier.append(barrier[-1] + float(log_w.std()) + 1e-12)
        betas.append(beta)
        phase = take(phase, systematic(log_w.softmax(0), generator))
        target.beta = beta
        scale = _log_scale(target, phase)
        for move in range(STAGE_MOVES):
            step = (scale + log_step).exp().to(x.dtype)
            phase, accepted = hamiltonian_move(target, phase, step, support, kernel, generator)
            log_step += STEP_GAIN * (float(accepted.float().mean()) - TARGET_ACCEPTANCE) / (1 + move) ** 0.5
            evaluations += chains * kernel.leapfrogs
        log_steps.append(scale + log_step)
    log_steps[0] = log_steps[min(1, len(log_steps) - 1)]
    return Pilot(
        torch.tensor(betas, dtype=torch.float64),
        torch.stack(log_steps).cpu(),
        torch.tensor(barrier, dtype=torch.float64),
        evaluations,
        release,
    )


def systematic(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """Systematic resampling: indices, shape (N,), of which i comes floor or ceil of N w_i times (Carpenter 1999)."""
    u = torch.rand((), generator=generator, device=weights.device, dtype=torch.float64)
    points = (torch.arange(len(weights), device=weights.device, dtype=torch.float64) + u) / len(weights)
    return torch.searchsorted(weights.double().cumsum(0), points).clamp(max=len(weights) - 1)


def take(phase: Phase, index: Tensor) -> Phase:
    """The chains at ``index``, with all that is known of them."""
    return Phase(*(part[index] for part in phase))


def _next_beta(target: Tempered, phase: Phase) -> float:
    """The furthest beta whose conditional ESS, mean(w)^2 / mean(w^2), is at least STAGE_CESS; by bisection."""
    bad = int((~(phase.energy + phase.log_q).isfinite()).sum())
    if bad:
        raise ValueError(f"'energy' should be finite inside the support, got {bad} bad values.")

    def hard(beta: float) -> bool:
        log_w = target.log_ratio(phase, beta)
        w = (log_w - log_w.max()).exp()
        return float(w.mean() ** 2 / w.square().mean()) < STAGE_CESS

    if not hard(1.0):
        return 1.0
    low, high = target.beta, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if hard(middle) else (middle, high)
    return max(low, target.beta + 1e-9)


def _log_scale(target: Tempered, phase: Phase) -> Tensor:
    """Log of the preconditioner: the width of the mode that a chain is in, at most that of all chains.

    For a Gaussian, E[(dU/dx)^2] = 1 / std^2. The spread of the chains would measure the distance between modes.
    """
    squares = target.gradient(phase).double().square().mean(0)
    return -0.5 * (squares + 1 / phase.x.double().var(0).clamp(min=1e-12)).log()


def _interpolate(at: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear through (knots, values), knots increasing; values may have further dimensions."""
    right = torch.searchsorted(knots, at).clamp(1, len(knots) - 1)
    share = ((at - knots[right - 1]) / (knots[right] - knots[right - 1])).clamp(0, 1)
    share = share.view(-1, *[1] * (values.ndim - 1))
    return torch.lerp(values[right - 1], values[right], share)
