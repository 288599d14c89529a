"""Resampling of weighted chains."""

import torch
from torch import Tensor

from ebm_lightning.samplers.hmc import Phase


def systematic(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """Systematic resampling: indices of shape (N,), where i occurs floor(N w_i) or ceil(N w_i) times.

    References:
        Carpenter, Clifford & Fearnhead, Improved particle filter for nonlinear problems, 1999.

    Arguments:
        weights: Normalized weights w, shape (N,).
        generator: Source of randomness.
    """
    u = torch.rand((), generator=generator, device=weights.device, dtype=torch.float64)
    points = (torch.arange(len(weights), device=weights.device, dtype=torch.float64) + u) / len(weights)
    return torch.searchsorted(weights.double().cumsum(0), points).clamp(max=len(weights) - 1)


def take(phase: Phase, index: Tensor) -> Phase:
    """The chains at ``index``, with their momenta, energies and gradients."""
    return Phase(*(part[index] for part in phase))
