"""Adaptive quadrature on boxes of one or two dimensions: cells that hold mass are divided until their sums agree.

Each cell is integrated twice, once as a whole and once in halves along each axis. Their difference is the error.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ebm_lightning.energies import Energy
from ebm_lightning.partition.cells import NODES, Cells, LogDensity, children, evaluate_cells, integrate_cells
from ebm_lightning.supports import Box

TOLERANCE = 1e-4  # nats
MAX_POINTS = 4_000_000
FIRST_CELLS = {1: 1024, 2: 64}  # along each axis


class Integral(NamedTuple):
    """The integral of each of K densities.

    Attributes:
        log_z: Log of the integrals, shape (K,), float64.
        error: Relative error of each, shape (K,), float64: by how much the last halving of the cells changed it.
        points: Number of points at which the densities were evaluated.
    """

    log_z: Tensor
    error: Tensor
    points: int


def integrate(
    energy: Energy,
    box: Box,
    tolerance: float = TOLERANCE,
    max_points: int = MAX_POINTS,
    device: torch.device | str | None = None,
    chunk_size: int = 65_536,
) -> Integral:
    r"""The integral of exp(-E(x)), or of exp(-E(x, y)) for each class y of a JointEnergy, over a box.

    Where the energy is steep, a search for its minimum in each cell finds peaks that are narrower than the spacing of
    the points, 1/500 of the box in two dimensions. Only a peak that leaves no trace at this distance is missed: one on
    top of a broad density, with a standard deviation below 1/2000 of the box. In a JointEnergy each class is searched.

    Arguments:
        energy: Maps (N, D) to (N,). +inf is zero density.
        box: Of shape (1,) or (2,).
        tolerance: Divide cells until the relative error of each integral is below this.
        max_points: Stop at this number of points.
        device: Where points are evaluated; by default where the energy's parameters are.
        chunk_size: Number of points to evaluate at once.

    Raises:
        ValueError: The energy is NaN at a point.
    """
    log_p = LogDensity(energy, box, device, chunk_size)
    first = FIRST_CELLS[box.shape[0]]
    width = (box.high - box.low) / first
    axis = box.low + width * (torch.arange(first, dtype=torch.float64) + 0.5)
    center = torch.cartesian_prod(*[axis] * box.shape[0]).view(-1, box.shape[0])
    widths = torch.full((len(center),), width, dtype=torch.float64)
    cells = evaluate_cells(log_p, center, widths, integrate_cells(log_p, center, widths).log_mass)
    while not bool(((result := summary(log_p, cells)).error <= tolerance).all()):
        chosen = cells_to_divide(log_p, cells, tolerance, max_points)
        if len(chosen) == 0:
            break
        kept = torch.ones(len(cells.width), dtype=torch.bool)
        kept[chosen] = False
        halves = children(cells.center[chosen], cells.width[chosen])
        divided = evaluate_cells(log_p, *halves, cells.parts[chosen].flatten(0, 1))
        cells = Cells(*(torch.cat([old[kept], new]) for old, new in zip(cells, divided, strict=True)))
    return result


def summary(log_p: LogDensity, cells: Cells) -> Integral:
    """The integrals over all cells, with their errors."""
    fine = cells.parts.logsumexp(1)
    log_z = fine.logsumexp(0)
    scale = log_z.nan_to_num(0.0, 0.0, 0.0)  # 0 for an integral that is 0 or infinite
    change = _exp(fine - scale) - _exp(cells.coarse - scale)
    # The changes of smooth cells add up, those of cells with a jump in them are of random sign.
    error = change.sum(0).abs() + change.square().sum(0).sqrt() + _exp(cells.missed - scale).sum(0)
    # Rounding the energies by up to u changes the mean of exp(-E) by a fraction of the order of u^2.
    error = error + 0.5 * (log_p.resolution * scale).square()
    return Integral(log_z, error.masked_fill(log_z == math.inf, math.inf), log_p.points)


def cells_to_divide(log_p: LogDensity, cells: Cells, tolerance: float, max_points: int) -> Tensor:
    """Indices of the fewest cells that hold all but half the tolerance of the error, as far as the points suffice."""
    fine = cells.parts.logsumexp(1)
    scale = torch.logaddexp(fine.logsumexp(0), cells.missed.logsumexp(0)).nan_to_num(0.0, 0.0, 0.0)
    change = (_exp(fine - scale) - _exp(cells.coarse - scale)).abs() + _exp(cells.missed - scale)
    error = change.amax(1).masked_fill(cells.width < log_p.smallest_width, 0.0)
    error, order = error.sort(descending=True)
    below = error.flip(0).cumsum(0).flip(0)  # of this cell and those with a smaller error
    halves = cells.parts.shape[1]
    affordable = max(0, max_points - log_p.points) // (halves**2 * NODES ** cells.center.shape[1])
    return order[(below > tolerance / 2) & (error > 0)][:affordable]


def _exp(x: Tensor) -> Tensor:
    """The exponential without overflow, so that differences of two are never NaN."""
    return x.clamp(max=600.0).exp()
