"""Heavy tails and curved valleys: mass that the proposal hardly reaches, although the weights look even.

Three tests of a finished run. Valleys are followed outward from the ends of the chains. Heavy tails show in the
kurtosis of the ends. Where they do, a short run from a wider proposal says how much they matter: the error of the first
estimate becomes at least the distance between both, and above 0.1 nat the estimate is not reliable.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ebm_lightning.partition.annealing_path import Annealing, next_beta
from ebm_lightning.partition.log_z import log_mean_exp, relative_ess
from ebm_lightning.partition.mixture import Mixture
from ebm_lightning.partition.preconditioner import log_width
from ebm_lightning.partition.resampling import systematic, take
from ebm_lightning.partition.student import StudentT
from ebm_lightning.partition.valleys import valley_verdict
from ebm_lightning.samplers import frozen
from ebm_lightning.supports import Box, Density, Support

EXCESS_KURTOSIS = 3.0
REACH, LEAST_REACH = 5.0, 3.0  # standard deviations; the latter of the proposal
OUTSIDE = 0.05  # weight of the chains beyond it
DIRECTIONS = 64
DEGREES_OF_FREEDOM = 2.0
INFLATION = 2.0  # of the scale of the wider proposal
STAGE_CESS = 0.8
MOVES = 3
TARGET_ACCEPTANCE, STEP_GAIN = 0.7, 1.0
STAGES = 4  # enough from a proposal that covers the model
MAX_ERROR = 0.1  # nats; with a larger distance between two runs, the first is not reliable


class Beyond(NamedTuple):
    """What lies where no chain went.

    Attributes:
        why: Why mass lies there, in one sentence. Empty without a sign of that.
        std_err: The standard error of the estimate, at least its distance from the second run if there was one.
        gradient_evaluations: Cost of the tests.
        confirmed: Whether there was a second run, and it agrees.
    """

    why: str
    std_err: float
    gradient_evaluations: int
    confirmed: bool = False


def beyond_the_chains(
    annealing: Annealing,
    x: Tensor,
    log_w: Tensor,
    log_z: float,
    std_err: float,
    generator: torch.Generator,
) -> Beyond:
    """Test for valleys and heavy tails beyond the ends of the chains.

    Arguments:
        annealing: Of the run.
        x: Ends of its chains, shape (N, *shape).
        log_w: Their log weights, as in :class:`~ebm_lightning.partition.LogZ`, shape (N,).
        log_z, std_err: Its estimate.
        generator: Source of randomness.
    """
    energy, support, proposal = annealing.energy, annealing.support, annealing.proposal
    valley, cost = valley_verdict(energy, support, proposal, x, log_w, generator)
    tail = valley or ("" if _covers_the_box(proposal) else tail_verdict(x, log_w, proposal, generator))
    base = None if valley or not tail else wider_base(x, log_w, proposal, support)
    if base is None:
        return Beyond(tail, std_err, cost)
    second = second_opinion(replace(annealing, proposal=base), 2 * len(x), generator)
    error = second.error_of(log_z, std_err)
    return Beyond("" if error < MAX_ERROR else tail, error, cost + second.gradient_evaluations, error < MAX_ERROR)


def _covers_the_box(proposal: Density) -> bool:
    """Whether a uniform component reaches all of a box, whose walls leave no room for heavy tails."""
    components = proposal.components if isinstance(proposal, Mixture) else [proposal]
    return any(component.constant for component in components)


def tail_verdict(x: Tensor, log_w: Tensor, proposal: Density, generator: torch.Generator) -> str:
    """Why the tails of the model are too heavy for the proposal; empty without a sign of that.

    A sign is an axis or random direction in which either the weighted ends have an excess kurtosis above 3 and reach
    5 standard deviations of the proposal (or 5 of their own and 3 of the proposal), or 5 % of their weight is 5
    standard deviations of the proposal from its mean.

    Arguments:
        x: Ends of the chains, shape (N, *shape).
        log_w: Their log weights since the last resampling plus the log Z of their island, shape (N,).
        proposal: Where they started.
        generator: Source of the directions.
    """
    z = _standardized(x, proposal, generator)
    directions = torch.randn((z.shape[1], DIRECTIONS), generator=generator, device=generator.device).to(z)
    z = torch.cat([z, z @ (directions / directions.norm(dim=0))], 1)
    w = log_w.double().to(z.device).softmax(0)[:, None]
    centered = z - (w * z).sum(0)
    kurtosis = (w * centered**4).sum(0) / (w * centered**2).sum(0).clamp(min=1e-30) ** 2 - 3
    reach, spread = z.abs().amax(0), (w * centered**2).sum(0).sqrt()
    outside = (w * (z.abs() > REACH)).sum(0)
    heavy = (kurtosis > EXCESS_KURTOSIS) & (reach > REACH * spread.clamp(max=1)) & (reach > LEAST_REACH)
    heavy |= outside > OUTSIDE
    if not heavy.any():
        return ""
    return (
        f"The model has heavy tails that reach {float(reach[heavy].max()):.0f} standard deviations of the proposal or "
        "more, where chains hardly go: use a proposal with heavy tails, such as StudentT.fit(data), or a wider one."
    )


def _standardized(x: Tensor, proposal: Density, generator: torch.Generator) -> Tensor:
    """Rows of ``x`` in standard deviations of the proposal, of the likeliest component if it is a mixture."""
    components = proposal.components if isinstance(proposal, Mixture) else [proposal]
    of = (
        proposal.joint_log_prob(x).argmax(1) if isinstance(proposal, Mixture) else x.new_zeros(len(x), dtype=torch.long)
    )
    rows, z = x.flatten(1).double(), torch.zeros_like(x.flatten(1).double())
    for k, component in enumerate(components):
        start = component.sample(1000, generator=generator).flatten(1).double().to(x.device)
        center, scale = _location_and_scale(start)
        z[of == k] = (rows[of == k] - center) / scale
    return z


def _location_and_scale(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Median and half the distance of the quantiles of a normal's standard deviations, which exist for any tails."""
    low, middle, high = rows.quantile(torch.tensor([0.1587, 0.5, 0.8413], device=rows.device, dtype=rows.dtype), 0)
    return middle, ((high - low) / 2).clamp(min=1e-12)


