"""log Z without sampling: closed forms, quadrature and enumeration."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ebm_lightning.energies import Energy, GaussianEnergy, JointEnergy, MixtureLogits
from ebm_lightning.partition.enumeration import binary_states, rbm_class_log_z
from ebm_lightning.partition.log_z import LogZ
from ebm_lightning.rbm import RBMLogits
from ebm_lightning.supports import Binary, Box, Euclidean, Support


def exact_log_z(energy: Energy, support: Support) -> LogZ:
    r"""Exact log Z, for energies where it is tractable.

    These are linear logits on a box, Gaussians, Gaussian mixtures, boxes of 1 or 2 dimensions, RBMs whose smaller
    layer has at most 20 units, and all energies of at most 20 binary units. Linear logits:

    .. math:: \log Z_y = b_y + \sum_d \log \int_{low}^{high} e^{w_{yd} x} dx \quad \text{for logits } W x + b

    Arguments:
        energy: The energy.
        support: Its domain.

    Raises:
        ValueError: The energy is not one of these.
    """
    classifier = energy.classifier if isinstance(energy, JointEnergy) else energy
    if isinstance(classifier, nn.Sequential) and len(classifier) == 2 and isinstance(classifier[0], nn.Flatten):
        classifier = classifier[1]
    if isinstance(energy, JointEnergy) and isinstance(classifier, RBMLogits) and energy.temperature == 1:
        with torch.no_grad():
            return _from_classes(rbm_class_log_z(classifier))
    if isinstance(support, Binary):
        return _over_corners(energy, support)
    if isinstance(energy, JointEnergy) and isinstance(classifier, nn.Linear) and isinstance(support, Box):
        return _from_classes(linear_log_z(classifier, support, energy.temperature))
    if isinstance(energy, JointEnergy) and isinstance(classifier, MixtureLogits) and isinstance(support, Euclidean):
        return _mixture(classifier, energy.temperature)
    if isinstance(energy, GaussianEnergy) and isinstance(support, Euclidean):
        return LogZ(energy.log_z)
    if isinstance(support, Box) and len(support.shape) == 1 and support.shape[0] <= 2:
        return _by_quadrature(energy, support)
    raise ValueError(
        f"'energy' should be one whose log Z is known on {type(support).__name__}, got {type(energy).__name__}. "
        "Use ais."
    )


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
    energy: Energy, support: Box, points: int = 512, device: torch.device | str = "cpu", chunk_size: int = 65_536
) -> float:
    r"""log Z in nats by the midpoint rule on a box of one or two dimensions.

    .. math:: \log Z \approx \log \sum_i e^{-E(x_i)} + \log \Delta

    For a smooth energy the error falls with the square of the spacing. Double ``points`` to estimate it.

    Arguments:
        energy: Maps (N, D) to (N,), including the reference density.
        support: The box, of shape (1,) or (2,).
        points: Points along each axis.
        device: Where the energy is evaluated.
        chunk_size: Number of points to evaluate at once.

    Raises:
        ValueError: The box has more than two dimensions.
    """
    x = grid(support, points, device)
    with torch.no_grad():
        log_p = torch.cat([-energy(chunk).double() for chunk in x.split(chunk_size)])
    cell = (support.high - support.low) / points
    return float(log_p.logsumexp(0)) + support.shape[0] * math.log(cell)


def grid(support: Box, points: int, device: torch.device | str = "cpu") -> Tensor:
    """Midpoints of a regular grid, shape (points^D, D). The last axis varies fastest.

    Raises:
        ValueError: The box has more than two dimensions.
    """
    if len(support.shape) != 1 or support.shape[0] > 2:
        raise ValueError(f"'support' should be a Box of shape (1,) or (2,) for a grid, got {support.shape}. Use ais.")
    axis = support.low + (support.high - support.low) * (torch.arange(points, device=device) + 0.5) / points
    return torch.cartesian_prod(*[axis] * support.shape[0]).view(-1, support.shape[0])


def _mixture(mixture: MixtureLogits, temperature: float) -> LogZ:
    """At temperature T, each component is a Gaussian to the power 1 / T, which has a closed-form integral."""
    dimensions, power = mixture.means.shape[1], 1 / temperature
    log_norm = dimensions / 2 * math.log(2 * math.pi * mixture.std**2)
    return _from_classes(
        power * mixture.log_weights.double() + (1 - power) * log_norm + dimensions / 2 * math.log(temperature)
    )


def _from_classes(per_class: Tensor) -> LogZ:
    return LogZ(float(per_class.logsumexp(0)), per_class=per_class.cpu())


def _by_quadrature(energy: Energy, support: Box) -> LogZ:
    if not isinstance(energy, JointEnergy):
        return LogZ(quadrature(energy, support))
    cell = support.shape[0] * math.log((support.high - support.low) / 512)
    return _from_classes(_sum_of_classes(energy, grid(support, 512).split(65_536)) + cell)


def _over_corners(energy: Energy, support: Binary) -> LogZ:
    states = (chunk.view(-1, *support.shape) for chunk in binary_states(math.prod(support.shape)))
    if isinstance(energy, JointEnergy):
        return _from_classes(_sum_of_classes(energy, states))
    with torch.no_grad():
        return LogZ(float(torch.stack([(-energy(x).double()).logsumexp(0) for x in states]).logsumexp(0)))


@torch.no_grad()
def _sum_of_classes(energy: JointEnergy, points: Iterable[Tensor]) -> Tensor:
    """log of the sum over all points of exp(-E(x, y)), shape (K,), float64."""
    log_p = [energy.logits(x).double().log_softmax(1) - energy(x).double()[:, None] for x in points]
    return torch.stack([chunk.logsumexp(0) for chunk in log_p]).logsumexp(0)
