"""Evidence from data: whether the mass in the regions where data lie is in an estimate of log Z.

Weights only tell of the regions that chains visited. Chains that start where data lie give a second, unbiased estimate
of the mass of these regions. If they find mass that the estimate lacks, then the estimate is too low.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ebm_lightning.partition.annealing_path import Annealing, next_beta
from ebm_lightning.partition.log_z import LogZ, log_mean_exp
from ebm_lightning.partition.mixture import Mixture, data_base
from ebm_lightning.samplers import frozen
from ebm_lightning.samplers.hmc import Phase, Tempered
from ebm_lightning.samplers.resampling import systematic, take

ISLANDS, ISLAND_CHAINS = 16, 16
STAGE_CESS = 0.9
STAGE_MOVES = 4
MAX_STAGES = 25
STEP_GAIN, TARGET_ACCEPTANCE = 2.0, 0.7
SIGNIFICANT = 4.0  # standard errors
MATERIAL = 0.05  # nats; less missing mass is not reported
ELSEWHERE = 0.1  # fraction of the chains from the data


class DataEvidence(NamedTuple):
    """What data say about an estimate.

    Attributes:
        why: Why the data contradict the estimate, and what to do, in one sentence. Empty if they agree with it.
        missing: By how much log Z exceeds the estimate according to the chains from the data, in nats; 0 if they agree.
        gradient_evaluations: Cost of the chains.
    """

    why: str
    missing: float
    gradient_evaluations: int


class Exploration(NamedTuple):
    """What chains that start at the data found.

    Attributes:
        log_mass: Log of each island's estimate of the mass of each region, shape (islands, 2K), float64.
        ends: Fraction of the chains that end in each region, shape (2K,), float64.
        complete: Whether the model was reached in steps that are small enough. Otherwise mass may be missing.
        gradient_evaluations: Cost of the chains.
    """

    log_mass: Tensor
    ends: Tensor
    complete: bool
    gradient_evaluations: int


def data_evidence(
    estimate: LogZ,
    ends: list[Tensor],
    annealing: Annealing,
    data: Tensor,
    labels: Tensor | None,
    generator: torch.Generator,
) -> DataEvidence:
    r"""Compare the mass of an estimate in the regions of the data with that found by chains that start there.

    For each region R, the chains of the estimate and those from the data both give an unbiased estimate of

    .. math:: Z_R = \int_R e^{-E(x)} dx = \mathbb{E}[w \, 1_R(x)]

    The chains from the data may miss mass, as those of the estimate may. So only mass that they find and the estimate
    lacks is evidence. A region is what one component of a mixture fitted to the data explains best, near the data or
    farther from it than all of them.

    Arguments:
        estimate: log Z with the weights of its chains.
        ends: End points of the chains of each island, in the order of ``estimate.log_weights``.
        annealing: Energy, support and kernel of the estimate.
        data: Points of the regions of interest, shape (N, *shape). Some hundred suffice.
        labels: Class of each point, shape (N,). None finds clusters in all of the data.
        generator: Source of randomness of the chains.
    """
    base = data_base(data, labels, annealing.support, reference_weight=0)
    nearest = base.log_prob(data.to(generator.device)).min()
    log_weights = estimate.log_weights.split([len(x) for x in ends])
    of_estimate = torch.stack(
        [_log_mass(base, nearest, x.to(generator.device), w) for x, w in zip(ends, log_weights, strict=True)]
    )
    found = _explore(Annealing(annealing.energy, annealing.support, base, annealing.kernel), nearest, generator)
    missing = _missing(of_estimate, found.log_mass, estimate)
    elsewhere = float(found.ends[(of_estimate == -math.inf).all(0)].sum())
    if missing > MATERIAL:
        why = _contradiction(missing)
    else:
        why = "" if found.complete or elsewhere < ELSEWHERE else UNCHECKED
    return DataEvidence(why, missing, found.gradient_evaluations)


UNCHECKED = (
    "Chains that start at the data end where no chain of the estimate does, and need more than "
    f"{MAX_STAGES} stages to tell how much mass is there: pass proposal='data', or data that look like model samples."
)


def _contradiction(missing: float) -> str:
    return (
        f"Chains that start at the data find mass that the estimate lacks, at least {missing:.2g} nats of log Z: "
        "pass proposal='data', or raise 'temperatures' and 'num_chains'."
    )


def _missing(of_estimate: Tensor, of_data: Tensor, estimate: LogZ) -> float:
    """Mass that is significantly larger in ``of_data``, both (islands, regions), in nats of log Z."""
    a, b = (of_estimate - estimate.log_z).exp(), (of_data - estimate.log_z).exp()
    chains = max(1.0, estimate.ess * len(estimate.log_weights))
    counting = a.mean(0).clamp(min=1 / chains) / chains  # the spread over islands is 0 where no chain is
    variance = torch.maximum(a.var(0) / len(a), counting) + b.var(0) / len(b)
    excess = b.mean(0) - a.mean(0)
    return math.log1p(float(excess[excess > SIGNIFICANT * variance.sqrt()].sum()))


def _log_mass(base: Mixture, nearest: Tensor, x: Tensor, log_w: Tensor) -> Tensor:
    """Log of the mean of w 1_R for each region, shape (2K,): near and far parts of each component."""
    joint = base.joint_log_prob(x)
    region = joint.argmax(1) + len(base.components) * (joint.logsumexp(1) < nearest)
    inside = torch.nn.functional.one_hot(region, 2 * len(base.components)).double().log()
    return log_mean_exp(log_w.to(x.device)[:, None] + inside).cpu()


def _explore(annealing: Annealing, nearest: Tensor, generator: torch.Generator) -> Exploration:
    """Anneal chains from the mixture fitted to the data to the model, resampled in islands at every stage."""
    base, n = annealing.proposal, ISLANDS * ISLAND_CHAINS
    assert isinstance(base, Mixture)
    with frozen(annealing.energy), torch.inference_mode(False), torch.no_grad():
        target, phase = annealing.begin(base.sample(n, generator=generator), generator)
        log_z = torch.zeros(ISLANDS, 1, dtype=torch.float64, device=phase.x.device)
        log_step, stages = -0.25 * math.log(phase.x[0].numel()), 0
        complete = bool((phase.energy < math.inf).any())
        while target.beta < 1:
            stages, beta = stages + 1, next_beta(target, phase, STAGE_CESS)
            if stages == MAX_STAGES and beta < 1:
                beta, complete = 1.0, False
            log_w = target.log_ratio(phase, beta).view(ISLANDS, ISLAND_CHAINS)
            log_z = log_z + log_mean_exp(log_w.T)[:, None]
            phase, target.beta = take(phase, _resampled(log_w, generator)), beta
            phase, log_step = _move(annealing, target, phase, log_step, generator)
        even = torch.zeros(ISLAND_CHAINS, dtype=torch.float64)
        log_fractions = torch.stack([_log_mass(base, nearest, x, even) for x in phase.x.split(ISLAND_CHAINS)])
    ends = log_fractions.exp().mean(0)
    return Exploration(
        log_z.cpu() + log_fractions, ends, complete, n * (1 + stages * STAGE_MOVES * annealing.move_cost)
    )


def _resampled(log_w: Tensor, generator: torch.Generator) -> Tensor:
    """Indices of the chains that survive in each island, shape (islands * chains,)."""
    islands = [systematic(row.softmax(0), generator) + k * log_w.shape[1] for k, row in enumerate(log_w)]
    return torch.cat(islands)


def _move(
    annealing: Annealing, target: Tempered, phase: Phase, log_step: float, generator: torch.Generator
) -> tuple[Phase, float]:
    """Moves at one beta that adapt the step size: the chains after them, and the log of the relative step size."""
    width = annealing.log_width(target, phase)
    for move in range(STAGE_MOVES):
        step = (width + log_step).exp().to(phase.x.dtype)
        phase, accepted = annealing.move(target, phase, step, generator)
        log_step += STEP_GAIN * (float(accepted.float().mean()) - TARGET_ACCEPTANCE) / (1 + move) ** 0.5
    return phase, log_step
