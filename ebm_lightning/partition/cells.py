"""Cells of an adaptive quadrature: their integrals, and a search for peaks between the nodes."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ebm_lightning.energies import Energy, JointEnergy
from ebm_lightning.samplers.freeze import called_modules
from ebm_lightning.supports import Box

NODES = 4  # along each axis of a cell
GAUSS = (  # nodes on [-1/2, 1/2] and weights with sum 1 (Abramowitz & Stegun, table 25.4)
    (-0.43056815579702629, -0.16999052179242813, 0.16999052179242813, 0.43056815579702629),
    (0.17392742256872693, 0.32607257743127307, 0.32607257743127307, 0.17392742256872693),
)
STEEP = 8.0  # nats from best to worst node, beyond which a peak may lie between the nodes of a cell
MISSED = 0.5  # nats by which the best point of a search exceeds the best node of a peak that the nodes missed
MAX_SEARCHES = 4096
SEARCH_ROUNDS = 16


class LogDensity:
    """log p(x), or log p(x, y) for each class, of points (N, D) in float64: shape (N, K), float64, on the CPU.

    Attributes:
        points: Number of points so far.
        resolution: Relative rounding error of the energy's floating point type.
    """

    def __init__(self, energy: Energy, box: Box, device: torch.device | str | None, chunk_size: int) -> None:
        self.energy, self.box, self.chunk_size = energy, box, chunk_size
        self.points, self.resolution = 0, 0.0
        weight = next((p for m in called_modules(energy) for p in m.parameters(recurse=False)), None)
        double = weight is not None and weight.dtype == torch.float64
        self.dtype = torch.float64 if double else torch.float32
        self.device = device if device is not None else weight.device if weight is not None else "cpu"

    @property
    def smallest_width(self) -> float:
        """Width below which rounding moves the points of a cell too far."""
        return 256 * torch.finfo(self.dtype).eps * max(abs(self.box.low), abs(self.box.high))

    def in_chunks(self, x: Tensor) -> Tensor:
        return torch.cat([self(chunk) for chunk in x.split(self.chunk_size)])

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        self.points += len(x)
        x = self.box.clamp(x).to(self.dtype).to(self.device)
        if isinstance(self.energy, JointEnergy):
            log_p = self.energy.logits(x) + self.energy.support.log_q(x)[:, None]
        else:
            log_p = -self.energy(x)[:, None]
        self.resolution = torch.finfo(log_p.dtype).eps
        if log_p.isnan().any():
            raise ValueError(
                f"'energy' should be a number or +inf inside the support, got {int(log_p.isnan().any(1).sum())} NaN at "
                f"{len(x)} points. Use +inf where the density is 0."
            )
        return log_p.double().cpu()


class Nodes(NamedTuple):
    """Quadrature of M cells and K densities.

    Attributes:
        log_mass: Log of the integrals, shape (M, K).
        best, worst: Largest and smallest log density at the nodes, shape (M, K).
        where: The node of the largest, shape (M, K, D).
    """

    log_mass: Tensor
    best: Tensor
    worst: Tensor
    where: Tensor


class Cells(NamedTuple):
    """M cells of side ``width`` that cover the box.

    Attributes:
        center: Shape (M, D).
        width: Shape (M,).
        coarse: Log integrals over the whole cell, shape (M, K).
        parts: Log integrals over its 2^D halves, shape (M, 2^D, K).
        missed: Log of an upper bound for the mass of a peak that the nodes missed, shape (M, K); -inf without one.
    """

    center: Tensor
    width: Tensor
    coarse: Tensor
    parts: Tensor
    missed: Tensor


def integrate_cells(log_p: LogDensity, center: Tensor, width: Tensor) -> Nodes:
    """Gauss-Legendre quadrature of cells with ``center`` (M, D) and side ``width`` (M,)."""
    dimensions = center.shape[1]
    axis, weights = (torch.tensor(values, dtype=torch.float64) for values in GAUSS)
    nodes = torch.cartesian_prod(*[axis] * dimensions).view(-1, dimensions)
    log_weight = torch.cartesian_prod(*[weights.log()] * dimensions).view(-1, dimensions).sum(1)[:, None]
    parts = []
    for c, w in zip(*(v.split(max(1, log_p.chunk_size // len(nodes))) for v in (center, width)), strict=True):
        x = c[:, None] + w[:, None, None] * nodes
        values = log_p(x.flatten(0, 1)).view(*x.shape[:2], -1)
        best, index = values.max(1)
        where = x.gather(1, index[:, :, None].expand(-1, -1, dimensions))
        log_mass = (values + log_weight).logsumexp(1) + dimensions * w.log()[:, None]
        parts.append(Nodes(log_mass, best, values.amin(1), where))
    return Nodes(*(torch.cat(values) for values in zip(*parts, strict=True)))


def children(center: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Centers (M 2^D, D) and widths (M 2^D,) of the halves of cells."""
    dimensions = center.shape[1]
    signs = torch.cartesian_prod(*[torch.tensor([-0.25, 0.25], dtype=torch.float64)] * dimensions).view(-1, dimensions)
    return (center[:, None] + width[:, None, None] * signs).flatten(0, 1), (width / 2).repeat_interleave(len(signs))


