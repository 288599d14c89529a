"""Heavy tails and curved valleys: mass that the proposal hardly reaches, although the weights look even.

Three tests of a finished run. Valleys are followed outward from the ends of the chains. Heavy tails show in the
kurtosis of the ends, and a proposal that is too narrow in ends far from its center. Where they do, a short run from a
wider proposal says how much it matters: the error of the first estimate becomes at least the distance between both, and
if they disagree the estimate is not reliable. A model without heavy tails, only wider than the proposal, passes; and so
does one whose tails are those of the proposal.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ebm_lightning.energies import Energy
from ebm_lightning.partition.annealing_path import Annealing, Steps
from ebm_lightning.partition.diagnostics.scaled_copies import missed_shells
from ebm_lightning.partition.diagnostics.second_run import covers_the_box, second_opinion, wider_base
from ebm_lightning.partition.diagnostics.valleys import valley_verdict
from ebm_lightning.partition.mixture import Mixture
from ebm_lightning.partition.proposals import Normal
from ebm_lightning.partition.scalings import Scaling
from ebm_lightning.partition.student import RUN_AGAIN
from ebm_lightning.samplers import frozen
from ebm_lightning.supports import Box, ClassGaussians, Density, Support

EXCESS_KURTOSIS = 3.0
REACH, LEAST_REACH = 5.0, 3.0  # standard deviations; the latter of the proposal
OUTSIDE = 0.05  # weight of the chains beyond it
DIRECTIONS = 64
STAGES, TEMPERATURES_PER_STAGE = 6, 50  # at most 6 stages, or an eighth of the gradients of a longer run
CHAINS, FULL_LENGTH, FEWEST = 1.75, 250, 200  # times as many chains as the first run, fewer below 250 temperatures
BOX_STAGES, BOX_CHAINS = 9, 1.25  # in place of STAGES and CHAINS on a box
ALIKE = 100.0  # nats by which the log ratio of model and proposal varies where their tails are alike
FAR, FAR_CHAINS = (30.0, 100.0), 250  # times the distance from their mean, of so many chains
SHELLS = 3.0  # spread of the distances from the center, relative to a normal distribution
MAX_DIMENSIONS = 32  # of a box in which heavy tails ask for a second run; in more, only scalings do
HEAVY_STAGES, MAX_ERROR = 3, 0.1  # stricter where the kurtosis is large: chains miss tails alike in both runs
MAX_DISTANCE, NOISE = 0.15, 2.0  # two runs agree within 0.15 nat or 2 standard errors of their difference
WIDER = (
    "The model is wider than its proposal or has heavy tails: chains end up to {:.0f} standard deviations of the "
    "proposal away, and a second run does not confirm the estimate. {}"
)
REMEDY = f"{RUN_AGAIN}, or is wider."
REMEDY_IN_BOX = (
    "Run it again with proposal=Mixture([StudentT.fit(estimate.samples, estimate.log_weights, box=support), support]), "
    "both of ebm_lightning.partition."
)
NARROW = f"The model is much narrower than its box, and a second run does not confirm the estimate. {REMEDY_IN_BOX}"


class Beyond(NamedTuple):
    """What lies where no chain went.

    Attributes:
        why: Why mass lies there, in one sentence. Empty without a sign of that.
        std_err: The standard error of the estimate, at least its distance from the second run if there was one.
        gradient_evaluations: Cost of the tests.
    """

    why: str
    std_err: float
    gradient_evaluations: int


def beyond_the_chains(
    annealing: Annealing,
    steps: Steps,
    x: Tensor,
    log_w: Tensor,
    log_z: float,
    std_err: float,
    generator: torch.Generator,
) -> Beyond:
    """Test for valleys and heavy tails beyond the ends of the chains.

    Arguments:
        annealing: Of the run.
        steps: Of its moves; the last is the preconditioner of the model.
        x: Ends of its chains, shape (N, *shape).
        log_w: Their log weights, as in :class:`~ebm_lightning.partition.LogZ`, shape (N,).
        log_z, std_err: Its estimate.
        generator: Source of randomness.
    """
    energy, support, proposal = annealing.energy, annealing.support, annealing.proposal
    missed, cost = valley_verdict(energy, support, proposal, x, log_w, generator, log_z)
    if not missed:
        missed, copies = missed_shells(energy, support, x, log_w)
        cost += copies
    if missed:
        return Beyond(missed, std_err, cost)
    if covers_the_box(proposal):
        narrow = steps.have(Scaling) or _peaked(x, log_w, support, generator)
        heavy, why = False, NARROW if narrow else ""
    else:
        signs = _signs(x, log_w, proposal, generator)
        if signs.kurtosis and not isinstance(support, Box):
            signs = signs._replace(kurtosis=not tails_are_alike(energy, proposal, x))
            cost += min(len(x), FAR_CHAINS) * (1 + len(FAR))
        heavy, why = signs.kurtosis or signs.shells, signs.why(support)
    if not why:
        return Beyond("", std_err, cost)
    step = steps.to(x.device, x.dtype).last
    base = wider_base(x, log_w, proposal, support, generator, step, heavy=heavy)
    stages, chains = HEAVY_STAGES if heavy else max(STAGES, len(steps) // TEMPERATURES_PER_STAGE), CHAINS
    if isinstance(support, Box):
        stages, chains = BOX_STAGES, BOX_CHAINS
    chains = max(FEWEST, round(chains * len(x) * min(1.0, len(steps) / FULL_LENGTH)))
    second = second_opinion(replace(annealing, proposal=base), step, chains, stages, generator)
    error, noise = second.error_of(log_z, std_err), math.hypot(std_err, second.std_err)
    agree = error < MAX_ERROR if heavy else abs(second.log_z - log_z) < max(MAX_DISTANCE, NOISE * noise)  # no for NaN
    return Beyond("" if agree else why, error, cost + second.gradient_evaluations)


def _peaked(x: Tensor, log_w: Tensor, box: Support, generator: torch.Generator) -> bool:
    """Whether the ends have heavy tails relative to their standard deviations, in at most 32 dimensions."""
    if x[0].numel() > MAX_DIMENSIONS:
        return False
    w, rows = log_w.double().to(x.device).softmax(0), x.flatten(1).double()
    std = (w @ (rows - w @ rows).square()).sqrt().clamp(min=1e-30)
    signs = _signs(x, log_w, Normal((w @ rows).view(x.shape[1:]), std.view(x.shape[1:])), generator)
    return signs.kurtosis or signs.shells


def tail_verdict(x: Tensor, log_w: Tensor, proposal: Density, generator: torch.Generator) -> str:
    """Why the tails of the model are too heavy or too wide for the proposal; empty without a sign of that.

    A sign is an axis or random direction in which either the weighted ends have an excess kurtosis above 3 and reach
    5 standard deviations of the proposal (or 5 of their own and 3 of the proposal), or 5 % of their weight is 5
    standard deviations of the proposal from its mean. Another sign is that their squared distances from the mean vary
    three times as much as those of a normal distribution, and reach beyond those of the proposal.

    Arguments:
        x: Ends of the chains, shape (N, *shape).
        log_w: Their log weights since the last resampling plus the log Z of their island, shape (N,).
        proposal: Where they started.
        generator: Source of the directions.
    """
    return _signs(x, log_w, proposal, generator).why()


class _Signs(NamedTuple):
    """What the ends of the chains show, as :func:`tail_verdict` says."""

    kurtosis: bool
    outside: bool
    shells: bool
    farthest: float

    def why(self, support: Support | None = None) -> str:
        """What the signs mean and a remedy on that support, in words; empty if there are none."""
        remedy = REMEDY_IN_BOX if isinstance(support, Box) else REMEDY
        return WIDER.format(self.farthest, remedy) if self.kurtosis or self.outside or self.shells else ""


def tails_are_alike(energy: Energy, proposal: Density, x: Tensor) -> bool:
    """Whether the tails of a model are those of its proposal, up to a bounded factor, so that none can be missed.

    A joint energy model with bounded logits, annealed from its reference density, is of this kind. Its chains may have
    a large kurtosis nevertheless.

    Arguments:
        energy: Maps (N, *shape) to (N,).
        proposal: Density from which it was annealed.
        x: Ends of the chains, shape (N, *shape).
    """
    center = x.double().mean(0)
    x = x[torch.linspace(0, len(x) - 1, min(len(x), FAR_CHAINS), device=x.device).round().long()]
    with frozen(energy), torch.no_grad():
        far = [(center + factor * (x - center)).to(x.dtype) for factor in (1.0, *FAR)]
        log_ratio = torch.cat([energy(part).double() + proposal.log_prob(part).double() for part in far])
    return bool(log_ratio.max() - log_ratio.min() < ALIKE)  # no for NaN


def _signs(x: Tensor, log_w: Tensor, proposal: Density, generator: torch.Generator) -> _Signs:
    """Whether kurtosis, weight far outside the proposal, or the distances from the mean are signs of wide tails."""
    z = _standardized(x, proposal, generator)
    directions = torch.randn((z.shape[1], DIRECTIONS), generator=generator, device=generator.device).to(z)
    z = torch.cat([z, z @ (directions / directions.norm(dim=0))], 1)
    w = log_w.double().to(z.device).softmax(0)[:, None]
    centered = z - (w * z).sum(0)
    kurtosis = (w * centered**4).sum(0) / (w * centered**2).sum(0).clamp(min=1e-30) ** 2 - 3
    reach, spread = z.abs().amax(0), (w * centered**2).sum(0).sqrt()
    outside = (w * (z.abs() > REACH)).sum(0)
    heavy = (kurtosis > EXCESS_KURTOSIS) & (reach > REACH * spread.clamp(max=1)) & (reach > LEAST_REACH)
    signs = heavy | (outside > OUTSIDE)
    farthest = float(reach[signs].max() if signs.any() else reach.max())
    shells = _has_shells(z[:, : x[0].numel()], w)
    return _Signs(bool(heavy.any()), bool((outside > OUTSIDE).any()), shells, farthest)


def _has_shells(z: Tensor, w: Tensor) -> bool:
    """Whether squared distances from the mean vary much more than those of a normal distribution of that covariance.

    In high dimension heavy tails hardly show in any direction, but they do in the distances. Not where the proposal
    reaches as far.
    """
    dimensions = z.shape[1]
    if z.square().sum(1).max() < dimensions + LEAST_REACH * math.sqrt(2 * dimensions):
        return False
    centered = z - (w * z).sum(0)
    centered = centered / (w * centered.square()).sum(0).sqrt().clamp(min=1e-30)
    squared, rows = centered.square().sum(1), w.sqrt() * centered
    variance = (w[:, 0] * (squared - (w[:, 0] * squared).sum()).square()).sum()
    correlation = rows.T @ rows if dimensions < len(rows) else rows @ rows.T  # of the same norm
    return bool(variance > SHELLS * 2 * correlation.square().sum())


def _standardized(x: Tensor, proposal: Density, generator: torch.Generator) -> Tensor:
    """Rows of ``x`` in standard deviations of the proposal, of the likeliest component if it is a mixture."""
    of, components = _components(x, proposal, generator.device)
    rows, z = x.flatten(1).double(), torch.zeros_like(x.flatten(1).double())
    for k, sample in enumerate(components):
        start = sample(1000, generator=generator).flatten(1).double().to(x.device)
        center, scale = _location_and_scale(start)
        z[of == k] = (rows[of == k] - center) / scale
    return z


def _components(x: Tensor, proposal: Density, device: torch.device) -> tuple[Tensor, list[Callable[..., Tensor]]]:
    """The likeliest component for each of ``x``, shape (N,), and what draws from each component."""
    reference = getattr(proposal, "reference", None) or proposal  # of a support
    if isinstance(proposal, Mixture):
        return proposal.joint_log_prob(x).argmax(1), [component.sample for component in proposal.components]
    if isinstance(reference, ClassGaussians):
        joint = reference.log_joint(x)
        labels = [torch.full((1000,), k, device=device) for k in range(joint.shape[1])]
        return joint.argmax(1), [functools.partial(reference.sample, labels=y) for y in labels]
    return x.new_zeros(len(x), dtype=torch.long), [proposal.sample]


def _location_and_scale(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Median and half the distance of the quantiles of a normal's standard deviations, which exist for any tails."""
    low, middle, high = rows.quantile(torch.tensor([0.1587, 0.5, 0.8413], device=rows.device, dtype=rows.dtype), 0)
    return middle, ((high - low) / 2).clamp(min=1e-12)
