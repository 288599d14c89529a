"""log Z without sampling: closed forms, quadrature and enumeration."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ebm_lightning.checks import check_integer, check_number
from ebm_lightning.energies import Energy, GaussianEnergy, JointEnergy, MixtureLogits, in_coordinates
from ebm_lightning.partition.adaptive_quadrature import MAX_POINTS, TOLERANCE, Integral, integrate
from ebm_lightning.partition.diagnostics.domains import agree, checked_support, is_flat
from ebm_lightning.partition.enumeration import binary_states, rbm_class_log_z
from ebm_lightning.partition.log_z import LogZ
from ebm_lightning.rbm import RBMLogits
from ebm_lightning.samplers import eval_mode
from ebm_lightning.supports import Binary, Box, Euclidean, Support


def exact_log_z(energy: Energy, support: Support) -> LogZ:
    r"""Exact log Z, for energies where it is tractable.

    These are linear logits on a box, Gaussians, Gaussian mixtures, boxes of 1 or 2 dimensions, RBMs whose smaller
    layer has at most 20 units, and all energies of at most 20 binary units. Linear logits:

    .. math:: \log Z_y = b_y + \sum_d \log \int_{low}^{high} e^{w_{yd} x} dx \quad \text{for logits } W x + b

    On boxes of 1 or 2 dimensions, log Z is integrated until its error is below 1e-4 nats. ``std_err`` is that error. If
    it is larger, as for energies with many narrow peaks or jumps, ``reliable`` is False and ``why`` says so.

    Arguments:
        energy: The energy.
        support: Its domain.

    Raises:
        ValueError: The energy is not one of these, its support is another one, or it is NaN.
    """
    energy = in_coordinates(energy)
    checked_support(energy, support)
    if isinstance(energy, JointEnergy):
        per_class = _closed_form(energy)
        if per_class is not None:
            return _from_classes(per_class)
    if isinstance(support, Binary):
        return _over_corners(energy, support)
    if isinstance(energy, GaussianEnergy) and isinstance(support, Euclidean) and _fits(support, len(energy.mean)):
        return LogZ(energy.log_z)
    if isinstance(support, Box) and len(support.shape) == 1 and support.shape[0] <= 2:
        return _by_quadrature(energy, support)
    raise ValueError(
        f"'energy' should be one whose log Z is known on {type(support).__name__} of shape {support.shape}, got "
        f"{type(energy).__name__}. Use ais."
    )


@torch.no_grad()
def _closed_form(energy: JointEnergy) -> Tensor | None:
    """log Z_y, shape (K,), where it has a closed form; these assume a flat reference density, except for RBMs."""
    classifier, support = energy.classifier, energy.support
    one_axis = len(support.shape or (0,)) == 1
    if isinstance(classifier, nn.Sequential) and len(classifier) == 2 and isinstance(classifier[0], nn.Flatten):
        classifier, one_axis = classifier[1], True
    if isinstance(classifier, RBMLogits) and energy.temperature == 1:
        binary = isinstance(support, Binary) and isinstance(classifier.support, Binary)
        return rbm_class_log_z(classifier) if binary or agree(classifier.support, support) else None
    if isinstance(classifier, nn.Linear) and isinstance(support, Box) and is_flat(support):
        fits = one_axis and _fits(support, classifier.in_features)
        return linear_log_z(classifier, support, energy.temperature) if fits else None
    if isinstance(classifier, MixtureLogits) and isinstance(support, Euclidean) and is_flat(support):
        return mixture_log_z(classifier, energy.temperature) if _fits(support, classifier.means.shape[1]) else None
    return None


def _fits(support: Support, dimensions: int) -> bool:
    return support.shape is None or math.prod(support.shape) == dimensions


def linear_log_z(layer: nn.Linear, box: Box, temperature: float = 1.0) -> Tensor:
    """log Z_y of linear logits on a box of any dimension, shape (K,), float64."""
    w = layer.weight.detach().double().cpu() / temperature
    bias = torch.zeros(len(w), dtype=torch.float64) if layer.bias is None else layer.bias.detach().double().cpu()
    center, half = (box.high + box.low) / 2, (box.high - box.low) / 2
    u = (w * half).abs().clamp(min=1e-12)
    # log(2 sinh(u) / u) without overflow
    log_integral = u + torch.log(-torch.expm1(-2 * u)) - u.log() + math.log(half)
    return bias / temperature + (log_integral + w * center).sum(1)


def quadrature(
    energy: Energy,
    support: Box,
    tolerance: float = TOLERANCE,
    *,
    max_points: int = MAX_POINTS,
    device: torch.device | str | None = None,
    chunk_size: int = 65_536,
) -> float:
    r"""log Z in nats by adaptive Gauss-Legendre quadrature on a box of one or two dimensions.

    .. math:: \log Z \approx \log \sum_i w_i e^{-E(x_i)}

    Cells that hold mass are divided until the sum changes by less than ``tolerance``. Energies may be +inf.

    Arguments:
        energy: Maps (N, D) to (N,), including the reference density.
        support: The box, of shape (1,) or (2,).
        tolerance: Largest error, in nats.
        max_points: Largest number of evaluations of the energy.
        device: Where the energy is evaluated; by default where its parameters are.
        chunk_size: Number of points to evaluate at once.

    Raises:
        ValueError: The box has more than two dimensions, the energy is NaN or +inf everywhere, or the error is larger
            than ``tolerance`` after ``max_points``. :func:`exact_log_z` returns the value and its error.
    """
    check_number("tolerance", tolerance, above=0)
    check_integer("max_points", max_points, at_least=1)
    result = _integrated(energy, support, tolerance, max_points, device, chunk_size)
    log_z, error = _total(result)
    if not error <= tolerance:
        raise ValueError(
            f"'energy' should be smooth enough for quadrature to converge to {tolerance:g} nats, got {log_z:.4f} with "
            f"an error of {error:.2g} nats at {result.points} points. Raise 'max_points' or 'tolerance', or use a "
            "smaller box."
        )
    return log_z


def grid(support: Box, points: int, device: torch.device | str = "cpu") -> Tensor:
    """Midpoints of a regular grid, shape (points^D, D). The last axis varies fastest.

    Raises:
        ValueError: The box has more than two dimensions.
    """
    check_grid(support)
    axis = support.low + (support.high - support.low) * (torch.arange(points, device=device) + 0.5) / points
    return torch.cartesian_prod(*[axis] * support.shape[0]).view(-1, support.shape[0])


def check_grid(support: Box) -> None:
    if not isinstance(support, Box) or len(support.shape) != 1 or support.shape[0] not in (1, 2):
        raise ValueError(f"'support' should be a Box of shape (1,) or (2,) for a grid, got {support}. Use ais.")


def mixture_log_z(mixture: MixtureLogits, temperature: float = 1.0) -> Tensor:
    """log Z_y of a mixture on R^D, shape (K,), float64.

    At temperature T, each component is a Gaussian to the power 1 / T, which has a closed-form integral.
    """
    dimensions, power = mixture.means.shape[1], 1 / temperature
    log_norm = dimensions / 2 * math.log(2 * math.pi * mixture.std**2)
    return power * mixture.log_weights.double() + (1 - power) * log_norm + dimensions / 2 * math.log(temperature)


def _from_classes(per_class: Tensor) -> LogZ:
    return LogZ(float(per_class.logsumexp(0)), per_class=per_class.cpu())


def _by_quadrature(energy: Energy, support: Box) -> LogZ:
    result = _integrated(energy, support)
    log_z, error = _total(result)
    classes = isinstance(energy, JointEnergy)
    return LogZ(
        log_z,
        error,
        per_class=result.log_z if classes else None,
        per_class_std_err=result.error.log1p() if classes else None,
        why="" if error <= TOLERANCE else _why(error, result.points),
    )


def _integrated(energy: Energy, support: Box, *arguments: Any) -> Integral:
    """:func:`integrate` in eval mode, on a box where the density is not 0 everywhere."""
    check_grid(support)
    energy = in_coordinates(energy)
    with eval_mode(energy):
        result = integrate(energy, support, *arguments)
    if (result.log_z == -math.inf).all():
        raise ValueError(
            f"'energy' should be finite somewhere in the box, got +inf at all of {result.points} points. Use a smaller "
            "box around the region where it is finite."
        )
    return result


def _total(result: Integral) -> tuple[float, float]:
    """log Z of all classes, and its error in nats."""
    share = result.log_z.softmax(0)
    error = torch.where(share > 0, share * result.error, share).sum()
    return float(result.log_z.logsumexp(0)), float(error.log1p())


def _why(error: float, points: int) -> str:
    return (
        f"Quadrature with {points} points has an error of {error:.2g} nats, above {TOLERANCE:g}, because the energy "
        "has narrow peaks, jumps or values too large for its precision: use a smaller box, or compare with ais."
    )


def _over_corners(energy: Energy, support: Binary) -> LogZ:
    states = (chunk.view(-1, *support.shape) for chunk in binary_states(math.prod(support.shape)))
    with eval_mode(energy), torch.no_grad():
        if isinstance(energy, JointEnergy):
            log_p = [(energy.logits(x) + support.log_q(x)[:, None]).double().logsumexp(0) for x in states]
            return _from_classes(torch.stack(log_p).logsumexp(0))
        return LogZ(float(torch.stack([(-energy(x).double()).logsumexp(0) for x in states]).logsumexp(0)))
