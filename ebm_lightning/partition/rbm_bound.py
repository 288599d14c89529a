r"""A deterministic lower bound of log Z of a binary RBM, from states that annealing may not have visited.

The states of the hidden units are divided into cells: all 2^k states of k of the units. A lower bound of the sum over
each cell is the larger of two: the sum of p(h) over distinct states of the cell that block Gibbs chains visited, with
visible units and labels summed exactly, and mean field for the other units,

.. math:: \log \sum_{h \in \text{cell}} p^*(h) \ge \log p^*(m) + \sum_j H(m_j),

for any rates m, where p* is extended to [0, 1]^H and H is the entropy of a bit. Cells are disjoint, so the bounds add
up. With few hidden units every cell is one state, and the bound is log Z.
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm_lightning.partition.binary_rbm import BinaryRBM
from ebm_lightning.partition.log_z import LogZ
from ebm_lightning.rbm import bernoulli

SHARE = 0.15  # of the sweeps of annealing
MIN_SWEEPS = 1000
SEARCH_ITERATIONS = 5  # of mean field from each chain
ITERATIONS = 10  # of mean field in each cell; each increases the bound
STARTS = 16  # chains from each kind of start
MODES = 4  # from which mean field starts in each cell
Z_SCORE = 4.0
TOLERANCE = 0.03  # in nats, or as a fraction of Z
MAX_GAP = 1.0  # nats, between the bound and an estimate without data
UNVISITED = 0.1  # fraction of the chains in a phase, relative to what is proven, below which they miss it
LOOSE = 5.0  # nats by which the bound of a single phase may be too low
REMEDY = "pass 'data' or 'data_mean', or raise 'temperatures'."


@dataclass(frozen=True)
class RBMBound:
    """A lower bound of log Z.

    Attributes:
        log_z: The bound, in nats.
        on, off: Lower bounds of the log of the sum over states in which hidden unit j is on, or off, shape (H,).
        exact: Whether all states were summed, so that ``log_z`` is exact.
        sweeps: Cost, in block Gibbs sweeps of one chain.
    """

    log_z: float
    on: Tensor
    off: Tensor
    exact: bool
    sweeps: int


def hold_against_bound(
    result: LogZ, rbm: BinaryRBM, ends: Tensor, data: Tensor | None, informed: bool, generator: torch.Generator
) -> LogZ:
    """The estimate, not reliable if it contradicts the lower bound, and with ``lower`` at least the bound.

    Its standard error is at least the distance by which it is below the bound, or from the exact value if known.

    Arguments:
        result: The estimate by annealing.
        rbm: The machine.
        ends: :func:`end_rates` of all chains, in the order of ``result.log_weights``.
        data: Samples of the visible units, shape (N, V), or None.
        informed: Whether base rates are those of data. Otherwise the estimate also has to be close to the bound.
        generator: For chains of the bound.
    """
    starts = [ends[torch.linspace(0, len(ends) - 1, min(len(ends), STARTS)).long()]]
    if data is not None:
        rows = torch.randperm(len(data), generator=generator, device=generator.device)[: 2 * STARTS]
        starts.append(end_rates(rbm, data[rows.to(data.device)].to(ends)))
    budget = max(MIN_SWEEPS, int(SHARE * result.gradient_evaluations))
    bound = rbm_lower_bound(smaller_layer(rbm), torch.cat(starts), budget, generator)
    below = bound.log_z - result.log_z
    return dataclasses.replace(
        result,
        std_err=max(result.std_err, abs(below) if bound.exact else below),
        lower=max(result.lower, bound.log_z),
        why=_contradiction(result, ends, bound) or result.why or ("" if informed else _unproven(result, ends, bound)),
        gradient_evaluations=result.gradient_evaluations + bound.sweeps,
    )


def _contradiction(result: LogZ, ends: Tensor, bound: RBMBound) -> str:
    """How the estimate contradicts the bound, in total or where a unit is on or off; empty if it does not."""
    tolerance = max(TOLERANCE, 3 * result.std_err)
    error = result.log_z - bound.log_z
    if error < -tolerance or (bound.exact and error > tolerance):
        of = "the exact sum over all states" if bound.exact else "a lower bound of it"
        return f"log Z is {result.log_z:.3f}, while {of} is {bound.log_z:.3f}: {REMEDY}"
    missing = max(_missing(result, ends, bound.on), _missing(result, 1 - ends, bound.off))
    if missing <= 0:
        return ""
    return f"Chains miss {100 * missing:.0f} % of the probability where some unit is on or off: {REMEDY}"


def _missing(result: LogZ, rates: Tensor, log_bound: Tensor) -> float:
    """Largest fraction of Z that the bound proves where a unit has a state, but that chains do not have; 0 if none."""
    weights = _weighted(result, rates)
    errors = weights.std(0) / math.sqrt(len(weights))
    missing = (log_bound - result.log_z).exp() - weights.mean(0)
    tolerance = (Z_SCORE * errors).clamp(min=max(TOLERANCE, 3 * result.std_err))
    return float(torch.where(missing > tolerance, missing, 0.0).max())


def _unproven(result: LogZ, ends: Tensor, bound: RBMBound) -> str:
    """Why an estimate from base rates that are not those of data is not known to be right; empty if it is."""
    if bound.log_z < result.log_z - MAX_GAP:
        return (
            f"Without data, chains may miss whole phases, and the proven lower bound of log Z is {bound.log_z:.3f}, "
            f"{result.log_z - bound.log_z:.1f} nats below the estimate: pass 'data' or 'data_mean'."
        )
    missing = max(_unvisited(result, ends, bound.on), _unvisited(result, 1 - ends, bound.off))
    if bound.exact or missing * math.exp(LOOSE) < TOLERANCE:
        return ""
    return (
        f"Without data, chains miss a phase that holds at least {100 * missing:.1g} % of the probability, and perhaps "
        "much more: pass 'data' or 'data_mean'."
    )


def _unvisited(result: LogZ, rates: Tensor, log_bound: Tensor) -> float:
    """Largest fraction of Z that the bound proves where a unit has a state, if chains have at most a tenth of it."""
    proven = (log_bound - result.log_z).exp()
    return float(torch.where(_weighted(result, rates).mean(0) < UNVISITED * proven, proven, 0.0).max())


def _weighted(result: LogZ, rates: Tensor) -> Tensor:
    """Weights of the chains times their rates, whose means are fractions of Z, shape (N, units)."""
    return (result.log_weights.to(rates.device) - result.log_z).exp()[:, None] * rates


def smaller_layer(rbm: BinaryRBM) -> BinaryRBM:
    """The machine with the smaller layer as its hidden units, if it has no classes."""
    return rbm.transposed() if rbm.transposed_is_smaller else rbm


def end_rates(rbm: BinaryRBM, v: Tensor) -> Tensor:
    """What a chain at v says about the units of the smaller layer: rates in [0, 1], shape (N, units)."""
    return v if rbm.transposed_is_smaller else rbm.hidden_rates(v)


def rbm_lower_bound(rbm: BinaryRBM, starts: Tensor, sweeps: int, generator: torch.Generator) -> RBMBound:
    """The bound, at a cost of about ``sweeps`` block Gibbs sweeps of one chain.

    Arguments:
        rbm: The machine, from :func:`smaller_layer`.
        starts: Rates of hidden units from which to start chains, such as those given data, shape (N, H).
        sweeps: The cost that is allowed.
        generator: For the chains.
    """
    units = len(rbm.hidden)
    if units < 60 and 2**units <= sweeps:
        return _sum(rbm, _cells(units, rbm.hidden), 2**units // 2)
    h = bernoulli(torch.cat([starts, _own_starts(rbm, generator)]).logit(), generator)
    length = min(50, max(2, sweeps // (4 * len(h))))
    chains = [h := rbm.hidden_sweep(h, generator) for _ in range(length)]
    visited = torch.cat(chains).unique(dim=0)
    modes = _modes(rbm, h)
    spent = len(h) * (length + SEARCH_ITERATIONS) + len(visited) // 2
    k = min(units, int(math.log2(max(1, (sweeps - spent) // (MODES + ITERATIONS)))))
    chosen = (rbm.weights.square().sum(0) * visited.var(0, correction=0)).topk(k).indices
    cells, log_p_visited = _cells(k, rbm.hidden), rbm.log_p_hidden(visited)
    log_p = _mean_field_in_cells(rbm, modes, chosen, cells)
    log_p = torch.maximum(log_p, _visited_in_cells(visited[:, chosen], log_p_visited))
    on, off = _parts(visited, log_p_visited)
    for part, of_chosen in zip((on, off), _parts(cells, log_p), strict=True):
        part[chosen] = torch.maximum(part[chosen], of_chosen)
    spent += len(cells) * (len(modes) + ITERATIONS)
    return RBMBound(float(log_p.logsumexp(0)), on, off, False, spent)


def _sum(rbm: BinaryRBM, states: Tensor, cost: int) -> RBMBound:
    log_p = torch.cat([rbm.log_p_hidden(chunk) for chunk in states.split(8192)])
    on, off = _parts(states, log_p)
    return RBMBound(float(log_p.logsumexp(0)), on, off, True, cost)


def _parts(states: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """log of the sum over the states in which each unit is on, and off."""
    return (states.log() + log_p[:, None]).logsumexp(0), ((1 - states).log() + log_p[:, None]).logsumexp(0)


def _cells(k: int, like: Tensor) -> Tensor:
    """All states of k units, shape (2^k, k)."""
    return (torch.arange(2**k, device=like.device)[:, None] >> torch.arange(k, device=like.device) & 1).to(like)


def _own_starts(rbm: BinaryRBM, generator: torch.Generator) -> Tensor:
    """Rates of hidden units far apart, shape (N, H): phases of an RBM differ by many units at once.

    Layers that are all on or off, single hidden units, both signs of the first singular vectors of W, and chance.
    """
    hidden = rbm.hidden
    strongest = rbm.weights.square().sum(0).topk(min(len(hidden), 2 * STARTS)).indices
    single = torch.eye(len(hidden), dtype=hidden.dtype, device=hidden.device)[strongest]
    vectors = torch.linalg.svd(rbm.weights, full_matrices=False).Vh[:STARTS]
    random = torch.rand(STARTS, len(rbm.visible), generator=generator, dtype=hidden.dtype, device=hidden.device).round()
    ends = torch.ones_like(rbm.visible).expand(2, -1) * torch.tensor([[0.0], [1.0]]).to(hidden)
    saturated = torch.ones_like(hidden).expand(2, -1) * torch.tensor([[0.0], [1.0]]).to(hidden)
    from_visible = rbm.hidden_rates(torch.cat([ends, random]))
    return torch.cat([saturated, single, (vectors > 0).to(hidden), (vectors < 0).to(hidden), from_visible])


def _modes(rbm: BinaryRBM, h: Tensor) -> Tensor:
    """Rates at the best distinct fixed points of mean field that start at h, shape (at most MODES, H)."""
    m = h
    for _ in range(SEARCH_ITERATIONS):
        m = rbm.mean_field(m)
    log_p = _mean_field_bound(rbm, m)
    distinct: list[int] = []
    for i in log_p.argsort(descending=True).tolist():
        if all(float((m[i] - m[j]).abs().max()) > 0.1 for j in distinct):
            distinct.append(i)
        if len(distinct) == MODES:
            break
    return m[distinct]


def _mean_field_bound(rbm: BinaryRBM, m: Tensor) -> Tensor:
    """log p*(m) + entropy of m, shape (N,)."""
    return rbm.log_p_hidden(m) - (torch.xlogy(m, m) + torch.xlogy(1 - m, 1 - m)).sum(1)


def _mean_field_in_cells(rbm: BinaryRBM, modes: Tensor, chosen: Tensor, cells: Tensor) -> Tensor:
    """Best bound for the sum over each cell, shape (2^k,). ``chosen`` are the k units whose states are the cells."""

    def bound(m: Tensor) -> tuple[Tensor, Tensor]:
        m = m.index_copy(1, chosen, cells)
        return m, _mean_field_bound(rbm, m)

    starts = [bound(mode.expand(len(cells), -1)) for mode in modes]
    best = torch.stack([log_p for _, log_p in starts]).argmax(0)
    m = torch.stack([m for m, _ in starts])[best, torch.arange(len(cells), device=best.device)]
    for _ in range(ITERATIONS):
        m, log_p = bound(rbm.mean_field(m))
    return log_p


def _visited_in_cells(visited: Tensor, log_p: Tensor) -> Tensor:
    """log of the sum over the visited states of each cell, shape (2^k,); -inf where there are none.

    ``visited`` are the k units that tell the cell, shape (N, k).
    """
    k = visited.shape[1]
    cell = (visited.long() << torch.arange(k, device=visited.device)).sum(1)
    return log_p.new_zeros(2**k).index_add(0, cell, (log_p - log_p.max()).exp()).log() + log_p.max()