def evaluate_cells(log_p: LogDensity, center: Tensor, width: Tensor, coarse: Tensor) -> Cells:
    """Integrate the halves of cells whose integrals as a whole are ``coarse``."""
    nodes = integrate_cells(log_p, *children(center, width))
    log_mass, best, worst = (v.view(len(center), -1, v.shape[1]) for v in nodes[:3])
    best, index = best.max(1)
    where = nodes.where.view(len(center), -1, *nodes.where.shape[1:])
    where = where.gather(1, index[:, None, :, None].expand(-1, 1, -1, where.shape[3])).squeeze(1)
    missed = search_peaks(log_p, center, width, Nodes(log_mass, best, worst.amin(1), where))
    return Cells(center, width, coarse, log_mass, missed)


def search_peaks(log_p: LogDensity, center: Tensor, width: Tensor, nodes: Nodes) -> Tensor:
    """Climb from the best node of each steep cell; returns ``missed`` of :class:`Cells`."""
    missed = torch.full_like(nodes.best, -math.inf)
    steep = (nodes.best - nodes.worst > STEEP) & nodes.best.isfinite()
    rank = (nodes.best - nodes.best.amax(0)).masked_fill(~steep, -math.inf)
    highest, flat = rank.flatten().topk(min(MAX_SEARCHES, rank.numel()))
    flat = flat[highest > -math.inf]
    if len(flat) == 0:
        return missed
    cell, column = flat // rank.shape[1], flat % rank.shape[1]
    start = nodes.best[cell, column]
    peak = climb(log_p, nodes.where[cell, column], start, column, center[cell], width[cell])
    bound = peak + center.shape[1] * width[cell].log()
    missed[cell, column] = torch.where(peak > start + MISSED, bound, -math.inf)
    return missed


def climb(log_p: LogDensity, x: Tensor, value: Tensor, column: Tensor, center: Tensor, width: Tensor) -> Tensor:
    """The largest log density, shape (S,), that a pattern search from ``x`` (S, D) finds without leaving its cell."""
    dimensions = x.shape[1]
    steps = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)] * dimensions)
    steps = steps.view(-1, dimensions)
    low, high = center - width[:, None] / 2, center + width[:, None] / 2
    for k in range(SEARCH_ROUNDS):
        trial = x[:, None] + (width / 6 / 2**k)[:, None, None] * steps
        trial = torch.maximum(low[:, None], torch.minimum(high[:, None], trial))
        values = log_p.in_chunks(trial.flatten(0, 1)).view(*trial.shape[:2], -1)
        values = values.gather(2, column[:, None, None].expand(-1, len(steps), 1)).squeeze(2)
        top, index = values.max(1)
        better = top > value
        x = torch.where(better[:, None], trial[torch.arange(len(x)), index], x)
        value = torch.where(better, top, value)
    return value
