"""What is known besides the weights is compared with an estimate: its path, rounding, tails, valleys and data."""

import dataclasses
import math

import torch
from torch import Tensor

from ebm_lightning.partition.annealing_path import Annealing, AnnealingPath
from ebm_lightning.partition.diagnostics.data_evidence import data_evidence
from ebm_lightning.partition.diagnostics.energy_checks import imprecise
from ebm_lightning.partition.diagnostics.modes import missed_modes
from ebm_lightning.partition.diagnostics.tails import beyond_the_chains
from ebm_lightning.partition.flips import Flips
from ebm_lightning.partition.islands import Island, log_normal_variance, typical_ess
from ebm_lightning.partition.log_z import LogZ
from ebm_lightning.partition.noise_annealing import NoiseAnnealing, tilt_evidence
from ebm_lightning.rng import make_generator

MIN_EFFICIENCY = 0.12  # measured: .15 to 1 where estimates are right, .01 to .1 where distant modes are missed
MIN_WITH_FLIPS = 0.25  # products of wells were 2.6 and 4.7 standard errors low at .21 and .13


def inefficient(ess: float, path: AnnealingPath) -> str:
    r"""Why weights vary more than those of chains that follow the path; empty if they do not.

    Independent chains in equilibrium at each of T equally hard steps, on a path of barrier b, have a relative effective
    sample size of exp(-b^2 / T). Chains that stay in the mode where they started have less. More is asked for where
    components have two modes, because then there are exponentially many, and weights say less about their own error.

    Arguments:
        ess: Relative effective sample size of the estimate, positive.
        path: The path of the chains.
    """
    log_efficiency = math.log(ess) + path.barrier**2 / len(path.steps)  # its exponential may overflow
    if log_efficiency >= math.log(MIN_WITH_FLIPS if path.steps.have(Flips) else MIN_EFFICIENCY):
        return ""
    return (
        f"The weights are worth {math.exp(log_efficiency):.0%} of what the path allows, so chains do not keep up with "
        "it and may miss modes: raise 'temperatures', or choose a 'proposal' closer to the model."
    )


@torch.inference_mode(False)  # the checks create densities, whose gradients would fail if they were made in that mode
@torch.no_grad()
def with_evidence(
    result: LogZ,
    islands: list[Island],
    annealing: Annealing,
    path: AnnealingPath,
    seed: int,
    device: torch.device,
    data: Tensor | None = None,
    labels: Tensor | None = None,
) -> LogZ:
    """The estimate with the first reason why it is not reliable, and with the cost of the checks.

    The order of the reasons is: rounding, mass near the data that the chains missed, an incomplete pilot, degenerate
    weights, mass beyond the chains (heavy tails, curved valleys), modes that the chains missed, and weights that vary
    more than the path explains. Where a second measurement of log Z or of its largest modes differs from the estimate,
    the standard error grows to the difference. It is at least that of log-normal weights.

    Arguments:
        result: The estimate from its weights.
        islands: Its islands, with the ends of their chains.
        annealing, path: What was annealed, and along which path.
        seed: Seed of the streams of the checks.
        device: Where chains run.
        data: Points in the regions where the model should have its mass, shape (N, *shape).
        labels: Their classes, shape (N,).
    """
    why, cost = imprecise(max(island.rounding for island in islands)), 0
    ends = [island.ends for island in islands]
    if data is not None and isinstance(annealing, NoiseAnnealing):
        why, cost = why or tilt_evidence(result, annealing, data.to(device)), len(data) + len(result.log_weights)
    elif data is not None:
        generator = make_generator(seed, "data", device=device)
        evidence = data_evidence(result, ends, annealing, data, labels, generator)
        why, cost = why or evidence.why, evidence.gradient_evaluations
    why, std_err = why or path.why or result.why, result.std_err
    if not why and annealing.keeps_proposal:
        why = inefficient(typical_ess(islands), path)
    elif not why:
        x, generator = torch.cat(ends).to(device), make_generator(seed, "beyond", device=device)
        log_w = result.log_weights.to(device)
        beyond = beyond_the_chains(annealing, path.steps, x, log_w, result.log_z, result.std_err, generator)
        why, cost = beyond.why, cost + beyond.gradient_evaluations
        std_err = std_err if why else beyond.std_err
        if not why:
            modes = missed_modes(annealing, x, result, generator)
            why, cost = modes.why, cost + modes.gradient_evaluations
            std_err = max(std_err, modes.std_err)
        why = why or inefficient(typical_ess(islands), path)
    std_err = max(std_err, min(1.0, math.sqrt(log_normal_variance(islands))))
    return dataclasses.replace(
        result, why=why, std_err=std_err, gradient_evaluations=result.gradient_evaluations + cost
    )
