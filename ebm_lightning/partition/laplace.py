"""Log Z from the curvature at the modes: a check where the modes are narrow, never the headline."""

import math

import torch
from torch import Tensor
from torch.func import hessian, vmap

from ebm_lightning.energies import Energy
from ebm_lightning.partition.log_z import LogZ
from ebm_lightning.samplers import quiet, value_and_gradient
from ebm_lightning.streams import make_generator
from ebm_lightning.supports import Box, Support


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
    r"""log Z by a Gaussian at each distinct mode that descent finds.

    .. math:: Z \approx \sum_{x^*} e^{-E(x^*)} (2 \pi)^{D/2} \det(\nabla^2 E(x^*))^{-1/2}

    Exact for a Gaussian and, up to the modes' overlap, for a mixture. There is no error estimate: ``std_err`` is NaN
    and ``reliable`` False. Modes that no start leads to are missing, and the sum is then too low.

    References:
        MacKay, Information theory, inference, and learning algorithms, 2003, ch. 27.

    Arguments:
        energy: Maps (N, *shape) to (N,), twice differentiable (not ReLU networks).
        support: Its domain.
        starts: Where descents start, shape (N, *shape); draws of the support's reference by default.
        restarts: Number of draws.
        iterations: Most L-BFGS steps of all descents.
        tolerance: Modes closer than this, in units of x, are one.
        generator: Of the draws.

    Raises:
        ValueError: A mode lies on the wall of a box, or its Hessian is not positive definite: the energy is flat or
            has not been descended to the end there.
    """
    x = support.sample(restarts, generator=generator or make_generator(0, "laplace")) if starts is None else starts
    with quiet(energy), torch.inference_mode(False):
        modes = distinct(descend(energy, support, x.detach().clone(), iterations), tolerance)
        _check_walls(support, modes, tolerance)
        curvature = vmap(hessian(lambda one: energy(one[None])[0]))(modes).detach()
        value, _ = value_and_gradient(energy, modes)
    dimensions = modes[0].numel()
    eigenvalues = torch.linalg.eigvalsh(curvature.reshape(len(modes), dimensions, dimensions).double())
    if not (eigenvalues > 0).all():
        raise ValueError(
            f"'energy' should curve upwards at its modes, got a smallest eigenvalue of {float(eigenvalues.min()):.3g}. "
            "Raise 'iterations', or use ais: flat directions have no Laplace approximation."
        )
    log_z = -value.double() + dimensions / 2 * math.log(2 * math.pi) - 0.5 * eigenvalues.log().sum(1)
    return LogZ(float(log_z.logsumexp(0)), math.nan, math.nan, log_weights=log_z.cpu(), reliable=False)


def descend(energy: Energy, support: Support, x: Tensor, iterations: int) -> Tensor:
    """Minima of the energy that descents from ``x`` reach, shape (N, *shape), kept inside the support."""
    ends = []
    for start in x:
        point = start[None].clone().requires_grad_()
        optimiser = torch.optim.LBFGS(
            [point], max_iter=iterations, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
        )

        def closure(point: Tensor = point, optimiser: torch.optim.Optimizer = optimiser) -> Tensor:
            optimiser.zero_grad()
            inside = support.clamp(point)
            # Beyond a wall the energy of the wall, and a slope back to it.
            loss = energy(inside).sum() + (point - inside).square().sum()
            (point.grad,) = torch.autograd.grad(loss, point)
            return loss.detach()

        with torch.enable_grad():
            optimiser.step(closure)
        ends.append(support.clamp(point.detach()))
    return torch.cat(ends)


def distinct(x: Tensor, tolerance: float) -> Tensor:
    """The rows of ``x`` that lie further than ``tolerance`` from every row kept before them."""
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