def wider_base(x: Tensor, log_w: Tensor, proposal: Density, support: Support) -> Density | None:
    """A proposal with heavy tails around the weighted ends of the chains, mixed equally with the first proposal.

    On a box it is the uniform density, and None if the proposal is uniform already. Arguments as for
    :func:`tail_verdict`.
    """
    if isinstance(support, Box):
        return None if proposal.constant else Box(support.low, support.high, support.shape)
    return Mixture([proposal, StudentT.fit(x, log_w, DEGREES_OF_FREEDOM, INFLATION)])


@dataclass(frozen=True)
class SecondOpinion:
    """A short run from another proposal.

    Attributes:
        log_z: Its estimate; NaN if it did not reach the model in 4 stages.
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


def second_opinion(annealing: Annealing, num_chains: int, generator: torch.Generator) -> SecondOpinion:
    """Estimate log Z by adaptive sequential Monte Carlo of at most 4 stages, from a proposal that covers the model.

    It adapts while it runs, so that the estimate is not exactly unbiased. The bias is far below its error.

    Arguments:
        annealing: Energy, support, kernel and the wider proposal.
        num_chains: Number of chains.
        generator: Source of randomness.
    """
    with frozen(annealing.energy), torch.inference_mode(False), torch.no_grad():
        x = annealing.proposal.sample(num_chains, generator=generator)
        target, phase = annealing.begin(x, generator)
        log_step, log_z, variance, stages = -0.25 * math.log(x[0].numel()), 0.0, 0.0, 0
        while target.beta < 1 and stages < STAGES:
            beta = next_beta(target, phase, STAGE_CESS)
            log_w = target.log_ratio(phase, beta)
            log_z += float(log_mean_exp(log_w))
            variance += (1 / relative_ess(log_w) - 1) / num_chains
            phase, target.beta, stages = take(phase, systematic(log_w.softmax(0), generator)), beta, stages + 1
            for _ in range(MOVES if beta < 1 else 0):
                step = (log_width(target, phase) + log_step).exp().to(x.dtype)
                phase, accepted = annealing.move(target, phase, step, generator)
                log_step += STEP_GAIN * (float(accepted.double().mean()) - TARGET_ACCEPTANCE)
    moves = (stages - (target.beta == 1)) * MOVES * annealing.kernel.leapfrogs
    return SecondOpinion(log_z if target.beta == 1 else math.nan, math.sqrt(variance), num_chains * (1 + moves))
