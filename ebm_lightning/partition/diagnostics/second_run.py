"""A short second run, from a proposal that covers the chains of the first one and more."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm_lightning.partition.annealing_path import Annealing, next_beta
from ebm_lightning.partition.clusters import clusters
from ebm_lightning.partition.independent_student import IndependentStudentT
from ebm_lightning.partition.islands import variance_by_origin
from ebm_lightning.partition.log_z import log_mean_exp, relative_ess
from ebm_lightning.partition.mixture import Mixture
from ebm_lightning.partition.preconditioner import log_width
from ebm_lightning.partition.spread import mean_and_factor
from ebm_lightning.partition.student import StudentT
from ebm_lightning.samplers import frozen
from ebm_lightning.samplers.hmc import Phase, Tempered
from ebm_lightning.samplers.preconditioner import TurnedStep
from ebm_lightning.samplers.resampling import systematic, take
from ebm_lightning.supports import Box, Density, Support

HEAVY_DOF, INFLATION = 2.0, 2.0  # of the wide part of the proposal, whose scale is inflated
FITTED_INFLATION = 1.2  # of the part with heavy tails that is fitted by likelihood
LIGHT_DOF = 100.0  # of the parts that fit a model without heavy tails, so that few stages lead there in any dimension
PARTS = (0.2, 0.3, 0.2, 0.3)  # weights of the first proposal, heavy tails, all ends together, and their clusters
INDEPENDENT_PARTS = (0.2, 0.1, 0.1, 0.6)  # where tails are heavy and components independent
INDEPENDENT_GAIN = 0.01  # nats for each component by which that is likelier; it is .015 to .06 under Laplace densities
FEWEST_POINTS = 5
STAGE_CESS = 0.8
MOVES = 3
MAX_VARIANCE_RATIO = 0.5  # of the variance by origin and that of the weights; the first is 0 or less where chains mix
TARGET_ACCEPTANCE, STEP_GAIN = 0.7, 1.0


def wider_base(
    x: Tensor,
    log_w: Tensor,
    proposal: Density,
    support: Support,
    generator: torch.Generator,
    step: Tensor | TurnedStep | None = None,
    *,
    heavy: bool = False,
) -> Density:
    """A proposal that covers the weighted ends of the chains: the first one, mixed with densities around them.

    One has the mean and covariance of the ends, twice the scale and heavy tails. The others are almost normal: one for
    all ends, and one for each of their clusters. If ``heavy``, there is in their place a density with heavy tails that
    is fitted to the ends by its likelihood, of independent components where that is likelier. On a box all are
    truncated and have independent components, and the uniform density is part of the first one.

    Arguments:
        x: Ends of the chains, shape (N, *shape).
        log_w: Their log weights, shape (N,).
        proposal: Where they started.
        support: Domain.
        generator: Source of randomness.
        step: Preconditioner of the model, see :func:`~ebm_lightning.partition.spread.mean_and_factor`.
        heavy: Leave out the almost normal ones. Fitted to chains that missed tails, they would miss them too.
    """
    if isinstance(support, Box):
        return _base_on_box(x, log_w, proposal, Box(support.low, support.high, support.shape), generator)
    mean, scale = _moments(x, log_w, step)
    wide = StudentT(mean, INFLATION * scale, HEAVY_DOF)
    if heavy:
        fitted = StudentT.fit(x, log_w, HEAVY_DOF, 1.0, step)
        inflated = StudentT(fitted.mean, FITTED_INFLATION * fitted.scale, HEAVY_DOF)
        likeliest, independent = fitted.with_likeliest_tails(x, log_w), IndependentStudentT.fit(x, log_w)
        gain = log_w.double().softmax(0) @ (independent.log_prob(x) - likeliest.log_prob(x))
        if gain > INDEPENDENT_GAIN * x[0].numel():
            return Mixture([proposal, wide, inflated, independent], torch.tensor(INDEPENDENT_PARTS))
        return Mixture([proposal, wide, inflated, likeliest])
    parts = _clusters(x[systematic(log_w.softmax(0), generator)], scale)
    counts = torch.tensor([float(len(part)) for part in parts])
    light = [StudentT(mean, scale, LIGHT_DOF), *(StudentT(*_moments(part, None, step), LIGHT_DOF) for part in parts)]
    weights = torch.cat([torch.tensor(PARTS[:3]), PARTS[3] * counts / counts.sum()])
    return Mixture([proposal, wide, *light], weights)


def _base_on_box(x: Tensor, log_w: Tensor, proposal: Density, box: Box, generator: torch.Generator) -> Mixture:
    """The proposal, the box, and Student densities with independent components, truncated to the box.

    One is wide, and there are two for all ends and for each of their clusters: with heavy tails and almost normal.
    """
    parts = _clusters(x[systematic(log_w.softmax(0), generator)], _moments(x, log_w, None)[1])
    fits = [
        StudentT.fit(part, w, dof, inflation, box=box)
        for part, w in [(x, log_w), *((part, None) for part in parts)]
        for dof, inflation in ((LIGHT_DOF, 1.0), (HEAVY_DOF, FITTED_INFLATION))
    ]
    wide = StudentT(fits[0].mean, INFLATION * fits[0].scale, HEAVY_DOF, box)
    first = proposal if covers_the_box(proposal) else Mixture([proposal, box])
    weights = torch.tensor([*PARTS[:2], *[(1 - sum(PARTS[:2])) / len(fits)] * len(fits)])
    return Mixture([first, wide, *fits], weights)


def covers_the_box(proposal: Density) -> bool:
    """Whether a uniform component reaches all of a box."""
    components = proposal.components if isinstance(proposal, Mixture) else [proposal]
    return any(component.constant for component in components)


def _clusters(x: Tensor, scale: Tensor) -> list[Tensor]:
    """Clusters of points in coordinates where all of them together are round, so that a Gaussian is one cluster.

    Clusters of a few points, such as copies of one chain, are left out.
    """
    rows = x.flatten(1).double()
    if scale.shape == x.shape[1:]:
        parts = [part * scale.flatten() for part in clusters(rows / scale.flatten())]
    else:
        parts = [part @ scale.T for part in clusters(torch.linalg.solve_triangular(scale, rows.T, upper=False).T)]
    return [part.view(-1, *x.shape[1:]) for part in parts if len(part.unique(dim=0)) >= FEWEST_POINTS]


def _moments(x: Tensor, log_w: Tensor | None, step: Tensor | TurnedStep | None) -> tuple[Tensor, Tensor]:
    """Mean and scale of a :class:`StudentT`."""
    mean, factor = mean_and_factor(x, log_w, step)
    return mean.view(x.shape[1:]), factor if factor.ndim == 2 else factor.view(x.shape[1:])


@dataclass(frozen=True)
class SecondOpinion:
    """A short run from another proposal.

    Attributes:
        log_z: Its estimate; NaN if it did not reach the model within its limit, or if too few of its first chains have
            descendants for that estimate to be precise.
        std_err: Standard error in nats.
        gradient_evaluations: Its cost.
    """

    log_z: float
    std_err: float
    gradient_evaluations: int

    def error_of(self, log_z: float, std_err: float) -> float:
        """The error of another estimate, at least its distance from this one; infinite if this one is NaN.

        Weights whose tails no chain has reached say too little about their own error.
        """
        distance = math.hypot(self.log_z - log_z, self.std_err)
        return math.inf if math.isnan(distance) else max(std_err, distance)


def second_opinion(
    annealing: Annealing, step: Tensor | TurnedStep, num_chains: int, stages: int, generator: torch.Generator
) -> SecondOpinion:
    """Estimate log Z by adaptive sequential Monte Carlo of a few stages, from a proposal that covers the model.

    It adapts while it runs, so that the estimate is not exactly unbiased. The bias is far below its error.

    Its variance is also estimated from the origins of the chains that arrive. If that is much larger than what the
    weights of its stages explain, chains did not mix between regions, such as distant modes or the neck of a funnel,
    and its estimate is not used.

    References:
        Lee & Whiteley, Variance estimation in the particle filter, 2018, for the variance by origin.
        https://arxiv.org/abs/1509.00394

    Arguments:
        annealing: Energy, support, kernel and the wider proposal.
        step: At the model. Moves use its matrix if it turns.
        num_chains: Number of chains.
        stages: Most stages.
        generator: Source of randomness.
    """
    with frozen(annealing.energy), torch.inference_mode(False), torch.no_grad():
        x = annealing.proposal.sample(num_chains, generator=generator)
        target, phase = annealing.begin(x, generator)
        log_step = 0.0 if isinstance(step, TurnedStep) else -0.25 * math.log(x[0].numel())
        log_z, variance, stage, origin = 0.0, 0.0, 0, torch.arange(num_chains)
        while target.beta < 1 and stage < stages:
            beta = next_beta(target, phase, STAGE_CESS)
            log_w = target.log_ratio(phase, beta)
            log_z += float(log_mean_exp(log_w))
            variance += (1 / relative_ess(log_w) - 1) / num_chains
            index = systematic(log_w.softmax(0), generator)
            phase, origin, target.beta, stage = take(phase, index), origin[index.cpu()], beta, stage + 1
            for _ in range(MOVES if beta < 1 else 0):
                phase, accepted = annealing.move(target, phase, _scaled(step, log_step, target, phase), generator)
                log_step += STEP_GAIN * (float(accepted.double().mean()) - TARGET_ACCEPTANCE)
    moves = (stage - (target.beta == 1)) * MOVES * annealing.move_cost
    by_origin = variance_by_origin(torch.full((num_chains, 1), 1 / num_chains, dtype=torch.float64), origin, stage)
    used = target.beta == 1 and float(by_origin) < MAX_VARIANCE_RATIO * variance
    return SecondOpinion(log_z if used else math.nan, math.sqrt(variance), num_chains * (1 + moves))


def _scaled(step: Tensor | TurnedStep, log_step: float, target: Tempered, phase: Phase) -> Tensor | TurnedStep:
    if isinstance(step, TurnedStep):
        return TurnedStep(step.step * math.exp(log_step), step.turn)
    return (log_width(target, phase) + log_step).exp().to(phase.x.dtype)
