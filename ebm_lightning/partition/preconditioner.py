"""The preconditioner of each stage of a pilot run, from the moves of its chains.

A move changes the position by dx and the gradient of the potential by dg. On a Gaussian with covariance C,
dx = C dg exactly, even before the chains have spread. So the matrix M that solves M cov(dg) M = cov(dx) is C even from
few moves. The spread of the chains would instead measure the distance between modes.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ebm_lightning.samplers.hmc import Phase, Tempered
from ebm_lightning.samplers.preconditioner import Turn
from ebm_lightning.supports import Euclidean, Gaussian, Support

FULL_DIMENSIONS = 200  # a full matrix up to here, rank 2 * RANK plus diagonal above
MAX_DIMENSIONS = 10_000  # diagonal above
RANK = 16
SHRINKAGE = (0.25, 0.5, 0.75, 1.0)  # powers of the fitted matrix that are tried
MARGIN = math.log(1.2)  # least gain in mismatch for which a matrix is changed
RIDGE = 1e-10  # relative to the mean eigenvalue


@dataclass(frozen=True)
class Scale:
    r"""A preconditioner W R, with W = diag(exp(log_width)) and R = 1 + Q (diag(exp(log_stretch)) - 1) Q^T.

    Attributes:
        log_width: Shape (*shape), float64.
        basis: Orthonormal columns Q, shape (D, rank), float64. None if R = 1.
        log_stretch: Shape (rank,), float64.
    """

    log_width: Tensor
    basis: Tensor | None = None
    log_stretch: Tensor | None = None

    @property
    def turn(self) -> Turn | None:
        """R, a full matrix if its rank is that of the space."""
        if self.basis is None or self.log_stretch is None:
            return None
        left = self.basis * self.log_stretch.expm1()
        full = len(self.basis) == len(self.log_stretch)
        return Turn(left @ self.basis.T) if full else Turn(left, self.basis.T)


class Moves(NamedTuple):
    """Changes over n moves: positions ``x`` and gradients ``g`` of the potential, both of shape (n, D), float64."""

    x: Tensor
    g: Tensor

    def half(self, first: bool, chains: int) -> "Moves":
        """The moves of the first or the second half of the chains. Copies of one chain are next to each other."""
        mask = (torch.arange(len(self.x), device=self.x.device) % chains < chains // 2) == first
        return Moves(self.x[mask], self.g[mask])


def turns(support: Support, dimensions: int) -> bool:
    """Whether a preconditioner may turn: not on a box, where each component reflects at its own walls."""
    return isinstance(support, Euclidean | Gaussian) and 1 < dimensions <= MAX_DIMENSIONS


def change(before: Phase, after: Phase) -> Phase:
    """What a move changed. Its gradients give those of the potential at any beta."""
    return Phase(*(b - a for a, b in zip(before, after, strict=True)))


def choose_scale(target: Tempered, phase: Phase, changes: list[Phase], previous: Scale, plain: Scale) -> Scale:
    """The preconditioner for moves at ``target.beta``: diagonal, ``previous``, or fitted to ``changes``.

    A new matrix is used only if it is better by a margin on the half of the chains to which it was not fitted. A power
    of it, chosen in the same way, shrinks it to the diagonal.

    Arguments:
        target: Provides the gradient of the potential.
        phase: The chains, before they move.
        changes: Their last moves, each of shape (N, ...). May be empty.
        previous: The preconditioner of the stage before.
        plain: The diagonal one.
    """
    if not changes:
        return plain
    moves = Moves(
        torch.cat([c.x for c in changes]).flatten(1).double(),
        torch.cat([target.gradient(c).expand_as(c.x) for c in changes]).flatten(1).double(),
    )
    chains = len(phase.x)
    kept = plain if previous.basis is None else previous
    if not float(mismatch(kept, moves)) > MARGIN:  # also if no chain moved
        return kept
    fitted, other = moves.half(True, chains), moves.half(False, chains)
    guess = fit(plain, phase.x[: chains // 2], fitted)
    errors = [float(mismatch(_power(guess, p), other)) for p in SHRINKAGE]
    known = {float(mismatch(scale, other)): scale for scale in (kept, plain)}
    if not min(errors) < min(known) - MARGIN:
        return known[min(known)]
    power = SHRINKAGE[errors.index(min(errors))]
    return _normalized(_power(fit(plain, phase.x, moves), power), moves)


def mismatch(scale: Scale, moves: Moves) -> Tensor:
    r"""How far moves in preconditioned coordinates are from those on a round Gaussian, where it is 0; at least 0.

    .. math:: \log \frac{\overline{|L^{-1} dx|^2} \; \overline{|L^T dg|^2}}{(\overline{dx \cdot dg})^2}

    It is infinite where the potential is not convex on average, and NaN if nothing moved.

    References:
        Seyboldt, Carlson & Carpenter, Preconditioning Hamiltonian Monte Carlo by minimizing Fisher divergence, 2026,
        for the criterion at the best overall scale. https://arxiv.org/abs/2603.18845
    """
    x, g = _norms(scale, moves)
    convexity = (moves.x * moves.g).sum(1).mean().clamp(min=0)
    return x.log() + g.log() - 2 * convexity.log()


def fit(scale: Scale, points: Tensor, moves: Moves) -> Scale:
    """The turn after ``scale.log_width`` that makes moves look like those on a round Gaussian.

    Arguments:
        scale: Its width is used.
        points: The chains, shape (N, *shape). Their main directions are among those that may be stretched.
        moves: In all directions if there are at most FULL_DIMENSIONS.
    """
    width = scale.log_width.exp().flatten()
    x, g = moves.x / width, moves.g * width
    dimensions = len(width)
    if dimensions <= FULL_DIMENSIONS:
        basis = torch.eye(dimensions, dtype=x.dtype, device=x.device)
    else:
        wide = _leading(points.flatten(1).double() / width)
        basis = torch.linalg.qr(torch.cat([wide, _leading(g[-len(points) :])], 1)).Q
    inner_x, inner_g = x @ basis, g @ basis
    values, vectors = torch.linalg.eigh(_geometric_mean(_second_moment(inner_x), _second_moment(inner_g)))
    log_variance = values.clamp(min=1e-300).log()
    rest = dimensions - basis.shape[1]
    if rest:
        center = 0.5 * ((x.square().sum() - inner_x.square().sum()) / (g.square().sum() - inner_g.square().sum())).log()
    else:
        center = log_variance.mean()
    return Scale(scale.log_width, basis @ vectors, 0.5 * (log_variance - center))


def log_width(target: Tempered, phase: Phase) -> Tensor:
    """Log of the width of the modes in each component, at most the spread of all chains; the diagonal preconditioner.

    For a Gaussian, E[(dU/dx)^2] = 1 / std^2. The spread of the chains would measure the distance between modes.
    """
    squares = target.gradient(phase).double().square().mean(0)
    return -0.5 * (squares + 1 / phase.x.double().var(0).clamp(min=1e-12)).log()


def _power(scale: Scale, power: float) -> Scale:
    assert scale.log_stretch is not None
    return Scale(scale.log_width, scale.basis, power * scale.log_stretch)


def _normalized(scale: Scale, moves: Moves) -> Scale:
    """The same matrix in the scale at which the round Gaussian has standard deviation 1."""
    x, g = _norms(scale, moves)
    return Scale(scale.log_width + 0.25 * (x / g).log(), scale.basis, scale.log_stretch)


def _norms(scale: Scale, moves: Moves) -> tuple[Tensor, Tensor]:
    """Mean squared lengths of dx and dg in preconditioned coordinates, float64 scalars."""
    width = scale.log_width.exp().flatten()
    x, g = moves.x / width, moves.g * width
    squares = x.square().sum(1).mean(), g.square().sum(1).mean()
    if scale.basis is None or scale.log_stretch is None:
        return squares
    inner_x, inner_g = (x @ scale.basis).square().mean(0), (g @ scale.basis).square().mean(0)
    return (
        squares[0] + (inner_x * (-2 * scale.log_stretch).expm1()).sum(),
        squares[1] + (inner_g * (2 * scale.log_stretch).expm1()).sum(),
    )


def _leading(rows: Tensor) -> Tensor:
    """The main directions of ``rows``, shape (D, RANK), from the matrix of their inner products."""
    rows = rows - rows.mean(0)
    directions = torch.linalg.eigh(rows @ rows.T).eigenvectors[:, -RANK:].T @ rows
    return (directions / directions.norm(dim=1, keepdim=True).clamp(min=1e-300)).T


def _second_moment(x: Tensor) -> Tensor:
    moment = x.T @ x / len(x)
    return moment + RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=x.dtype, device=x.device)


def _geometric_mean(a: Tensor, b: Tensor) -> Tensor:
    """The symmetric positive definite M with M b M = a."""
    values, vectors = torch.linalg.eigh(b)
    root = values.clamp(min=1e-300).sqrt()
    half, inverse = (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
    values, vectors = torch.linalg.eigh(half @ a @ half)
    return inverse @ ((vectors * values.clamp(min=0).sqrt()) @ vectors.T) @ inverse
