"""Search for low energies in the coordinates of a proposal: on spheres far away, and inside the support."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ebm_lightning.energies import Energy
from ebm_lightning.samplers.freeze import modules_of
from ebm_lightning.samplers.gradient import value_and_gradient
from ebm_lightning.supports import Density, Support

MAX_HESSIAN = 512  # dimensions
DIFFERENCE = 3e-6  # step of finite differences, relative to the radius
MOMENTUM, SQUARES = 0.5, 0.7  # a short memory, because the step size falls fast


@dataclass
class StandardizedEnergy:
    """An energy as a function of z, shape (N, D), where x = mean + std z. Counts its evaluations.

    Attributes:
        energy_of_x: Maps (N, *shape) to (N,).
        support: Domain of x.
        points: Samples of the proposal in these coordinates, shape (N, D).
        mean, std: Of the proposal, shape (D,).
        shape: Of one x.
        dtype: float64 where the energy accepts it.
        generator: Source of directions.
    """

    energy_of_x: Energy
    support: Support
    points: Tensor
    mean: Tensor
    std: Tensor
    shape: torch.Size
    dtype: torch.dtype
    generator: torch.Generator
    evaluations: int = field(default=0)

    @classmethod
    def of(
        cls, energy: Energy, support: Support, proposal: Density, generator: torch.Generator
    ) -> "StandardizedEnergy":
        x = proposal.sample(256, generator=generator)
        rows = x.flatten(1).double()
        # Quantiles, since a heavy-tailed proposal may have no variance.
        low, mean, high = rows.quantile(torch.tensor([0.1587, 0.5, 0.8413], device=x.device, dtype=rows.dtype), 0)
        std = ((high - low) / 2).clamp(min=1e-12)
        points, known = (rows - mean) / std, bool(modules_of(energy))
        dtype = x.dtype if known else _widest(energy, x)
        evaluations = 2 if dtype == torch.float64 and not known else 0
        return cls(energy, support, points, mean, std, x.shape[1:], dtype, generator, evaluations)

    @property
    def dimensions(self) -> int:
        return len(self.mean)

    def x(self, z: Tensor) -> Tensor:
        return (self.mean + self.std * z).to(self.dtype).view(-1, *self.shape)

    def energy(self, z: Tensor) -> Tensor:
        """Shape (N,), float64."""
        self.evaluations += len(z)
        energy: Tensor = self.energy_of_x(self.x(z))
        return energy.double()

    def energy_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The energy, shape (N,), and its gradient in z, shape (N, D), both float64."""
        self.evaluations += len(z)
        energy, gradient = value_and_gradient(self.energy_of_x, self.x(z))
        return energy.double(), self.std * gradient.flatten(1).double()

    def second_order(self, z: Tensor) -> tuple[float, Tensor, Tensor, Tensor]:
        """The energy at ``z``, its gradient, and the eigenvalues and eigenvectors of its Hessian (by differences).

        Arguments:
            z: Shape (D,).
        """
        h = 1e-5 if self.dtype == torch.float64 else 1e-4 * max(float(z.norm()), 1.0)
        eye = torch.eye(len(z), dtype=z.dtype, device=z.device)
        energy, gradient = self.energy_and_gradient(torch.cat([z + h * eye, z - h * eye, z[None]]))
        up, down = gradient[:-1].chunk(2)
        hessian = ((up - down) / (2 * h)).nan_to_num(0, 1e30, -1e30)
        curvature, vectors = torch.linalg.eigh((hessian + hessian.T) / 2)
        return float(energy[-1]), gradient[-1].nan_to_num(0, 1e30, -1e30), curvature, vectors

    def random_directions(self, n: int) -> Tensor:
        """Unit vectors, shape (n, D)."""
        z = torch.randn((n, self.dimensions), generator=self.generator, device=self.mean.device, dtype=torch.float64)
        unit: Tensor = z / torch.linalg.vector_norm(z, dim=1, keepdim=True)
        return unit

    def axes(self, most: int) -> Tensor:
        """Unit vectors along both directions of at most ``most`` axes, shape (2 * axes, D)."""
        rows = torch.eye(self.dimensions, device=self.mean.device, dtype=torch.float64)[:most]
        return torch.cat([rows, -rows])

    def inside(self, z: Tensor) -> Tensor:
        """The nearest points of the support."""
        return (self.support.clamp(self.x(z)).flatten(1).double() - self.mean) / self.std

    def contains(self, z: Tensor) -> Tensor:
        """Whether points are in the support, shape (N,), bool."""
        return self.support.contains(self.x(z))


def _widest(energy: Energy, x: Tensor) -> torch.dtype:
    """float64 if the energy accepts it, as functions do that contain no float32 matrices."""
    try:
        energy(x[:2].double())
    except RuntimeError:  # matrix product of float64 and float32
        return x.dtype
    return torch.float64


