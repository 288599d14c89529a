"""log Z by annealed importance sampling, with or without resampling."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ebm_lightning.checks import check_integer
from ebm_lightning.energies import Energy, JointEnergy
from ebm_lightning.partition.annealing_path import Annealing, AnnealingPath, Schedule
from ebm_lightning.partition.log_z import LogZ, log_mean_exp, relative_ess
from ebm_lightning.partition.pilot import tune_path
from ebm_lightning.partition.proposals import checked_proposal
from ebm_lightning.partition.rbm_ais import classification_rbm_ais
from ebm_lightning.partition.resampling import systematic, take
from ebm_lightning.partition.smc import Island, OneProcess, Ranks, combine, island_sizes, run_islands
from ebm_lightning.rng import make_generator, seed_and_device
from ebm_lightning.samplers import GHMC, HMC, eval_mode, frozen
from ebm_lightning.samplers.base import Progress
from ebm_lightning.supports import Binary, Box, Density, Support

RESAMPLE_FLOOR = 0.5
INFINITE = (
    "The energy falls along some direction, so Z is infinite: use a Box or Gaussian support, or an energy that grows."
)


def ais(
    energy: Energy,
    support: Support,
    *,
    proposal: Density | None = None,
    kernel: HMC | None = None,
    temperatures: int = 250,
    num_chains: int = 1000,
    schedule: Schedule = "adaptive",
    resample: bool = True,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> LogZ:
    r"""log Z of exp(-E) on the support, with its error, by annealing from a proposal density q_0.

    .. math:: \log p_\beta = (1 - \beta)^r \log q_0 - \beta E, \qquad
        \log w = \sum_t \log \frac{p_{\beta_t}(x_{t-1})}{p_{\beta_{t-1}}(x_{t-1})}, \qquad \mathbb{E}[w] = Z

    A pilot run picks the path exponent r: 1, or 12 where that makes the path at most a quarter longer. On a
    :class:`~ebm_lightning.supports.Binary` support the energy must be that of a
    :class:`~ebm_lightning.modules.ClassificationRBM`, which is annealed by block Gibbs from the base rates of its
    training data (:func:`~ebm_lightning.partition.classification_rbm_ais`). There, ``kernel``, ``schedule``,
    ``resample`` and ``chunk_size`` are not used.

    Works under ``no_grad`` and in inference mode. The state of modules and the global random state do not change.
    Under bfloat16 the result is the log Z of the rounded model.

    References:
        Neal, Annealed importance sampling, 2001. https://arxiv.org/abs/physics/9803008
        Del Moral, Doucet & Jasra, Sequential Monte Carlo samplers, 2006, for ``resample``.

    Arguments:
        energy: Maps (N, *shape) to (N,), including the reference density. A JointEnergy also gives log Z_y.
        support: Domain of the energy.
        proposal: q_0, any :class:`~ebm_lightning.supports.Density` on the same domain; by default the support's
            reference density. Required on Euclidean without a reference. It should cover the model: where q_0 is
            nearly 0, as at walls at which it vanishes, log Z can be too low without any sign in the diagnostics.
        kernel: GHMC by default, or HMC or MALA. A pilot run tunes its step size.
        temperatures: Number of steps of beta from 0 to 1.
        num_chains: Total number of chains. They run in at least 10 islands, whose spread gives the error.
        schedule: Spacing of the temperatures: "adaptive" makes all steps equally hard, "linear" equally long, and
            "sigmoid" is dense at both ends.
        resample: Resample an island when its relative ESS falls below one half (SMC). Z stays unbiased.
        chunk_size: Largest number of chains to run at once; bounds the memory.
        generator: Its seed starts the streams of the islands, its device is where chains run.
        seed: Seed of the streams, in place of the generator's.
        progress: Wraps this process's loop over the temperatures of its islands, such as ``tqdm.tqdm``.
        ranks: The processes that divide the islands among them. The result is the same on all of them, and does not
            depend on their number.

    Raises:
        ValueError: Infinite mass and no proposal, a proposal on another domain, fewer than 2 chains per island, no
            temperatures, or an energy that is not finite.
    """
    ranks = ranks or OneProcess()
    seed, device = _streams(seed, generator)
    if isinstance(support, Binary):
        _refuse_proposal(proposal)
        rng = make_generator(seed, "rbm", device=device)
        return classification_rbm_ais(
            energy, temperatures=temperatures, num_chains=num_chains, generator=rng, progress=progress, ranks=ranks
        )
    check_integer("temperatures", temperatures, at_least=1)
    sizes = island_sizes(num_chains, chunk_size)
    annealing = Annealing(energy, support, checked_proposal(proposal, support), kernel or GHMC())
    if not integrable(energy, support, annealing.proposal, make_generator(seed, "rays", device=device)):
        return LogZ(math.nan, math.nan, 0.0, integrable=False, why=INFINITE)
    path = ranks.broadcast(tune_path(annealing, temperatures, schedule, seed, device))

    def run(number: int, n: int, progress_iter: Iterator[int]) -> Island:
        return anneal(
            annealing, path, n, make_generator(seed, "island", number, device=device), resample, progress_iter
        )

    islands = run_islands(run, sizes, temperatures, ranks, progress)
    cost = path.gradient_evaluations + num_chains * (1 + temperatures * annealing.kernel.leapfrogs)
    return combine(islands, path.betas, resampled=resample, gradient_evaluations=cost)


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
        ess, acceptance = [], []
        steps = path.steps.to(device=x.device, dtype=x.dtype)
        for step, beta, _ in zip(steps, path.betas[1:].tolist(), progress_iter, strict=False):
            log_w = log_w + target.log_ratio(phase, beta)
            ess.append(_finite_ess(log_w, beta))
            if resample and ess[-1] < RESAMPLE_FLOOR:
                phase = take(phase, systematic(log_w.softmax(0), generator))
                log_z, log_w = log_z + log_mean_exp(log_w), torch.zeros_like(log_w)
            target.beta = beta
            phase, accepted = annealing.move(target, phase, step, generator)
            acceptance.append(accepted.double().mean())
        log_class = _log_class(annealing.energy, phase.x, log_w)
    return Island((log_z + log_w).cpu(), log_class, torch.tensor(ess), torch.stack(acceptance).cpu())


def integrable(energy: Energy, support: Support, proposal: Density, generator: torch.Generator) -> bool:
    """Whether the energy rises fast enough along rays for exp(-E) to have a finite integral; True on a box.

    In D dimensions this requires E(10 r) - E(r) > D log 10 for large r. Tested on 256 random rays.

    Raises:
        ValueError: The energy is NaN far from the origin.
    """
    if isinstance(support, Box):
        return True
    with eval_mode(energy), torch.no_grad():
        points = proposal.sample(256, generator=generator)
        ray = torch.randn(points.shape, generator=generator, device=points.device)
        ray = ray / ray.flatten(1).norm(dim=1).view(-1, *[1] * (ray.ndim - 1)) * points.flatten(1).norm(dim=1).mean()
        near, far = energy(1e2 * ray).double(), energy(1e3 * ray).double()
    if far.isnan().any() or near.isnan().any():
        raise ValueError("'energy' should be finite inside the support, got NaN far from the origin.")
    return bool(((far - near > ray[0].numel() * math.log(10)) | (near == math.inf)).all())


def _streams(seed: int | None, generator: torch.Generator | None) -> tuple[int, torch.device]:
    """The seed of all streams, and the device on which they are drawn."""
    if seed is None:
        return seed_and_device(generator)
    return seed, torch.device("cpu") if generator is None else generator.device


def _refuse_proposal(proposal: Density | None) -> None:
    if proposal is not None:
        raise ValueError(
            f"'proposal' should be None on Binary, where annealing starts at base rates, got "
            f"{type(proposal).__name__}. To choose them, pass 'data_mean' to classification_rbm_ais."
        )


def _log_class(energy: Energy, x: Tensor, log_w: Tensor) -> Tensor | None:
    """Log of the weighted mean of p(y|x), shape (K,)."""
    if not isinstance(energy, JointEnergy):
        return None
    log_p_y = energy.logits(x).double().log_softmax(1)
    return (log_w.log_softmax(0)[:, None] + log_p_y).logsumexp(0).cpu()


def _finite_ess(log_w: Tensor, beta: float) -> float:
    ess = relative_ess(log_w)
    if math.isnan(ess):
        raise ValueError(f"'energy' should be finite inside the support, got NaN at beta {beta:.4f}.")
    return ess
