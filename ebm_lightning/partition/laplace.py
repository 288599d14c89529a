"""Laplace approximation of log Z: a cross-check for narrow modes, not a replacement for annealing."""

import math

import torch
from torch import Tensor
from torch.func import hessian, vmap

from ebm_lightning.energies import Energy
from ebm_lightning.partition.log_z import LogZ
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import frozen, value_and_gradient
from ebm_lightning.supports import Box, Support

NO_ERROR = "The Laplace approximation has no error estimate: compare it with ais."


def laplace_log_z(
    energy: Energy,
    support: Support,
    *,
    starts: Tensor | None = None,
    restarts: int = 32,
    iterations: int = 200,
    tolerance: float = 1e-2,
    generator: torch.Generator | None = None,
) -> LogZ:
    r"""log Z from a Gaussian at each distinct mode that gradient descent finds.

    .. math:: Z \approx \sum_{x^*} e^{-E(x^*)} (2 \pi)^{D/2} \det(\nabla^2 E(x^*))^{-1/2}

    Exact for a Gaussian, and for a mixture up to the overlap of its modes. The error is unknown: ``std_err`` is
    NaN and ``reliable`` is False. Modes that none of the starts leads to are missing, and log Z is then too low.

    References:
        MacKay, Information theory, inference, and learning algorithms, 2003, ch. 27.

    Arguments:
        energy: Maps (N, *shape) to (N,), twice differentiable (not ReLU networks).
        support: Its domain.
        starts: Initial points of the descents, shape (N, *shape); by default draws from the support's reference.
        restarts: Number of draws if ``starts`` is None.
        iterations: Largest number of L-BFGS steps per descent.
        tolerance: Modes closer than this, in units of x, count as one.
        generator: Source of the draws.

    Raises:
        ValueError: A mode lies on the wall of a box, or its Hessian is not positive definite, because the energy is
            flat or the descent has not converged.
    """
    x = support.sample(restarts, generator=generator or make_generator(0, "laplace")) if starts is None else starts
    with frozen(energy), torch.inference_mode(False):
        modes = distinct(descend(energy, support, x.detach().clone(), iterations), tolerance)
        _check_walls(support, modes, tolerance)
        curvature = vmap(hessian(lambda one: energy(one[None])[0]))(modes).detach()
        value, _ = value_and_gradient(energy, modes)
    dimensions = modes[0].numel()
    eigenvalues = torch.linalg.eigvalsh(curvature.reshape(len(modes), dimensions, dimensions).double())
    if not (eigenvalues > 0).all():
        raise ValueError(
            "'energy' should have positive curvature at its modes, got a smallest eigenvalue of "
            f"{float(eigenvalues.min()):.3g}. Raise 'iterations', or use ais: the Laplace approximation fails along "
            "flat directions."
        )
    log_z = -value.double() + dimensions / 2 * math.log(2 * math.pi) - 0.5 * eigenvalues.log().sum(1)
    return LogZ(float(log_z.logsumexp(0)), math.nan, math.nan, log_weights=log_z.cpu(), why=NO_ERROR)


def descend(energy: Energy, support: Support, x: Tensor, iterations: int) -> Tensor:
    """Minima of the energy that L-BFGS reaches from ``x``, shape (N, *shape), kept inside the support."""
    ends = []
    for start in x:
        point = start[None].clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [point], max_iter=iterations, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
        )

        def closure(point: Tensor = point, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            inside = support.clamp(point)
            # Outside, use the energy at the wall plus a quadratic penalty that pulls the point back.
            loss = energy(inside).sum() + (point - inside).square().sum()
            (point.grad,) = torch.autograd.grad(loss, point)
            return loss.detach()

        with torch.enable_grad():
            optimizer.step(closure)
        ends.append(support.clamp(point.detach()))
    return torch.cat(ends)


def distinct(x: Tensor, tolerance: float) -> Tensor:
    """The rows of ``x`` that are further than ``tolerance`` from every earlier row that is kept."""
    kept: list[Tensor] = []
    for row in x:
        if all((row - other).norm() > tolerance for other in kept):
            kept.append(row)
    return torch.stack(kept)


def _check_walls(support: Support, modes: Tensor, tolerance: float) -> None:
    if isinstance(support, Box):
        gap = torch.minimum(modes - support.low, support.high - modes).min()
        if gap < tolerance:
            raise ValueError(
                f"'energy' should have its modes inside the box, got one within {float(gap):.2g} of a wall. Use ais."
            )
