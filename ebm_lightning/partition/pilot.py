"""Pilot runs: sequential Monte Carlo that maps the annealing path and tunes its temperatures and step sizes.

The pilot's chains are separate from those of the estimate. Tuning on the chains that carry the weights would bias it.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypeVar

import torch

from ebm_lightning.partition.annealing_path import Annealing, AnnealingPath, Schedule, next_beta
from ebm_lightning.partition.flips import FlipFinder
from ebm_lightning.partition.pilot_run import PilotRun
from ebm_lightning.partition.preconditioner import Scale, change, choose_scale, turns
from ebm_lightning.partition.scalings import ScalingFinder
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import frozen
from ebm_lightning.samplers.base import Progress
from ebm_lightning.samplers.hmc import Phase, Tempered
from ebm_lightning.samplers.preconditioner import TurnedStep
from ebm_lightning.samplers.resampling import systematic, take

T = TypeVar("T")
Use = Literal["try", "move"]
PILOT_CHAINS = 200
STAGE_CESS = 0.9  # coarser than the main run: the pilot only maps the path
STAGE_MOVES = 4
MIN_STAGES, STAGES_PER_TEMPERATURE = 200, 2  # a pilot stops at the larger of 200 and twice the run's temperatures
CHOSEN = range(100, 2001)  # from which the number of temperatures is chosen, if it is not given
STEP_GAIN = 2.0
TARGET_ACCEPTANCE = 0.7
EARLY_EXPONENT = 12.0
MAX_EXTENSION = 0.25  # relative increase of the barrier that is accepted for EARLY_EXPONENT
EASY_BARRIER = 1.0  # nats; on a shorter path, exponent 1 starves no mode
MAX_POWER_DROP = 0.1  # of q_0 per stage, so that a pilot does not jump over a detour of the path


def tune_path(
    annealing: Annealing,
    temperatures: int | None,
    schedule: Schedule,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
) -> AnnealingPath:
    r"""A path of ``temperatures`` steps, tuned by pilot runs with a separate random stream.

    A pilot run stops at 200 stages or twice ``temperatures``, whichever is larger. At that length, the log weights
    of a run change by .7 or more at every temperature. The path then says ``why`` it is not reliable.

    Without ``temperatures`` the path gets :math:`2 b^2` steps for its barrier b, at least 100 and at most 2000. In
    equilibrium the relative effective sample size is then :math:`e^{-1/2}`.

    Arguments:
        progress: Wraps the loop over the stages of each pilot run, at most the limit.
    """
    stages = max(MIN_STAGES, STAGES_PER_TEMPERATURE * (CHOSEN[-1] if temperatures is None else temperatures))
    with frozen(annealing.energy), torch.inference_mode(False), torch.no_grad():
        pilot = choose_pilot(annealing, seed, device, stages, progress)
        return pilot.path(temperatures or enough_temperatures(float(pilot.barrier[-1])), schedule)


def enough_temperatures(barrier: float) -> int:
    """Number of temperatures for a path with that barrier, in nats."""
    return min(max(math.ceil(2 * barrier**2), CHOSEN[0]), CHOSEN[-1])


def choose_pilot(
    annealing: Annealing, seed: int, device: torch.device, max_stages: int, progress: Progress | None = None
) -> PilotRun:
    """Run pilots with path exponent 1 and 12, and return the better one.

    With exponent 1, the reference density under-weights modes far from its center mid-path, and chains that have left
    them do not return. Exponent 12 removes the reference density early, which keeps these modes. But chains then
    wander off where the energy has heavy tails, and the barrier grows. So 12 is chosen if its barrier is at most a
    quarter higher. Below 1 nat the energy is close to the reference density, and exponent 1 is taken without a second
    pilot. Both pilots use the same random numbers. With a uniform q_0 the exponent makes no difference.

    Both also try scalings without using them. If these are worthwhile the better pilot is repeated with them, because a
    pilot has to move as the run will.

    References:
        Syed et al., Parallel tempering on optimized paths, 2021, for nonlinear paths.
        https://arxiv.org/abs/2102.07720
    """

    def run(exponent: float, max_barrier: float, scalings: Use | None) -> PilotRun:
        generator = make_generator(seed, "pilot", device=device)
        return run_pilot(annealing, generator, exponent, max_barrier, max_stages, progress, scalings)

    chosen = linear = run(1.0, math.inf, None if annealing.keeps_proposal else "try")
    cost, easy = linear.gradient_evaluations, annealing.proposal.constant or linear.barrier[-1] < EASY_BARRIER
    if not (easy or annealing.keeps_proposal or linear.limit):
        early = run(EARLY_EXPONENT, linear.barrier[-1].item() * (1 + MAX_EXTENSION), "try")
        cost += early.gradient_evaluations
        chosen = early if early.betas[-1] == 1 else linear
    if chosen.worth_scaling and not chosen.limit:
        chosen = run(chosen.path_exponent, math.inf, "move")
        cost += chosen.gradient_evaluations
    return replace(chosen, gradient_evaluations=cost)


def run_pilot(
    annealing: Annealing,
    generator: torch.Generator,
    path_exponent: float = 1.0,
    max_barrier: float = math.inf,
    max_stages: int = 10_000,
    progress: Progress | None = None,
    scalings: Use | None = None,
) -> PilotRun:
    """Anneal with resampling at every stage. Stops before beta = 1 where a limit would be exceeded.

    Arguments:
        scalings: "move" to move the chains by scalings too, "try" to measure what these would change, None for neither.
    """
    x = annealing.proposal.sample(PILOT_CHAINS, generator=generator)
    target, phase = annealing.begin(x, generator, path_exponent=path_exponent)
    tuner = _Tuner(annealing, target, phase)
    flips, finder = FlipFinder(annealing.support), ScalingFinder(annealing.support, scalings == "move", generator)
    betas, barrier = [0.0], [0.0]
    for _ in (progress or iter)(range(max_stages)):
        beta = _next_beta(target, phase)
        log_w = target.log_ratio(phase, beta)
        length = barrier[-1] + float(log_w[log_w > -math.inf].std().nan_to_num())  # NaN for a single living chain
        if length > max_barrier:
            break
        barrier.append(length + 1e-12)  # increasing even where the energy is constant
        betas.append(beta)
        phase, target.beta = take(phase, systematic(log_w.softmax(0), generator)), beta
        if not annealing.keeps_proposal:
            phase = flips.stage(target, phase, generator)
        if scalings:
            phase = finder.stage(target, phase)
        phase = tuner.stage(target, phase, generator, finder.compare)
        if beta == 1:
            break
    limit = max_stages if betas[-1] < 1 and len(betas) > max_stages else 0
    cost = PILOT_CHAINS * (1 + (len(betas) - 1) * STAGE_MOVES * annealing.move_cost)
    return PilotRun(
        torch.tensor(betas, dtype=torch.float64),
        torch.stack([tuner.log_steps[min(1, len(betas) - 1)], *tuner.log_steps[1:]]).cpu(),
        torch.tensor(barrier, dtype=torch.float64),
        cost + flips.evaluations + finder.evaluations,
        path_exponent,
        tuple(tuner.scales),
        torch.tensor([tuner.turn_of[min(1, len(betas) - 1)], *tuner.turn_of[1:]]),
        _from_the_start(flips.found, len(betas)),
        _from_the_start(finder.found if scalings == "move" else [], len(betas)),
        scalings == "try" and finder.worthwhile,
        limit,
    )


def _from_the_start(of_stage: list[T | None], betas: int) -> tuple[T | None, ...]:
    """What was found at each stage, and at beta = 0 that of the first stage; None where nothing was searched."""
    return (*of_stage[:1], *of_stage) or (None,) * betas


class _Tuner:
    """Moves the chains of a pilot run, and adapts their step size and preconditioner from stage to stage.

    Attributes:
        log_steps: Log of step size times diagonal preconditioner at each stage, from beta = 0 on.
        scales: The distinct preconditioners that turn.
        turn_of: Index in ``scales`` at each stage; -1 for none.
    """

    def __init__(self, annealing: Annealing, target: Tempered, phase: Phase) -> None:
        self.annealing = annealing
        self.turns = turns(annealing.support, phase.x[0].numel())
        self.first_log_step = -0.25 * math.log(phase.x[0].numel())  # leapfrog steps scale as D^(-1/4)
        self.log_step = self.first_log_step  # relative to the width
        self.scale = Scale(annealing.log_width(target, phase))
        self.changes: list[Phase] = []
        self.log_steps = [self.scale.log_width + self.log_step]
        self.scales: list[Scale] = []
        self.turn_of = [-1]

    def stage(
        self, target: Tempered, phase: Phase, generator: torch.Generator, observe: Callable[[Phase, Phase], None]
    ) -> Phase:
        """Moves at one beta that adapt the step size to the target acceptance (Robbins & Monro 1951).

        Arguments:
            observe: Is called with the chains before and after the last move.
        """
        self._choose_scale(target, phase)
        turn = self.scale.turn
        if turn is not None:
            turn = turn.to(phase.x.device, phase.x.dtype)
        self.changes = []
        for move in range(STAGE_MOVES):
            size = (self.scale.log_width + self.log_step).exp().to(phase.x.dtype)
            step = size if turn is None else TurnedStep(size, turn)
            before = phase
            phase, accepted = self.annealing.move(target, before, step, generator)
            self.log_step += STEP_GAIN * (float(accepted.float().mean()) - TARGET_ACCEPTANCE) / (1 + move) ** 0.5
            self.log_step = min(self.log_step, self.annealing.max_log_step)
            if self.turns:
                self.changes.append(change(before, phase))
        observe(before, phase)
        self.log_steps.append(self.scale.log_width + self.log_step)
        self.turn_of.append(-1 if turn is None else len(self.scales) - 1)
        return phase

    def _choose_scale(self, target: Tempered, phase: Phase) -> None:
        plain = Scale(self.annealing.log_width(target, phase))
        scale = choose_scale(target, phase, self.changes, self.scale, plain)
        if (scale.basis is None) != (self.scale.basis is None):
            self.log_step = self.first_log_step
        if scale.basis is not None and scale is not self.scale:
            self.scales.append(scale)
        self.scale = scale


def _next_beta(target: Tempered, phase: Phase) -> float:
    """The largest beta whose conditional ESS, mean(w)^2 / mean(w^2), is at least STAGE_CESS, by bisection.

    With a path exponent r above 1, the power (1 - beta)^r of q_0 falls by at most MAX_POWER_DROP. Far beyond that, a
    path that first leaves q_0 may come back to it, and weights there look easy: the run could not follow it.
    """
    alive = phase.energy != math.inf  # the others start at points of zero density, and are resampled at the first stage
    bad = int((~(phase.energy + phase.log_q)[alive].isfinite()).sum())
    if bad or not alive.any():
        raise ValueError(
            f"'energy' should be finite inside the support, or +inf where the density is 0, got {bad} NaN or -inf "
            f"values and {int((~alive).sum())} of +inf among {len(alive)}."
        )

    r, power = target.path_exponent, (1 - target.beta) ** target.path_exponent
    high = 1.0 if r == 1 else 1 - max(0.0, power - MAX_POWER_DROP) ** (1 / r)
    return next_beta(target, phase, STAGE_CESS, high)
