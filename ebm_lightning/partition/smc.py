"""Sequential Monte Carlo in islands: blocks of chains that run independently and combine into one estimate of log Z.

Every island has a separate random stream, so the estimate does not depend on which process runs which island.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ebm_lightning.checks import check_integer
from ebm_lightning.partition.diagnostics.pareto import largest_reliable_shape, pareto_shape
from ebm_lightning.partition.islands import Island, relative_variance
from ebm_lightning.partition.log_z import LogZ, log_mean_exp, relative_ess
from ebm_lightning.samplers.base import Progress

ISLANDS = 10  # the error is their spread; fewer than 8 estimate it poorly
EFFECTIVE_CHAINS = 50  # with fewer, intervals cover the truth less often than their level
MAX_STD_ERR = 0.5
EFFECTIVE_CHAINS_PER_CLASS = 10


class Ranks(Protocol):
    """The processes that compute one estimate together. All of them call :func:`~ebm_lightning.ais` alike."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def broadcast(self, value: Any) -> Any:
        """``value`` of rank 0."""

    def all_gather(self, value: Any) -> list[Any]:
        """The ``value`` of every rank, in order of rank."""


class OneProcess:
    """:class:`Ranks` of a single process."""

    rank = 0
    world_size = 1

    def broadcast(self, value: Any) -> Any:
        return value

    def all_gather(self, value: Any) -> list[Any]:
        return [value]


def island_sizes(num_chains: int, chunk_size: int | None) -> list[int]:
    """Number of chains of each island, as equal as possible.

    Raises:
        ValueError: Fewer than 2 chains per island, or a chunk below 2.
    """
    check_integer("num_chains", num_chains, at_least=2 * ISLANDS, remedy=f"Each of {ISLANDS} islands needs 2 chains.")
    check_integer("chunk_size", chunk_size, at_least=2, optional=True)
    islands = max(ISLANDS, math.ceil(num_chains / (chunk_size or num_chains)))
    return [num_chains // islands + (k < num_chains % islands) for k in range(islands)]


def run_islands(
    run: Callable[[int, int, Iterator[int]], Island],
    sizes: list[int],
    temperatures: int,
    ranks: Ranks,
    progress: Progress | None = None,
) -> list[Island]:
    """Run this rank's islands, and return those of all ranks in order.

    Arguments:
        run: Maps (number of the island, number of its chains, iterator to advance at each temperature) to the island.
        sizes: Number of chains of each island.
        temperatures: Steps of each island.
        ranks: The processes over which the islands are distributed.
        progress: Wraps this rank's loop over the temperatures of its islands.
    """
    mine = range(ranks.rank, len(sizes), ranks.world_size)
    progress_iter = iter((progress or iter)(range(temperatures * len(mine))))
    islands = {number: run(number, sizes[number], progress_iter) for number in mine}
    next(progress_iter, None)  # exhausted, so that the progress bar closes
    gathered = {number: island for part in ranks.all_gather(islands) for number, island in part.items()}
    return [gathered[number] for number in range(len(sizes))]


def combine(islands: list[Island], betas: Tensor, *, resampled: bool, gradient_evaluations: int) -> LogZ:
    """One estimate from all islands: the log of their mean Z. The mean of their log Z would be biased.

    Arguments:
        islands: All islands, in order.
        betas: The path that they followed, shape (T + 1,).
        resampled: Whether chains were resampled, which makes those of an island dependent.
        gradient_evaluations: Total cost, pilot included.
    """
    log_weights = torch.cat([island.log_weights for island in islands])
    log_zs = torch.stack([log_mean_exp(island.log_weights) for island in islands])
    fractions = torch.tensor([len(island.log_weights) / len(log_weights) for island in islands], dtype=torch.float64)
    error = (
        _error_over_islands(islands, log_weights, log_zs, fractions) if resampled else _error_over_chains(log_weights)
    )
    per_class, per_class_std_err = _per_class(islands)
    return LogZ(
        float(log_mean_exp(log_weights)),
        error.std_err,
        error.ess,
        log_weights,
        error.lower,
        per_class=per_class,
        per_class_std_err=per_class_std_err,
        why=degenerate(error.ess * len(log_weights), error.std_err),
        gradient_evaluations=gradient_evaluations,
        samples=torch.cat([island.ends for island in islands]),
        degrees_of_freedom=error.degrees_of_freedom,
        betas=betas,
        ess_curve=torch.stack([island.ess for island in islands]).mean(0),
        acceptance=torch.stack([island.acceptance for island in islands]).mean(0),
    )


def degenerate(effective_chains: float, std_err: float) -> str:
    """Why weights are too uneven for a reliable estimate; empty if they are not."""
    if effective_chains >= EFFECTIVE_CHAINS and std_err < MAX_STD_ERR:
        return ""
    return (
        f"The weights are worth {effective_chains:.0f} independent chains, with a standard error of {std_err:.2g} "
        f"nats, and at least {EFFECTIVE_CHAINS} and less than {MAX_STD_ERR} are needed: raise 'temperatures' or "
        "'num_chains'."
    )


class _Error(NamedTuple):
    """Fields of a :class:`LogZ` that describe its error."""

    std_err: float
    ess: float
    lower: float
    degrees_of_freedom: float


def _error_over_islands(islands: list[Island], log_weights: Tensor, log_zs: Tensor, fractions: Tensor) -> _Error:
    """From the spread of the islands' Z, or of chains with a common origin if that is larger."""
    log_z = log_mean_exp(log_weights)
    parts = [(island.log_weights - log_z).exp()[:, None] / len(log_weights) for island in islands]
    std_err = float(relative_variance(parts, islands).sqrt())
    ess = 1 / (1 + len(log_weights) * std_err**2)
    return _Error(std_err, ess, float((fractions * log_zs).sum()), len(islands) - 1.0)


def _error_over_chains(log_weights: Tensor) -> _Error:
    """From the weights of independent chains."""
    ess = relative_ess(log_weights)
    std_err = math.sqrt(max(0.0, (1 / ess - 1) / len(log_weights)))
    return _Error(std_err, ess, float(log_weights.mean()), math.inf)


def _per_class(islands: list[Island]) -> tuple[Tensor | None, Tensor | None]:
    """log Z_y and their standard errors over islands, shape (K,); None for an energy without classes."""
    parts = [i.log_weights[:, None] + i.log_p_y for i in islands if i.log_p_y is not None]
    if not parts:
        return None, None
    log_w, log_p_y = torch.cat(parts), torch.cat([i.log_p_y for i in islands if i.log_p_y is not None])
    per_class = log_mean_exp(log_w)
    std_err = relative_variance([(part - per_class).exp() / len(log_w) for part in parts], islands).sqrt()
    return per_class, std_err.where(carried_by_chains(log_w, log_p_y), math.nan)


def carried_by_chains(log_w: Tensor, log_p_y: Tensor) -> Tensor:
    """Whether the chains are where the mass of each class is, shape (K,), bool. Otherwise its Z_y is an extrapolation.

    Either the mass lies at points that the classifier assigns to the class, or so many chains carry it that the Pareto
    shape of their weights is small.

    Arguments:
        log_w: log of weight times p(y|x) of each chain, shape (n, K).
        log_p_y: log p(y|x) of each chain, shape (n, K).
    """
    effective_chains = (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()
    mean_p_y = ((log_w + log_p_y).logsumexp(0) - log_w.logsumexp(0)).exp()
    assigned = (mean_p_y > 0.5) & (effective_chains >= EFFECTIVE_CHAINS_PER_CLASS)
    return assigned | (pareto_shape(log_w) < largest_reliable_shape(len(log_w)))
