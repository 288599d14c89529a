"""Pilot runs: sequential Monte Carlo that maps the annealing path and tunes its temperatures and step sizes.

The pilot's chains are separate from those of the estimate. Tuning on the chains that carry the weights would bias it.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ebm_lightning.partition.annealing_path import Annealing, AnnealingPath, Schedule, interpolate, spaced_betas
from ebm_lightning.partition.resampling import systematic, take
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import frozen
from ebm_lightning.samplers.hmc import Phase, Tempered

PILOT_CHAINS = 200
STAGE_CESS = 0.9  # coarser than the main run: the pilot only maps the path
STAGE_MOVES = 4
STEP_GAIN = 2.0
TARGET_ACCEPTANCE = 0.7
EARLY_EXPONENT = 12.0
MAX_EXTENSION = 0.25  # relative increase of the barrier that is accepted for EARLY_EXPONENT


@dataclass(frozen=True)
class PilotRun:
    """What a pilot run measured at each of its S temperatures.

    Attributes:
        betas: Inverse temperatures that the pilot chose, shape (S,), float64.
        log_steps: Log of the tuned step size times preconditioner, shape (S, *shape).
        barrier: Sum of the standard deviations of the log weights up to each beta, shape (S,), float64.
        gradient_evaluations: Cost of the run.
        path_exponent: Exponent of the path that it followed.
    """

    betas: Tensor
    log_steps: Tensor
    barrier: Tensor
    gradient_evaluations: int
    path_exponent: float

    def path(self, temperatures: int, schedule: Schedule) -> AnnealingPath:
        """A path of ``temperatures`` steps with that spacing."""
        betas = spaced_betas(schedule, temperatures, self.betas, self.barrier)
        steps = interpolate(betas[1:], self.betas, self.log_steps).exp()
        return AnnealingPath(betas, steps, self.gradient_evaluations, self.path_exponent)


def tune_path(
    annealing: Annealing, temperatures: int, schedule: Schedule, seed: int, device: torch.device
) -> AnnealingPath:
    """A path of ``temperatures`` steps, tuned by pilot runs with a separate random stream."""
    with frozen(annealing.energy), torch.inference_mode(False), torch.no_grad():
        return choose_pilot(annealing, seed, device).path(temperatures, schedule)


def choose_pilot(annealing: Annealing, seed: int, device: torch.device) -> PilotRun:
    """Run pilots with path exponent 1 and 12, and return the better one.

    With exponent 1, the reference density under-weights modes far from its center mid-path, and chains that have left
    them do not return. Exponent 12 removes the reference density early, which keeps these modes. But chains then
    wander off where the energy has heavy tails, and the barrier grows. So 12 is chosen if its barrier is at most a
    quarter higher. Both pilots use the same random numbers. With a uniform q_0 the exponent makes no difference.

    References:
        Syed et al., Parallel tempering on optimized paths, 2021, for nonlinear paths.
        https://arxiv.org/abs/2102.07720
    """
    linear = run_pilot(annealing, make_generator(seed, "pilot", device=device))
    if annealing.proposal.constant:
        return linear
    max_barrier = linear.barrier[-1].item() * (1 + MAX_EXTENSION)
    early = run_pilot(annealing, make_generator(seed, "pilot", device=device), EARLY_EXPONENT, max_barrier)
    chosen = early if early.betas[-1] == 1 else linear
    return replace(chosen, gradient_evaluations=linear.gradient_evaluations + early.gradient_evaluations)


def run_pilot(
    annealing: Annealing,
    generator: torch.Generator,
    path_exponent: float = 1.0,
    max_barrier: float = math.inf,
) -> PilotRun:
    """Anneal with resampling at every stage. Stops before beta = 1 if the barrier would exceed ``max_barrier``."""
    x = annealing.proposal.sample(PILOT_CHAINS, generator=generator)
    target, phase = annealing.begin(x, generator, path_exponent=path_exponent)
    log_step = -0.25 * math.log(x[0].numel())  # relative to the width; leapfrog steps scale as D^(-1/4)
    betas, barrier, log_steps = [0.0], [0.0], [_log_width(target, phase) + log_step]
    while betas[-1] < 1:
        beta = _next_beta(target, phase)
        log_w = target.log_ratio(phase, beta)
        length = barrier[-1] + float(log_w.std())
        if length > max_barrier:
            break
        barrier.append(length + 1e-12)  # increasing even where the energy is constant
        betas.append(beta)
        phase, target.beta = take(phase, systematic(log_w.softmax(0), generator)), beta
        phase, log_step, tuned = _tune_step(annealing, target, phase, log_step, generator)
        log_steps.append(tuned)
    log_steps[0] = log_steps[min(1, len(log_steps) - 1)]
    return PilotRun(
        torch.tensor(betas, dtype=torch.float64),
        torch.stack(log_steps).cpu(),
        torch.tensor(barrier, dtype=torch.float64),
        PILOT_CHAINS * (1 + (len(betas) - 1) * STAGE_MOVES * annealing.kernel.leapfrogs),
        path_exponent,
    )


def _tune_step(
    annealing: Annealing, target: Tempered, phase: Phase, log_step: float, generator: torch.Generator
) -> tuple[Phase, float, Tensor]:
    """Moves at one beta that adapt the step size to the target acceptance (Robbins & Monro 1951).

    Returns:
        The chains, the log of the relative step size, and the log of the step size of each component.
    """
    width = _log_width(target, phase)
    for move in range(STAGE_MOVES):
        step = (width + log_step).exp().to(phase.x.dtype)
        phase, accepted = annealing.move(target, phase, step, generator)
        log_step += STEP_GAIN * (float(accepted.float().mean()) - TARGET_ACCEPTANCE) / (1 + move) ** 0.5
    return phase, log_step, width + log_step


def _next_beta(target: Tempered, phase: Phase) -> float:
    """The largest beta whose conditional ESS, mean(w)^2 / mean(w^2), is at least STAGE_CESS, by bisection."""
    bad = int((~(phase.energy + phase.log_q).isfinite()).sum())
    if bad:
        raise ValueError(f"'energy' should be finite inside the support, got {bad} infinite or NaN values.")

    def too_far(beta: float) -> bool:
        log_w = target.log_ratio(phase, beta)
        w = (log_w - log_w.max()).exp()
        return float(w.mean() ** 2 / w.square().mean()) < STAGE_CESS

    if not too_far(1.0):
        return 1.0
    low, high = target.beta, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if too_far(middle) else (middle, high)
    return max(low, target.beta + 1e-9)


def _log_width(target: Tempered, phase: Phase) -> Tensor:
    """Log of the width of the modes in each component, at most the spread of all chains; the preconditioner.

    For a Gaussian, E[(dU/dx)^2] = 1 / std^2. The spread of the chains would measure the distance between modes.
    """
    squares = target.gradient(phase).double().square().mean(0)
    return -0.5 * (squares + 1 / phase.x.double().var(0).clamp(min=1e-12)).log()