def minimize_on_sphere(space: StandardizedEnergy, z: Tensor, steps: int) -> Tensor:
    """The lowest points found from ``z``, shape (N, D), at the radius of each.

    Adam with a step size that falls geometrically from 0.3 to 1e-6 of the radius.
    """
    radius = torch.linalg.vector_norm(z, dim=1, keepdim=True)

    def project(z: Tensor) -> Tensor:
        on_sphere: Tensor = z * (radius / torch.linalg.vector_norm(z, dim=1, keepdim=True))
        return on_sphere

    def tangent(z: Tensor, gradient: Tensor) -> Tensor:
        along: Tensor = z * ((z * gradient).sum(1, keepdim=True) / radius**2)
        return gradient - along

    return _adam(space, z, 0.3 * radius, 1e-6 * radius, steps, project, tangent)


def minimize(space: StandardizedEnergy, chains: int, steps: int) -> Tensor:
    """The lowest points found inside the support from samples of the proposal, shape (chains, D).

    Adam with a step size that falls geometrically from 0.3 to 1e-8 standard deviations.
    """
    one = torch.ones((chains, 1), device=space.mean.device, dtype=torch.float64)
    return _adam(space, space.points[:chains], 0.3 * one, 1e-8 * one, steps, space.inside, lambda z, gradient: gradient)


def descend(space: StandardizedEnergy, z: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Minima of the basins of ``z`` inside the support, shape (N, D), and their energies, shape (N,).

    Adam with a step size that falls geometrically by a factor of 4000. It starts at 0.4 of the distance of
    each chain from the center.
    """
    far = torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp(min=1.0) / z.shape[1] ** 0.5
    ends = _adam(space, z, 0.4 * far, 1e-4 * far, steps, space.inside, lambda z, gradient: gradient)
    return ends, space.energy(ends)


def _adam(
    space: StandardizedEnergy,
    z: Tensor,
    first: Tensor,
    last: Tensor,
    steps: int,
    project: Callable[[Tensor], Tensor],
    tangent: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The lowest points on the way from ``z``. ``first`` and ``last`` are step sizes, shape (N, 1)."""
    m, v = torch.zeros_like(z), torch.zeros_like(z)
    best, lowest = z, torch.full((len(z),), math.inf, dtype=torch.float64, device=z.device)
    for t in range(steps):
        energy, gradient = space.energy_and_gradient(z)
        lower = energy < lowest
        best, lowest = torch.where(lower[:, None], z, best), torch.where(lower, energy, lowest)
        gradient = tangent(z, gradient.nan_to_num(0, 1e30, -1e30))
        m, v = MOMENTUM * m + (1 - MOMENTUM) * gradient, SQUARES * v + (1 - SQUARES) * gradient.square()
        size = first * (last / first) ** (t / (steps - 1))
        corrected = (m / (1 - MOMENTUM ** (t + 1))) / ((v / (1 - SQUARES ** (t + 1))).sqrt() + 1e-30)
        z = project(z - size * corrected)
    return best


class Shape(NamedTuple):
    """The energy on a sphere near one of its points, to second order.

    Attributes:
        log_widths: Log of the standard deviations of exp(-E), at most the radius, shape (D - 1,).
        excess: How far the energy is above its minimum, in nats.
    """

    log_widths: Tensor
    excess: float


def shape_on_sphere(space: StandardizedEnergy, z: Tensor) -> Shape:
    """The shape at ``z``, shape (D,), by finite differences of gradients.

    In more than 512 dimensions it is taken to be flat, to bound the cost.
    """
    radius = z.norm()
    if space.dimensions > MAX_HESSIAN:
        return Shape(radius.log().expand(space.dimensions - 1), math.inf)
    h, normal = DIFFERENCE * radius, z / radius
    eye = torch.eye(space.dimensions, device=z.device, dtype=z.dtype)
    basis = torch.linalg.qr(torch.cat([normal[:, None], eye], 1))[0][:, 1 : space.dimensions]
    up, down = (space.energy_and_gradient(z + sign * h * basis.T)[1].nan_to_num(0, 1e30, -1e30) for sign in (1, -1))
    gradient = (up + down).mean(0) / 2 if len(up) else torch.zeros_like(z)
    hessian = (up - down) @ basis / (2 * h) - eye[1:, 1:] * (gradient @ normal / radius)
    curvature, vectors = torch.linalg.eigh((hessian + hessian.T) / 2)
    curvature = curvature.clamp(min=float(radius) ** -2)
    slopes = vectors.T @ (basis.T @ gradient)
    return Shape(-0.5 * curvature.log(), float(0.5 * (slopes.square() / curvature).sum()))
