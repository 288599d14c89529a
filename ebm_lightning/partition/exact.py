"""Log Z without sampling: closed forms, sums over grids fine enough to be exact, and sums over all states."""

import math

import torch
from torch import Tensor, nn

from ebm_lightning.energies import Energy, GaussianEnergy, JointEnergy, MixtureLogits
from ebm_lightning.partition.log_z import LogZ
from ebm_lightning.supports import Box, Euclidean, Support

MOST_UNITS = 20


def exact_log_z(energy: Energy, support: Support) -> LogZ:
    r"""log Z where it is known: linear logits on a box, Gaussians, Gaussian mixtures, and boxes of 1 or 2 dimensions.

    .. math:: \log Z_y = b_y + \sum_d \log \int_{low}^{high} e^{w_{yd} x} dx \quad \text{for logits } W x + b

    Arguments:
        energy: The energy.
        support: Its domain.

    Raises:
        ValueError: None of these applies.
    """
    classifier = energy.classifier if isinstance(energy, JointEnergy) else energy
    if isinstance(classifier, nn.Sequential) and len(classifier) == 2 and isinstance(classifier[0], nn.Flatten):
        classifier = classifier[1]
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
    """log Z_y of linear logits on a box, shape (K,), float64; holds at any dimension."""
    w = layer.weight.detach().double().cpu() / temperature
    bias = torch.zeros(len(w), dtype=torch.float64) if layer.bias is None else layer.bias.detach().double().cpu()
    centre, half = (box.high + box.low) / 2, (box.high - box.low) / 2
    u = (w * half).abs().clamp(min=1e-12)
    # log(2 sinh(u) / u) without overflow
    log_integral = u + torch.log(-torch.expm1(-2 * u)) - u.log() + math.log(half)
    return bias / temperature + (log_integral + w * centre).sum(1)


def quadrature(
    energy: Energy, support: Box, points: int = 512, device: torch.device | str = "cpu", chunk_size: int = 65_536
) -> float:
    r"""log Z in nats by the midpoint rule on a box of one or two dimensions.

    .. math:: \log Z \approx \log \sum_i e^{-E(x_i)} + \log \Delta

    The error of a smooth energy falls with the square of the spacing; double ``points`` to see it.

    Arguments:
        energy: Maps (N, D) to (N,), with the reference density in it, as a JointEnergy has.
        support: The box, of shape (1,) or (2,).
        points: Points along each axis.
        device: Where the energy is evaluated.
        chunk_size: Points evaluated at once.

    Raises:
        ValueError: The box has more than two dimensions.
    """
    x = grid(support, points, device)
    with torch.no_grad():
        log_p = torch.cat([-energy(chunk).double() for chunk in x.split(chunk_size)])
    cell = (support.high - support.low) / points
    return float(log_p.logsumexp(0)) + support.shape[0] * math.log(cell)


def grid(support: Box, points: int, device: torch.device | str = "cpu") -> Tensor:
    """Midpoints of a regular grid, shape (points^D, D), the last axis fastest.

    Raises:
        ValueError: The box has more than two dimensions.
    """
    if len(support.shape) != 1 or support.shape[0] > 2:
        raise ValueError(f"'support' should be a Box of shape (1,) or (2,) for a grid, got {support.shape}. Use AIS.")
    axis = support.low + (support.high - support.low) * (torch.arange(points, device=device) + 0.5) / points
    return torch.cartesian_prod(*[axis] * support.shape[0]).view(-1, support.shape[0])


def enumeration(energy: Energy, units: int, chunk_size: int = 65_536) -> float:
    """log Z in nats of an energy on {0, 1}^units, by summing all 2^units states.

    Raises:
        ValueError: More than 20 units.
    """
    with torch.no_grad():
        log_p = [(-energy(states).double()).logsumexp(0) for states in binary_states(units, chunk_size)]
    return float(torch.stack(log_p).logsumexp(0))


def rbm_log_z(weights: Tensor, visible_bias: Tensor, hidden_bias: Tensor, chunk_size: int = 65_536) -> float:
    r"""log Z in nats of a binary RBM, E(v, h) = -v W h - b v - c h, by summing the states of its smaller layer.

    .. math:: Z = \sum_h e^{c h} \prod_i (1 + e^{b_i + (W h)_i})

    Arguments:
        weights: W, shape (V, H).
        visible_bias: b, shape (V,).
        hidden_bias: c, shape (H,).
        chunk_size: States summed at once.

    Raises:
        ValueError: Both layers have more than 20 units.
    """
    w, b, c = weights.double(), visible_bias.double(), hidden_bias.double()
    if len(b) < len(c):
        w, b, c = w.T, c, b

    def energy(h: Tensor) -> Tensor:
        return -(h.double() @ c) - nn.functional.softplus(h.double() @ w.T + b).sum(1)

    return enumeration(energy, len(c), chunk_size)


def binary_states(units: int, chunk_size: int = 65_536) -> list[Tensor]:
    """All states of {0, 1}^units, float32, in chunks of shape (chunk, units)."""
    if units > MOST_UNITS:
        raise ValueError(
            f"'units' should be at most {MOST_UNITS} to enumerate, got {units}: 2^{units} states. Use annealing."
        )
    numbers = torch.arange(2**units).split(chunk_size)
    return [(n[:, None] >> torch.arange(units) & 1).float() for n in numbers]


def _mixture(mixture: MixtureLogits, temperature: float) -> LogZ:
    """At temperature T each component is a Gaussian to the power 1 / T, which integrates in closed form."""
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
    x = grid(support, 512)
    with torch.no_grad():
        energies = energy(x).double()
        log_p_y = torch.cat([energy.logits(chunk).double().log_softmax(1) for chunk in x.split(65_536)])
    cell = support.shape[0] * math.log((support.high - support.low) / 512)
    return _from_classes((log_p_y - energies[:, None]).logsumexp(0) + cell)
