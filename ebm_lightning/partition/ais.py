"""log Z by annealed importance sampling, with or without resampling."""

import math
from collections.abc import Iterator
from itertools import count
from typing import Literal

import torch
from torch import Tensor

from ebm_lightning.energies import Energy, JointEnergy, in_coordinates
from ebm_lightning.partition.annealing_path import Annealing, AnnealingPath, Schedule
from ebm_lightning.partition.diagnostics.energy_checks import checked_arguments, default_generator, rounding_error
from ebm_lightning.partition.diagnostics.evidence import with_evidence
from ebm_lightning.partition.diagnostics.integrable import integrable
from ebm_lightning.partition.islands import Island
from ebm_lightning.partition.log_z import LogZ, log_mean_exp, relative_ess
from ebm_lightning.partition.mixture import data_base
from ebm_lightning.partition.noise_annealing import annealing_from
from ebm_lightning.partition.pilot import tune_path
from ebm_lightning.partition.rbm_ais import classification_rbm_ais
from ebm_lightning.partition.smc import OneProcess, Ranks, combine, island_sizes, run_islands
from ebm_lightning.rng import make_generator, seed_and_device
from ebm_lightning.samplers import HMC, NoiseRefresh, frozen
from ebm_lightning.samplers.base import Progress
from ebm_lightning.samplers.gradient import evaluating
from ebm_lightning.samplers.resampling import systematic, take
from ebm_lightning.supports import Binary, Density, Support

RESAMPLE_FLOOR = 0.5
LINEAGE_POINTS = 20


def ais(
    energy: Energy,
    support: Support,
    *,
    proposal: Density | Literal["data"] | None = None,
    kernel: HMC | NoiseRefresh | None = None,
    temperatures: int | None = 250,
    num_chains: int = 1000,
    schedule: Schedule = "adaptive",
    resample: bool = True,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
    data: Tensor | None = None,
    labels: Tensor | None = None,
) -> LogZ:
    r"""log Z of exp(-E) on the support, with its error, by annealing from a proposal density q_0.

    .. math:: \log p_\beta = (1 - \beta)^r \log q_0 - \beta E, \qquad
        \log w = \sum_t \log \frac{p_{\beta_t}(x_{t-1})}{p_{\beta_{t-1}}(x_{t-1})}, \qquad \mathbb{E}[w] = Z

    A pilot run picks the path exponent r: 1, or 12 where that makes the path at most a quarter longer. Where four
    or more components of x, and at least a tenth, have two modes, each fourth move reflects some of them at the
    middle between these modes. On a :class:`~ebm_lightning.supports.Binary` support the energy must be that of a
    :class:`~ebm_lightning.modules.ClassificationRBM`, which is annealed by block Gibbs from the base rates of its
    training data (:func:`~ebm_lightning.partition.classification_rbm_ais`). There, ``kernel``, ``schedule``,
    ``resample`` and ``chunk_size`` are not used.

    Works under ``no_grad`` and in inference mode. The state of modules and the global random state do not change.
    Under bfloat16 the result is the log Z of the rounded model.

    References:
        Neal, Annealed importance sampling, 2001. https://arxiv.org/abs/physics/9803008
        Del Moral, Doucet & Jasra, Sequential Monte Carlo samplers, 2006, for ``resample``.

    Arguments:
        energy: Maps (N, *shape) to (N,), including the reference density. A JointEnergy also gives log Z_y; with
            coordinates, annealing runs in u, where Z is the same, and ``support``, ``proposal`` and ``data`` are of u.
        support: Domain of the energy.
        proposal: q_0: any :class:`~ebm_lightning.supports.Density` on the same domain; by default the support's
            reference density; "data" for a mixture of normals fitted to ``data`` and the reference density. Required on
            Euclidean. A density that vanishes at a wall can make log Z too low without a sign in the diagnostics.
        kernel: GHMC by default, or HMC or MALA; NoiseRefresh for a proposal that makes x from noise. A pilot run tunes
            its step size.
        temperatures: Number of steps of beta from 0 to 1. None chooses it by the barrier of the path, so that chains in
            equilibrium would have a relative ESS of .6: at least 100 and at most 2000 steps; 1000 on Binary.
        num_chains: Total number of chains. They run in at least 10 islands, whose spread gives the error.
        schedule: Spacing of the temperatures: "adaptive" makes all steps equally hard, "linear" equally long, and
            "sigmoid" is dense at both ends.
        resample: Resample an island when its relative ESS falls below one half (SMC). Z stays unbiased.
        chunk_size: Largest number of chains to run at once; bounds the memory.
        generator: Its seed starts the streams of the islands, its device is where chains run: by default that of the
            weights behind the energy.
        seed: Seed of the streams, in place of the generator's.
        progress: Wraps the loop over the stages of each pilot run, which mostly ends before its limit, and then this
            process's loop over the temperatures of its islands. For example ``tqdm.tqdm``.
        data: Points in the regions where the model should have its mass, such as a few hundred training data, shape (N,
            *shape). The mass there is compared with the estimate, see ``docs/log_z.md``.
        labels: Their classes, shape (N,).
        ranks: The processes that divide the islands among them. The result is the same on all of them, and does not
            depend on their number.

    Raises:
        ValueError: Infinite mass and no proposal, a proposal on another domain, fewer than 2 chains per island, no
            temperatures, NoiseRefresh and a proposal that does not make x from noise, or an energy that is not finite.
    """
    ranks, energy = ranks or OneProcess(), in_coordinates(energy)
    generator = default_generator(energy) if generator is None else generator
    start, checks = checked_arguments(
        energy,
        support,
        proposal=_proposal(proposal, data, labels, support),
        kernel=kernel,
        temperatures=temperatures,
        schedule=schedule,
        generator=generator,
        chunk_size=chunk_size,
    )
    seed, device = _streams(seed, generator)
    if isinstance(support, Binary):
        _refuse_proposal(proposal)
        rng = make_generator(seed, "rbm", device=device)
        return classification_rbm_ais(
            energy,
            data=data,
            temperatures=temperatures or 1000,
            num_chains=num_chains,
            generator=rng,
            progress=progress,
            ranks=ranks,
        )
    sizes = island_sizes(num_chains, chunk_size)
    annealing = annealing_from(start, energy, support, kernel)
    integral = integrable(annealing.integrand, support, annealing.proposal, make_generator(seed, "rays", device=device))
    if not integral.finite:
        evaluations = integral.gradient_evaluations
        return LogZ(math.nan, math.nan, 0.0, integrable=False, why=integral.why, gradient_evaluations=evaluations)
    path = ranks.broadcast(tune_path(annealing, temperatures, schedule, seed, device, progress))

    def run(number: int, n: int, progress_iter: Iterator[int]) -> Island:
        return anneal(
            annealing, path, n, make_generator(seed, "island", number, device=device), resample, progress_iter
        )

    islands = run_islands(run, sizes, len(path.steps), ranks, progress)
    cost = checks + integral.gradient_evaluations + path.gradient_evaluations + num_chains * annealing.cost(path.steps)
    result = combine(islands, path.betas, resampled=resample, gradient_evaluations=cost)
    with evaluating(compiled=False, chunk_size=chunk_size):
        return with_evidence(result, islands, annealing, path, seed, device, data, labels)


