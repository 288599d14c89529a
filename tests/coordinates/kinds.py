"""Fitted coordinates of every kind over two components, which tests share."""

import copy
import functools
from collections.abc import Callable

import torch
import zuko
from torch import Tensor

from ebm_lightning.coordinates import Compose, Coordinates, Flow, NormalScores, Quantiles, RadialPower, Whitening
from ebm_lightning.supports import Box, Euclidean

BOX = Box(-1.0, 1.0, (2,))
PLANE = Euclidean((2,))
LEVELS = 5


def plane_data(n: int = 500) -> Tensor:
    """Two correlated components with different scales, shape (n, 2), float64."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return z @ torch.tensor([[1.0, 0.4], [0.0, 0.5]], dtype=torch.float64) + 0.3


def box_data(n: int = 500) -> Tensor:
    """The same, in the open box."""
    return (plane_data(n) / 2).tanh()


def unit_data(n: int = 500) -> Tensor:
    return (box_data(n) + 1) / 2


def small_flow() -> Flow:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = zuko.flows.NSF(2, transforms=1, hidden_features=(8,))
    return Flow(flow, (2,), epochs=4, learning_rate=0.02)


def copula() -> Compose:
    return Compose([Quantiles(BOX, LEVELS), NormalScores((2,)), Whitening((2,))])


KINDS: dict[str, tuple[Callable[[], Coordinates], Callable[[], Tensor]]] = {
    "levels": (lambda: Quantiles(BOX, LEVELS), box_data),
    "continuous in a box": (lambda: Quantiles(BOX, cells=16), box_data),
    "continuous in the plane": (lambda: Quantiles(PLANE, cells=16), plane_data),
    "radial power, whitened": (lambda: Compose([RadialPower((2,), 0.9), Whitening((2,))]), plane_data),
    "whitening": (lambda: Whitening((2,)), plane_data),
    "normal scores": (lambda: NormalScores((2,)), unit_data),
    "copula": (copula, box_data),
    "flow": (small_flow, plane_data),
}


@functools.cache
def _fitted(kind: str) -> Coordinates:
    make, data = KINDS[kind]
    return make().fit(list(data().split(125)))


def fitted(kind: str) -> Coordinates:
    return copy.deepcopy(_fitted(kind))


def log_q(coordinates: Coordinates, x: Tensor) -> Tensor:
    """Log of the density that the coordinates give to x, shape (N,), float64."""
    u = coordinates(x)
    return coordinates.codomain.log_prob(u) + coordinates.log_abs_det_jacobian(x, u)


def midpoints(low: float, high: float, n: int, dimensions: int) -> tuple[Tensor, float]:
    """Midpoints of the cells of a regular grid, shape (n^D, D), and the volume of a cell."""
    axis = low + (high - low) * (torch.arange(n, dtype=torch.float64) + 0.5) / n
    points = torch.cartesian_prod(*[axis] * dimensions).view(-1, dimensions)
    return points, ((high - low) / n) ** dimensions
