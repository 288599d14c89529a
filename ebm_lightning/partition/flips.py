"""Flips of components with two modes: Metropolis moves that a pilot run prepares.

A chain that has chosen a side of a well early on the path does not change it by local moves, and where there are many
wells the weights cannot correct all of these choices. Flips let chains choose again.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm_lightning.partition.jumps import jump_move
from ebm_lightning.samplers.hmc import Phase, Tempered
from ebm_lightning.supports import Support

SEPARATION = 4.0  # Ashman's D of two modes of a component; the halves of a uniform density have 3.5
FEWEST = 4  # components with two modes; the modes of fewer are so few that chains see all of them
LEAST_FRACTION = 0.1  # of all components; flips of fewer cost more moves than they save
LEAST_SHARE = 0.03  # of the chains in the smaller one
WORTHWHILE = 0.08  # acceptance below which flips are left out
ACCEPTANCE, GAIN = 0.4, 2.0  # for which the number of flips at once is tuned


@dataclass(frozen=True)
class Flips:
    """Reflections of some components, each with two modes, at the middle between them.

    They are chosen in a pilot run and then do not change, so that a move is exact.

    Attributes:
        index: The components of flattened points, shape (M,).
        middle: Where each of them is reflected, shape (M,).
        number: How many flip at once, on average.
    """

    index: Tensor
    middle: Tensor
    number: float = 1.0

    def to(self, device: torch.device, dtype: torch.dtype) -> "Flips":
        return Flips(self.index.to(device), self.middle.to(device, dtype), self.number)

    def propose(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Points with some components reflected, shape (N, *shape); volumes do not change."""
        rows, share = x.flatten(1), min(1.0, self.number / len(self.index))
        flipped = torch.rand((len(x), len(self.index)), generator=generator, device=x.device) < share
        before = rows[:, self.index]
        after = torch.where(flipped, 2 * self.middle - before, before)
        return rows.index_copy(1, self.index, after).view_as(x), x.new_zeros(len(x), dtype=torch.float64)


def flips_of(x: Tensor, number: float = 1.0) -> Flips | None:
    r"""Flips of the components with two modes; None if there are none.

    Each component is divided where the variance within both parts is least. It has two modes if their distance is

    .. math:: |\mu_1 - \mu_2| > 4 \sqrt{(\sigma_1^2 + \sigma_2^2) / 2}

    References:
        Ashman, Bird & Zepf, Detecting bimodality in astronomical datasets, 1994.

    Arguments:
        x: Points, shape (N, *shape).
        number: How many flip at once, on average.
    """
    rows = x.flatten(1).double()
    n, center = len(rows), rows.mean(0)
    ordered = (rows - center).sort(0).values
    low = max(2, math.ceil(LEAST_SHARE * n))
    below = torch.arange(low, n - low + 1, device=x.device)  # number of points of the lower part
    if not len(below):
        return None
    sums, squares, n1 = ordered.cumsum(0), ordered.square().cumsum(0), below.double()[:, None]
    mean1, mean2 = sums[below - 1] / n1, (sums[-1] - sums[below - 1]) / (n - n1)
    variance1 = (squares[below - 1] / n1 - mean1.square()).clamp(min=0)
    variance2 = ((squares[-1] - squares[below - 1]) / (n - n1) - mean2.square()).clamp(min=0)
    best = (n1 * variance1 + (n - n1) * variance2).argmin(0, keepdim=True)
    mean1, mean2, variance1, variance2 = (a.gather(0, best)[0] for a in (mean1, mean2, variance1, variance2))
    index = (mean2 - mean1 > SEPARATION * ((variance1 + variance2) / 2).sqrt()).nonzero()[:, 0]
    middle = center + (mean1 + mean2) / 2
    return Flips(index, middle[index].to(x.dtype), number) if len(index) else None


class FlipFinder:
    """Tries flips of the chains of a pilot run, stage by stage, and tunes how many components flip at once.

    Attributes:
        found: The flips of each stage; None where fewer than 4 components, or a tenth of all, have two modes, or if
            hardly any flip was accepted.
        evaluations: Of the energy.
    """

    def __init__(self, support: Support) -> None:
        self.support = support
        self.found: list[Flips | None] = []
        self.evaluations = 0
        self._number = 1.0

    def stage(self, target: Tempered, phase: Phase, generator: torch.Generator) -> Phase:
        """Flips at one beta, and the chains after them."""
        flips = flips_of(phase.x, self._number)
        if flips is None or len(flips.index) < max(FEWEST, LEAST_FRACTION * phase.x[0].numel()):
            self.found.append(None)
            return phase
        phase, accepted = jump_move(target, phase, flips, self.support, generator)
        rate = float(accepted.double().mean())
        self.found.append(flips.to(torch.device("cpu"), phase.x.dtype) if rate > WORTHWHILE else None)
        self.evaluations += len(accepted)
        self._number = min(max(1.0, self._number * math.exp(GAIN * (rate - ACCEPTANCE))), float(len(flips.index)))
        return phase
