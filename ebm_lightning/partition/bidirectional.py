"""Bidirectional Monte Carlo: reverse annealing from exact samples, which bounds log Z from above."""

import dataclasses
import math

import torch
from torch import Tensor

from ebm_lightning.checks import check_number
from ebm_lightning.energies import Energy, in_coordinates
from ebm_lightning.partition.annealing_path import Annealing, AnnealingPath, Schedule
from ebm_lightning.partition.diagnostics.energy_checks import checked_arguments, default_generator
from ebm_lightning.partition.diagnostics.integrable import integrable
from ebm_lightning.partition.log_z import LogZ, log_mean_exp, relative_ess
from ebm_lightning.partition.noise_annealing import annealing_from
from ebm_lightning.partition.pilot import tune_path
from ebm_lightning.partition.smc import degenerate
from ebm_lightning.rng import make_generator, seed_and_device
from ebm_lightning.samplers import HMC, NoiseRefresh, frozen
from ebm_lightning.supports import Density, Support

CONTRADICTION = 4.0  # standard errors by which the upper bound may lie below the estimate
ROUNDING = 1e-3  # nats
INEXACT = (
    "The samples are not exact draws of the model, so the estimate may be too high or too low: use exact draws, or ais."
)


def reverse_ais(
    energy: Energy,
    support: Support,
    samples: Tensor,
    *,
    exact: bool,
    proposal: Density | None = None,
    kernel: HMC | NoiseRefresh | None = None,
    temperatures: int = 250,
    schedule: Schedule = "adaptive",
    generator: torch.Generator | None = None,
) -> LogZ:
    r"""log Z from chains that start at ``samples`` of the model and anneal to q_0 (bidirectional Monte Carlo).

    .. math:: \mathbb{E}[1 / w] = 1 / Z, \qquad \text{so } -\log \overline{1 / w} \text{ is a stochastic upper bound}

    The bound holds only for exact samples. Points from a replay buffer, from data, or from the ends of forward chains
    give a number that may be too high or too low by an unknown amount, and that still looks converged. Then ``upper``
    is None and ``reliable`` is False.

    References:
        Grosse, Ghahramani & Adams, Sandwiching the marginal likelihood using bidirectional Monte Carlo, 2015.
        https://arxiv.org/abs/1511.02543

    Arguments:
        energy, support, proposal, kernel, temperatures, schedule, generator: As for :func:`~ebm_lightning.ais`.
        samples: Initial points, one chain each, shape (N, *shape).
        exact: Whether ``samples`` are independent exact draws from the model.

    Raises:
        ValueError: Samples outside the support, a support that is not that of the energy, infinite mass and no
            proposal, a proposal on another domain, no temperatures, or NoiseRefresh and a proposal that does not make x
            from noise.
    """
    energy = in_coordinates(energy)
    generator = default_generator(energy) if generator is None else generator
    start, checks = checked_arguments(
        energy,
        support,
        proposal=proposal,
        kernel=kernel,
        temperatures=temperatures,
        schedule=schedule,
        generator=generator,
    )
    support.check(samples, "samples")
    annealing = annealing_from(start, energy, support, kernel)
    seed, device = seed_and_device(generator)
    integral = integrable(annealing.integrand, support, start, make_generator(seed, "rays", device=device))
    checks += integral.gradient_evaluations
    if not integral.finite:
        return LogZ(math.nan, math.nan, 0.0, integrable=False, why=integral.why, reverse=True)
    path = tune_path(annealing, temperatures, schedule, seed, device)
    log_w = _reverse_weights(annealing, path, samples.to(device), make_generator(seed, "reverse", device=device))
    cost = checks + path.gradient_evaluations + len(log_w) * annealing.cost(path.steps)
    ess = relative_ess(-log_w)
    log_z = -float(log_mean_exp(-log_w))
    std_err = math.sqrt(max(0.0, (1 / ess - 1) / len(log_w)))
    return LogZ(
        log_z,
        std_err,
        ess,
        log_w,
        upper=log_z if exact else None,
        why=path.why or (degenerate(ess * len(log_w), std_err) if exact else INEXACT),
        gradient_evaluations=cost,
        betas=path.betas,
        reverse=True,
    )


def bracket(forward: LogZ, backward: LogZ, gap: float = 1.0) -> LogZ:
    """The forward estimate with the upper bound of the backward one.

    It is reliable only if both runs are, and if the bounds are close and do not contradict each other. An upper bound
    below the estimate by more than 4 standard errors proves that the samples of the backward run are not exact, or that
    one of the runs is not for this energy. Bounds that agree do not prove that the samples are exact.

    Arguments:
        forward: Result of :func:`~ebm_lightning.ais`.
        backward: Result of :func:`reverse_ais` from exact samples.
        gap: Largest distance between the bounds, in nats beyond two standard errors, for the result to be reliable.

    Raises:
        ValueError: The backward run did not start at exact samples, or ``gap`` is negative.
    """
    check_number("gap", gap, at_least=0)
    if backward.upper is None:
        raise ValueError(
            "'backward' should come from exact samples to be a bound, got exact=False. Use exact draws of the model."
        )
    reasons = dict.fromkeys((_disagreement(forward, backward, gap), forward.why, backward.why))
    return dataclasses.replace(forward, upper=backward.upper, why=" ".join(filter(None, reasons)))


def _disagreement(forward: LogZ, backward: LogZ, gap: float) -> str:
    """Why the bounds contradict each other or are too far apart; empty if neither, or if one is not a number."""
    upper, highest = backward.upper, max(forward.lower, forward.log_z)
    if upper is None or math.isnan(highest) or math.isnan(upper):
        return ""
    if highest - upper > CONTRADICTION * math.hypot(forward.std_err, backward.std_err) + ROUNDING:
        return (
            f"The upper bound {upper:.4g} is below the estimate {highest:.4g} by more than {CONTRADICTION:g} standard "
            "errors, so the samples cannot be exact: use exact draws of this model, or ais without a bound."
        )
    if upper - forward.lower > gap + 2 * (forward.std_err + backward.std_err):
        return f"The bounds {forward.lower:.4g} and {upper:.4g} are more than {gap:g} nats apart: raise 'temperatures'."
    return ""


def _reverse_weights(annealing: Annealing, path: AnnealingPath, samples: Tensor, generator: torch.Generator) -> Tensor:
    """Log weight of each chain, annealed from ``samples`` at beta = 1 down to q_0, shape (N,), float64."""
    with frozen(annealing.energy), torch.inference_mode(False), torch.no_grad():
        x = samples.clone()
        target, phase = annealing.begin(x, generator, 1.0, path.path_exponent)
        log_w = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        steps, betas = path.steps.to(device=x.device, dtype=x.dtype), path.betas.tolist()
        for t in range(len(steps), 0, -1):
            target.beta = betas[t]
            phase, _ = annealing.move(target, phase, steps[t - 1], generator)
            log_w = log_w - target.log_ratio(phase, betas[t - 1])
    return log_w.cpu()
