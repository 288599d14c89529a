"""Log Z without sampling: sums over grids that are fine enough to be exact."""

import math

import torch
from torch import Tensor

from ebm_lightning.energies import Energy
from ebm_lightning.supports import Box


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
