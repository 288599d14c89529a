"""Laplace approximation of log Z: a cross-check for narrow modes, not a replacement for annealing."""

import math

import torch
from torch import Tensor
from torch.func import hessian, vmap

from ebm_lightning.energies import Energy, in_coordinates
from ebm_lightning.partition.diagnostics.domains import checked_support
from ebm_lightning.partition.log_z import LogZ
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import eval_mode, frozen, value_and_gradient
from ebm_lightning.supports import Box, Support

MISFIT = 0.5  # nats by which the mass along an axis of the Hessian may differ from that of the Gaussian
NODES = [k / 2 for k in range(-5, 6)]  # along each axis, in standard deviations
CHUNK = 4096  # points to evaluate at once
NEGLIGIBLE = 1e-3  # modes with a smaller fraction of the mass are not checked
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

    The energy is compared with the Gaussian's within 2.5 standard deviations along each axis of the Hessian. ``why``
    gives the difference in nats, which estimates the error in part: it does not see what happens off the axes. A mode
    whose Hessian does not describe its width, as that of x^4, is refused.

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
        ValueError: The support is not that of the energy. A mode lies on the wall of a box, its Hessian is not positive
            definite, because the energy is flat or the descent has not converged, or its Gaussian does not fit.
    """
    energy = in_coordinates(energy)
    checked_support(energy, support)
    x = support.sample(restarts, generator=generator or make_generator(0, "laplace")) if starts is None else starts
    with frozen(energy), torch.inference_mode(False):
        modes = distinct(descend(energy, support, x.detach().clone(), iterations), tolerance)
        _check_walls(support, modes, tolerance)
        curvature = vmap(hessian(lambda one: energy(one[None])[0]))(modes).detach()
        value, _ = value_and_gradient(energy, modes)
    dimensions = modes[0].numel()
    eigenvalues, axes = torch.linalg.eigh(curvature.reshape(len(modes), dimensions, dimensions).double())
    if not (eigenvalues > 0).all():
        raise ValueError(
            "'energy' should have positive curvature at its modes, got a smallest eigenvalue of "
            f"{float(eigenvalues.min()):.3g}. Raise 'iterations', or use ais: the Laplace approximation fails along "
            "flat directions."
        )
    log_z = -value.double() + dimensions / 2 * math.log(2 * math.pi) - 0.5 * eigenvalues.log().sum(1)
    difference = _check_fit(energy, support, modes, eigenvalues, axes, log_z.softmax(0))
    why = f"{NO_ERROR} Along the axes of its Hessian, log Z differs from the Gaussian's by {difference:.2g} nats."
    return LogZ(float(log_z.logsumexp(0)), math.nan, math.nan, log_weights=log_z.cpu(), why=why)


def _check_fit(
    energy: Energy, support: Support, modes: Tensor, eigenvalues: Tensor, axes: Tensor, share: Tensor
) -> float:
    """Difference of log Z from that of the Gaussians along the axes, in nats, if none of them is too large.

    Raises:
        ValueError: Along an axis of a mode with mass, it is larger than ``MISFIT``.
    """
    log_z = torch.zeros((), dtype=torch.float64)
    for mode, values, vectors, part in zip(modes, eigenvalues, axes, share, strict=True):
        if part < NEGLIGIBLE:
            continue
        misfit = axis_misfit(energy, support, mode, values, vectors)
        worst = int(misfit.abs().argmax())
        if not misfit[worst].abs() <= MISFIT:
            raise ValueError(
                "'energy' should be close to quadratic around its modes, got a mode whose Hessian gives a standard "
                f"deviation of {float(values[worst].rsqrt()):.3g} along an axis where the mass differs from the "
                f"Gaussian's by a factor of {float(misfit[worst].exp()):.2g}. Use ais."
            )
        log_z = log_z + (part * misfit.sum().exp()).cpu()
    return float((log_z + share[share < NEGLIGIBLE].sum().cpu()).log())


def axis_misfit(energy: Energy, support: Support, mode: Tensor, eigenvalues: Tensor, axes: Tensor) -> Tensor:
    r"""Log of the mass along each axis of the Hessian relative to its Gaussian, shape (D,), float64.

    .. math:: \log \frac{\sum_k e^{E(x^*) - E(x^* + t_k \sigma_d v_d)}}{\sum_k e^{-t_k^2 / 2}}
    """
    t = torch.tensor(NODES, dtype=torch.float64, device=mode.device)
    offsets = t[:, None, None] * (axes * eigenvalues.rsqrt()).T
    x = mode.double() + offsets.reshape(-1, *mode.shape)
    inside = (support.clamp(x) == x).flatten(1).all(1)
    with eval_mode(energy), torch.no_grad():
        points = support.clamp(x).to(mode.dtype).split(CHUNK)
        rise = torch.cat([energy(chunk).double() for chunk in points]) - energy(mode[None]).double()
    rise = rise.masked_fill(~inside, math.inf).view(len(t), -1)
    return (-rise).logsumexp(0) - (-t.square() / 2).logsumexp(0)


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