def anneal(
    annealing: Annealing,
    path: AnnealingPath,
    n: int,
    generator: torch.Generator,
    resample: bool,
    progress_iter: Iterator[int],
) -> Island:
    """Anneal one island of ``n`` chains from q_0 to the model."""
    with frozen(annealing.energy), torch.inference_mode(False), torch.no_grad():
        x = annealing.proposal.sample(n, generator=generator)
        target, phase = annealing.begin(x, generator, path_exponent=path.path_exponent)
        log_w = torch.zeros(n, dtype=torch.float64, device=x.device)
        log_z = torch.zeros((), dtype=torch.float64, device=x.device)
        ess, acceptance, origin, resamplings = [], [], torch.arange(n), 0
        total, lineages = log_w, log_w.new_zeros(0, n)  # of log weights along lineages, which resampling does not reset
        steps = path.steps.to(device=x.device, dtype=x.dtype)
        points = {round(len(steps) * (k + 1) / LINEAGE_POINTS) for k in range(LINEAGE_POINTS)}
        for t, step, beta, _ in zip(count(1), steps, path.betas[1:].tolist(), progress_iter, strict=False):
            change = target.log_ratio(phase, beta)
            log_w, total = log_w + change, total + change
            if t in points:
                lineages = torch.cat([lineages, total[None]])
            ess.append(_finite_ess(log_w, beta))
            if resample and 0 < ess[-1] < RESAMPLE_FLOOR:
                index = systematic(log_w.softmax(0), generator)
                phase, origin, resamplings = take(phase, index), origin[index.cpu()], resamplings + 1
                total, lineages = total[index], lineages[:, index]
                log_z, log_w = log_z + log_mean_exp(log_w), torch.zeros_like(log_w)
            target.beta = beta
            phase, accepted = annealing.move(target, phase, step, generator)
            acceptance.append(accepted.double().mean())
        log_p_y = _log_p_y(annealing.energy, phase.x)
        rounding = rounding_error(phase.energy)
    return Island(
        *((log_z + log_w).cpu(), log_p_y, torch.tensor(ess), torch.stack(acceptance).cpu(), phase.x.cpu(), rounding),
        *(origin, resamplings, lineages.cpu()),
    )


def _proposal(
    proposal: Density | Literal["data"] | None, data: Tensor | None, labels: Tensor | None, support: Support
) -> Density | None:
    if isinstance(support, Binary):
        return None  # which refuses proposals itself
    if not isinstance(proposal, str):
        return proposal
    if proposal != "data" or data is None:
        raise ValueError(f"'proposal' should be a Density, or 'data' together with data=, got {proposal!r}.")
    return data_base(data, labels, support)


def _streams(seed: int | None, generator: torch.Generator | None) -> tuple[int, torch.device]:
    """The seed of all streams, and the device on which they are drawn."""
    if seed is None:
        return seed_and_device(generator)
    return seed, torch.device("cpu") if generator is None else generator.device


def _refuse_proposal(proposal: Density | str | None) -> None:
    if proposal is not None:
        raise ValueError(
            f"'proposal' should be None on Binary, where annealing starts at base rates, got "
            f"{type(proposal).__name__}. To choose them, pass 'data', or 'data_mean' to classification_rbm_ais."
        )


def _log_p_y(energy: Energy, x: Tensor) -> Tensor | None:
    return energy.logits(x).double().log_softmax(1).cpu() if isinstance(energy, JointEnergy) else None


def _finite_ess(log_w: Tensor, beta: float) -> float:
    """Relative ESS of weights that are numbers; 0 if all chains are at points of zero density."""
    if bool((log_w.isnan() | (log_w == math.inf)).any()):
        raise ValueError(f"'energy' should be finite inside the support, got NaN or -inf at beta {beta:.4f}.")
    return relative_ess(log_w)
