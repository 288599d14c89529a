"""Whether exp(-E) has a finite integral: how fast the energy grows far away, and how fast it falls towards poles."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm_lightning.energies import Energy
from ebm_lightning.partition.diagnostics.descent import (
    StandardizedEnergy,
    minimize,
    minimize_on_sphere,
    shape_on_sphere,
)
from ebm_lightning.samplers import frozen
from ebm_lightning.supports import Box, Density, Support

RAYS = 256
AXES = 64
CHAINS = 12
POLE_CHAINS = 6
VALLEYS = 3  # the lowest ends of the chains
STEPS = 150
RADII = (1e3, 1e4, 1e5)  # of the spheres on which the energy is minimized, in widths of the proposal
FAR_RADII = (1e2, 1e3, 1e4, 1e5, 1e6)
POLE_RADII = (1e-3, 1e-4, 1e-5)  # distances from a minimum, in widths of the proposal
RISING = 1.02  # growth that increases by this factor in a decade exceeds any multiple of log r in the end
SUFFICIENT = 1e-3  # relative margin above the dimension
ROUNDING = 0.01  # margin for the growth of widths, which are found by finite differences
MAX_EXCESS = 1.0  # nats above a minimum
DECADE = math.log(10)

FALLS = (
    "The energy falls or grows too slowly far away, so Z is infinite: use a Box or Gaussian support, or an energy that "
    "grows by more than log 10 times the number of dimensions when the distance grows by 10."
)
POLE = (
    "The energy has no lower bound near a point inside the support and falls so fast that Z is infinite: bound it from "
    "below, for example by clamping the argument of its logarithm."
)


@dataclass(frozen=True)
class Integrability:
    """Whether Z is finite.

    Attributes:
        why: Why Z is infinite and what to do about it, in one sentence. Empty if no sign of that was found.
        gradient_evaluations: Number of evaluations of the energy that the search took.
    """

    why: str
    gradient_evaluations: int

    @property
    def finite(self) -> bool:
        return not self.why


def integrable(energy: Energy, support: Support, proposal: Density, generator: torch.Generator) -> Integrability:
    r"""Whether the integral of exp(-E) is finite, as far as random rays and descent can tell.

    With r the distance from the center of the proposal in units of its standard deviations, Z is infinite if

    .. math:: \frac{dE}{d \log r} \le D \text{ on a cone of rays, or } \frac{dE}{d \log r} \le 1 + \sum_i
        \frac{d \log s_i}{d \log r} \text{ along a valley of widths } s_i(r)

    A growth dE / d log r that itself increases with r is always sufficient. Valleys are found by minimizing the energy
    on spheres of radius 1e3 to 1e5, and along the axes. A pole inside the support makes Z infinite if the energy falls
    by more than log 10 for each of the dimensions that approach it when the distance falls by 10.

    It can miss a valley that descent from 12 random directions does not reach. In more than 512 dimensions, valleys
    count as wide in all of them, so that a valley with heavy tails may be called infinite.

    Arguments:
        energy: Maps (N, *shape) to (N,).
        support: Its domain.
        proposal: Gives the center and the widths.
        generator: Source of the rays.

    Raises:
        ValueError: The energy is NaN at 100 standard deviations and beyond.
    """
    with frozen(energy), torch.inference_mode(False), torch.no_grad():
        space = StandardizedEnergy.of(energy, support, proposal, generator)
        if not isinstance(support, Box) and (_cones_are_infinite(space) or _valleys_are_infinite(space)):
            return Integrability(FALLS, space.evaluations)
        return Integrability(POLE if _poles_are_infinite(space) else "", space.evaluations)


def _cones_are_infinite(space: StandardizedEnergy) -> bool:
    """Whether the energy grows too slowly along a random ray, and so along a cone of rays."""
    growth, rising = _growth_along(space, space.random_directions(RAYS))
    if growth.isnan().all():
        raise ValueError(
            "'energy' should be finite inside the support, got NaN from 100 standard deviations of the proposal on."
        )
    return bool(((growth <= space.dimensions * (1 + SUFFICIENT)) & ~rising).any())


def _growth_along(space: StandardizedEnergy, directions: Tensor) -> tuple[Tensor, Tensor]:
    """dE / d log r over the farthest decade in which it is known, shape (N,), and whether it is rising.

    NaN where the energy is NaN from the first radius on, as 0 times infinity is.
    """
    energies = torch.stack([space.energy(radius * directions) for radius in FAR_RADII])
    growth = torch.full_like(energies[0], math.nan)
    rising = torch.zeros_like(growth, dtype=torch.bool)
    for near, far in itertools.pairwise(energies):
        step = slope(near, far)
        known = ~step.isnan()
        rising = torch.where(known, (step > RISING * growth) & (growth > 0), rising)
        growth = torch.where(known, step, growth)
    return growth, rising


def slope(near: Tensor, far: Tensor) -> Tensor:
    """Change of the energy over a decade of distance, in units of log 10. Infinite where the energy is."""
    change = (far - near) / DECADE
    change = torch.where(near == math.inf, math.inf, change)  # no mass there
    return torch.where(far == -math.inf, -math.inf, change)


def _valleys_are_infinite(space: StandardizedEnergy) -> bool:
    """Whether some valley that descent finds, or an axis, holds infinite mass."""
    axes = space.axes(AXES)
    growth, rising = _growth_along(space, axes)
    slow = (growth <= space.dimensions * (1 + SUFFICIENT)) & ~rising
    if slow.any() and _is_infinite(space, [radius * axes[slow] for radius in RADII], growth[slow]):
        return True
    valleys = _descend(space)
    near, middle, far = (space.energy(valley) for valley in valleys)
    first, growth = slope(near, middle), slope(middle, far)
    slow = (growth <= space.dimensions * (1 + SUFFICIENT)) & ~((growth > RISING * first) & (first > 0))
    if not slow.any():
        return False
    valleys = [valley[slow] for valley in valleys]
    again = minimize_on_sphere(space, valleys[2] * (RADII[1] / RADII[2]), STEPS)
    lower = torch.minimum(
        middle[slow], space.energy(again)
    )  # a middle point that was not a minimum would look too high
    return _is_infinite(space, valleys, slope(lower, far[slow]))


def _descend(space: StandardizedEnergy) -> list[Tensor]:
    """Low points on spheres of increasing radius, each shape (VALLEYS, D). Each starts from the one before."""
    points = minimize_on_sphere(space, RADII[0] * space.random_directions(CHAINS), STEPS)
    valleys = [points[space.energy(points).argsort()[:VALLEYS]]]
    for near, far in itertools.pairwise(RADII):
        valleys.append(minimize_on_sphere(space, valleys[-1] * (far / near), STEPS))
    return valleys


def _is_infinite(space: StandardizedEnergy, valleys: list[Tensor], growth: Tensor) -> bool:
    """Whether the growth along one of the slowest valleys is too small for how its width grows.

    A curved valley counts only if both points are minima. Otherwise their difference says nothing.
    """
    for k in growth.argsort()[:3]:
        near, far = shape_on_sphere(space, valleys[-2][k]), shape_on_sphere(space, valleys[-1][k])
        straight = valleys[-2][k] * near.log_widths.new_tensor([[1.0], [10.0]])
        growth_ahead = slope(*space.energy(straight))
        widening = (far.log_widths - near.log_widths).sum() / DECADE
        needed = (1 + widening) * (1 + SUFFICIENT) + ROUNDING
        if growth[k] <= needed and (growth_ahead <= needed or max(near.excess, far.excess) < MAX_EXCESS):
            return True
    return False


def _poles_are_infinite(space: StandardizedEnergy) -> bool:
    """Whether the energy falls too fast towards the lowest points that descent finds."""
    lowest = minimize(space, POLE_CHAINS, STEPS)
    return any(_is_infinite_pole(space, point) for point in lowest)


def _is_infinite_pole(space: StandardizedEnergy, point: Tensor) -> bool:
    """Whether exp(-E) has an infinite integral near ``point``, shape (D,).

    Over k dimensions, |x|^-a has one if a >= k. k is the effective rank of the gradients around the point.
    """
    directions = space.random_directions(32) * space.dimensions**0.5
    energies, gradients = zip(
        *(space.energy_and_gradient(point + radius * directions) for radius in POLE_RADII), strict=True
    )
    inside = torch.stack(energies).isfinite().all(0) & gradients[-1].isfinite().all(1)
    if inside.sum() < 8:
        return False
    # A slope falls in half of the directions, a pole in all of them.
    falls = [float(slope(b[inside], a[inside]).quantile(0.1)) for a, b in itertools.pairwise(energies)]
    noise = 16 * torch.finfo(space.dtype).eps * float(energies[-1][inside].abs().max()) / DECADE
    g = gradients[-1][inside] / gradients[-1][inside].norm(dim=1, keepdim=True)
    if not g.isfinite().all():  # the energy is constant
        return False
    rank = 1 / float((g @ g.T).square().mean())  # of n unit vectors in k dimensions: 1 / k, plus 1 / n
    return min(falls) > max(0.98 * rank, noise)
