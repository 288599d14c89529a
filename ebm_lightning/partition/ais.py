"""Log Z by annealed importance sampling, forward with or without resampling, and in reverse from exact samples."""

import dataclasses
import math

import torch
from torch import Tensor

from ebm_lightning.energies import Energy
from ebm_lightning.partition.islands import EFFECTIVE_CHAINS, Progress, combine, island_sizes, run_islands
from ebm_lightning.partition.log_z import LogZ, effective_share, log_mean_exp
from ebm_lightning.partition.plan import Plan, Schedule, choose_path
from ebm_lightning.partition.proposals import Proposal, Reference
from ebm_lightning.samplers import GHMC, HMC, eval_mode, quiet
from ebm_lightning.samplers.hmc import Tempered, hamiltonian_move
from ebm_lightning.streams import make_generator
from ebm_lightning.supports import Box, Support

PILOT_CHAINS = 200


def ais(
    energy: Energy,
    support: Support,
    *,
    proposal: Proposal | None = None,
    kernel: HMC | None = None,
    temperatures: int = 250,
    chains: int = 1000,
    schedule: Schedule = "adaptive",
    resample: bool = True,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> LogZ:
    r"""log Z of exp(-E) on the support, with its error, by annealing from a normalised q_0.

    .. math:: \log p_\beta = (1 - \beta)^r \log q_0 - \beta E, \qquad
        \log w = \sum_t \log \frac{p_{\beta_t}(x_{t-1})}{p_{\beta_{t-1}}(x_{t-1})}, \qquad \mathbb{E}[w] = Z

    A pilot picks r: 1, or 12, which lets go of q_0 early, where that makes the path hardly longer.

    Works under ``no_grad`` and in inference mode, and leaves modules and the global random state as they were. Under
    bfloat16 it gives the log Z of the rounded model.

    References:
        Neal, Annealed importance sampling, 2001. https://arxiv.org/abs/physics/9803008
        Del Moral, Doucet & Jasra, Sequential Monte Carlo samplers, 2006, for ``resample``.

    Arguments:
        energy: Maps (N, *shape) to (N,), the reference density in it; a JointEnergy gives per-class figures too.
        support: The energy's domain.
        proposal: q_0; the support's reference by default. Needed on Euclidean.
        kernel: HMC, MALA or GHMC, the default; a pilot tunes its step size.
        temperatures: Steps of beta.
        chains: In all; they run in at least 10 islands, whose spread gives the error.
        schedule: "adaptive" makes all steps equally hard as the pilot saw them.
        resample: Resample an island when its effective share falls under one half (SMC). Still unbiased for Z.
        chunk_size: Most chains to run at once, which bounds the memory.
        generator: Its seed starts the islands' streams; its device is where chains run.
        progress: Wraps the loop over all temperatures of all islands, such as ``tqdm.tqdm``.

    Raises:
        ValueError: Infinite mass and no proposal, fewer than 2 chains an island, no temperatures, an energy that is
            not finite.
    """
    kernel, proposal = kernel or GHMC(), proposal or Reference(support)
    sizes = island_sizes(chains, chunk_size)
    if temperatures < 1:
        raise ValueError(f"'temperatures' should be at least 1, got {temperatures}.")
    seed, device = stream_of(generator)
    if not integrable(energy, support, proposal, make_generator(seed, "rays", device=device)):
        return LogZ(math.nan, math.nan, 0.0, integrable=False, reliable=False)
    plan = make_plan(energy, support, proposal, kernel, temperatures, schedule, seed, device)
    islands = run_islands(
        energy, support, proposal, kernel, plan, dict(enumerate(sizes)), seed, device, resample, progress
    )
    return combine([islands[k] for k in sorted(islands)], plan, kernel, resample)


def reverse_ais(
    energy: Energy,
    support: Support,
    samples: Tensor,
    *,
    exact: bool,
    proposal: Proposal | None = None,
    kernel: HMC | None = None,
    temperatures: int = 250,
    schedule: Schedule = "adaptive",
    generator: torch.Generator | None = None,
) -> LogZ:
    r"""log Z from chains that start at ``samples`` of the model and anneal to q_0 (bidirectional Monte Carlo).

    .. math:: \mathbb{E}[1 / w] = 1 / Z, \qquad \text{so } -\log \overline{1 / w} \text{ is a stochastic upper bound}

    The bound holds only for exact samples. From a replay buffer, from data, or from the ends of forward chains the
    number is wrong by as much as they are, on either side, and still looks converged: ``upper`` is then None and
    ``reliable`` False.

    References:
        Grosse, Ghahramani & Adams, Sandwiching the marginal likelihood using bidirectional Monte Carlo, 2015.
        https://arxiv.org/abs/1511.02543

    Arguments:
        energy, support, proposal, kernel, temperatures, schedule, generator: As for :func:`ais`.
        samples: Shape (N, *shape), one chain each.
        exact: Whether ``samples`` are independent exact draws of the model.
    """
    support.check(samples, "samples")
    kernel, proposal = kernel or GHMC(), proposal or Reference(support)
    seed, device = stream_of(generator)
    plan = make_plan(energy, support, proposal, kernel, temperatures, schedule, seed, device)
    rng = make_generator(seed, "reverse", device=device)
    with quiet(energy), torch.inference_mode(False), torch.no_grad():
        x = samples.to(device).clone()
        target = Tempered(energy, proposal, 1.0, plan.release)
        phase = target.at(x, torch.randn(x.shape, generator=rng, device=device, dtype=x.dtype))
        log_w = torch.zeros(len(x), dtype=torch.float64, device=device)
        steps, betas = plan.steps.to(device=device, dtype=x.dtype), plan.betas.tolist()
        for t in range(temperatures, 0, -1):
            target.beta = betas[t]
            phase, _ = hamiltonian_move(target, phase, steps[t - 1], support, kernel, rng)
            log_w = log_w - target.log_ratio(phase, betas[t - 1])
    log_w = log_w.cpu()
    ess = effective_share(-log_w)
    std_err = math.sqrt(max(0.0, (1 / ess - 1) / len(x)))
    log_z = -float(log_mean_exp(-log_w))
    return LogZ(
        log_z,
        std_err,
        ess,
        log_w,
        upper=log_z if exact else None,
        reliable=exact and ess * len(x) >= EFFECTIVE_CHAINS,
        gradient_evaluations=plan.gradient_evaluations + len(x) * (1 + temperatures * kernel.leapfrogs),
        betas=plan.betas,
    )


def bracket(forward: LogZ, backward: LogZ, gap: float = 1.0) -> LogZ:
    """The forward estimate with the backward upper bound; unreliable if they lie more than ``gap`` nats apart.

    Raises:
        ValueError: The backward run did not start at exact samples.
    """
    if backward.upper is None:
        raise ValueError("'backward' should come from exact samples to be a bound, got exact=False.")
    close = backward.upper - forward.lower <= gap + 2 * (forward.std_err + backward.std_err)
    return dataclasses.replace(forward, upper=backward.upper, reliable=forward.reliable and close)


def make_plan(
    energy: Energy,
    support: Support,
    proposal: Proposal,
    kernel: HMC,
    temperatures: int,
    schedule: Schedule,
    seed: int,
    device: torch.device,
) -> Plan:
    """The frozen path, from pilots with a stream of their own."""
    with quiet(energy), torch.inference_mode(False), torch.no_grad():
        pilot = choose_path(energy, support, proposal, kernel, PILOT_CHAINS, seed, device)
    return pilot.plan(temperatures, schedule)


def integrable(energy: Energy, support: Support, proposal: Proposal, generator: torch.Generator) -> bool:
    """Whether the energy rises fast enough along rays for exp(-E) to have an integral; True on a box.

    In D dimensions that takes E(10 r) - E(r) > D log 10 for large r.
    """
    if isinstance(support, Box):
        return True
    with eval_mode(energy), torch.no_grad():
        start = proposal.sample(256, generator)
        ray = torch.randn(start.shape, generator=generator, device=start.device)
        ray = ray / ray.flatten(1).norm(dim=1).view(-1, *[1] * (ray.ndim - 1)) * start.flatten(1).norm(dim=1).mean()
        near, far = energy(1e2 * ray).double(), energy(1e3 * ray).double()
    if far.isnan().any() or near.isnan().any():
        raise ValueError("'energy' should be finite inside the support, got NaN far from the origin.")
    return bool(((far - near > ray[0].numel() * math.log(10)) | (near == math.inf)).all())


def stream_of(generator: torch.Generator | None) -> tuple[int, torch.device]:
    """A seed drawn from ``generator`` (or the global one), and its device."""
    device = torch.device("cpu") if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device)), device
