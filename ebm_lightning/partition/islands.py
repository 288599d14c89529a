"""Islands: blocks of chains annealed each from a random stream of its own, and their one estimate of log Z.

Which rank runs an island, and beside which others, changes nothing: that is what makes N ranks agree with one.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm_lightning.energies import Energy, JointEnergy
from ebm_lightning.partition.log_z import LogZ, effective_share, log_mean_exp
from ebm_lightning.partition.plan import Plan, systematic, take
from ebm_lightning.partition.proposals import Proposal
from ebm_lightning.samplers import HMC, quiet
from ebm_lightning.samplers.hmc import Tempered, hamiltonian_move
from ebm_lightning.streams import make_generator
from ebm_lightning.supports import Support

ISLANDS = 10  # their spread is the error: fewer than 8 say little about it
RESAMPLE_FLOOR = 0.5
EFFECTIVE_CHAINS = 50  # below, an interval covers less often than it says
Progress = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class Island:
    """One block of chains after its run; what ranks exchange.

    Attributes:
        log_weights: Shape (n,), float64; the log of their mean is the island's log Z.
        log_class: log of the weighted mean of p(y|x), shape (K,), or None.
        ess: Along the path, before resampling, shape (T,).
        acceptance: Along the path, shape (T,).
    """

    log_weights: Tensor
    log_class: Tensor | None
    ess: Tensor
    acceptance: Tensor


def island_sizes(chains: int, chunk_size: int | None) -> list[int]:
    """Chains of each island, as equal as can be.

    Raises:
        ValueError: Fewer than 2 chains an island, or a chunk below 2.
    """
    if chains < 2 * ISLANDS:
        raise ValueError(f"'chains' should be at least {2 * ISLANDS}, 2 for each of {ISLANDS} islands, got {chains}.")
    if chunk_size is not None and chunk_size < 2:
        raise ValueError(f"'chunk_size' should be at least 2, got {chunk_size}.")
    islands = max(ISLANDS, math.ceil(chains / (chunk_size or chains)))
    return [chains // islands + (k < chains % islands) for k in range(islands)]


def run_islands(
    energy: Energy,
    support: Support,
    proposal: Proposal,
    kernel: HMC,
    plan: Plan,
    sizes: dict[int, int],
    seed: int,
    device: torch.device,
    resample: bool,
    progress: Progress | None = None,
) -> dict[int, Island]:
    """The islands named in ``sizes`` (number -> chains): the same on whatever rank and in whatever order they run."""
    steps = len(plan.steps)
    ticks = iter((progress or iter)(range(steps * len(sizes))))
    islands = {}
    for number, n in sizes.items():
        generator = make_generator(seed, "island", number, device=device)
        islands[number] = anneal(energy, support, proposal, kernel, plan, n, generator, resample, ticks)
    next(ticks, None)  # lets the bar close
    return islands


def anneal(
    energy: Energy,
    support: Support,
    proposal: Proposal,
    kernel: HMC,
    plan: Plan,
    n: int,
    generator: torch.Generator,
    resample: bool,
    ticks: Iterable[int],
) -> Island:
    """One island of ``n`` chains from q_0 to the model."""
    with quiet(energy), torch.inference_mode(False), torch.no_grad():
        x = proposal.sample(n, generator)
        target = Tempered(energy, proposal, 0.0, plan.release)
        phase = target.at(x, torch.randn(x.shape, generator=generator, device=x.device))
        log_w = torch.zeros(n, dtype=torch.float64, device=x.device)
        log_z = torch.zeros((), dtype=torch.float64, device=x.device)
        curve, acceptance = [], []
        steps = plan.steps.to(device=x.device, dtype=x.dtype)
        for step, beta, _ in zip(steps, plan.betas[1:].tolist(), ticks, strict=False):
            log_w = log_w + target.log_ratio(phase, beta)
            curve.append(effective_share(log_w))
            if math.isnan(curve[-1]):
                raise ValueError(f"'energy' should be finite inside the support, got NaN at beta {beta:.4f}.")
            if resample and curve[-1] < RESAMPLE_FLOOR:
                phase = take(phase, systematic(log_w.softmax(0), generator))
                log_z, log_w = log_z + log_mean_exp(log_w), torch.zeros_like(log_w)
            target.beta = beta
            phase, accepted = hamiltonian_move(target, phase, step, support, kernel, generator)
            acceptance.append(accepted.double().mean())
        log_class = None
        if isinstance(energy, JointEnergy):
            log_p_y = energy.logits(phase.x).double().log_softmax(1)
            log_class = (log_w.log_softmax(0)[:, None] + log_p_y).logsumexp(0).cpu()
    return Island((log_z + log_w).cpu(), log_class, torch.tensor(curve), torch.stack(acceptance).cpu())


def combine(islands: list[Island], plan: Plan, kernel: HMC, resample: bool) -> LogZ:
    """One estimate from all islands: the mean of their Z, never of their log Z."""
    log_weights = torch.cat([island.log_weights for island in islands])
    n = len(log_weights)
    log_z = float(log_mean_exp(log_weights))
    log_zs = torch.stack([log_mean_exp(island.log_weights) for island in islands])
    if resample:
        share = torch.tensor([len(island.log_weights) / n for island in islands], dtype=torch.float64)
        spread = (share * ((log_zs - log_z).exp() - 1)).square().sum()
        std_err = float((spread * len(islands) / (len(islands) - 1)).sqrt())
        ess, lower, degrees = 1 / (1 + n * std_err**2), float((share * log_zs).sum()), len(islands) - 1.0
    else:
        ess, lower, degrees = effective_share(log_weights), float(log_weights.mean()), math.inf
        std_err = math.sqrt(max(0.0, (1 / ess - 1) / n))
    per_class = None
    if islands[0].log_class is not None:
        sizes = torch.tensor([len(island.log_weights) / n for island in islands], dtype=torch.float64).log()
        by_island = [
            z + s + i.log_class for z, s, i in zip(log_zs, sizes, islands, strict=True) if i.log_class is not None
        ]
        per_class = torch.stack(by_island).logsumexp(0)
    return LogZ(
        log_z,
        std_err,
        ess,
        log_weights,
        lower,
        per_class=per_class,
        reliable=ess * n >= EFFECTIVE_CHAINS and std_err < 0.5,
        gradient_evaluations=plan.gradient_evaluations + n * (1 + len(plan.steps) * kernel.leapfrogs),
        degrees=degrees,
        betas=plan.betas,
        ess_curve=torch.stack([island.ess for island in islands]).mean(0),
        acceptance=torch.stack([island.acceptance for island in islands]).mean(0),
    )
