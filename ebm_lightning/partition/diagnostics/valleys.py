"""Follow the valleys of an energy outward from where chains ended, and see whether mass lies beyond them."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ebm_lightning.energies import Energy
from ebm_lightning.partition.diagnostics.descent import StandardizedEnergy
from ebm_lightning.partition.student import RUN_AGAIN
from ebm_lightning.samplers import frozen
from ebm_lightning.supports import Box, Density, Support

MAX_DIMENSIONS = 32  # each step takes twice as many gradients
ENDS = 200  # of chains, by weight
STARTS = 4
STEPS = 60
STRIDE = 0.1  # relative to the distance from the center
BEYOND = 3.0  # times as far as any chain
MASS_LOST = 2.0  # nats, per unit of log distance
LEAST = 2e-3  # fraction of Z beyond that distance in one valley
SLOWEST = 0.2  # nats that log M loses per unit of log distance, at least, beyond that distance
CLIMB = 3.0  # nats that one step may rise
NEWTON_STEPS = 3
HELD_BEYOND = (
    "A valley of the energy holds mass {:.0f} standard deviations of the proposal away, where no chain went. "
    f"{RUN_AGAIN}, or covers a curved valley."
)


def valley_verdict(
    energy: Energy,
    support: Support,
    proposal: Density,
    x: Tensor,
    log_w: Tensor,
    generator: torch.Generator,
    log_z: float,
) -> tuple[str, int]:
    r"""Why mass lies in a valley beyond all chains, empty without a sign of that; and the evaluations it took.

    Along the floor of a valley, with s_i the widths across it and r the distance from the center of the proposal, the
    mass for each unit of log r is

    .. math:: \log M(r) = -E + \log r + \sum_i \log s_i

    A valley counts if log M three times as far out as the farthest chain is at most 2 nats below log M near the chains,
    and the mass beyond is .2 % of Z or more if M goes on to fall as it did up to there. In 2 to 32 dimensions of R^D;
    elsewhere the sentence is empty.

    Arguments:
        energy, support, proposal: Of the run.
        x: Ends of the chains, shape (N, *shape).
        log_w: Their log weights, shape (N,).
        generator: Picks the ends at which to start.
        log_z: The estimate.
    """
    dimensions = x[0].numel()
    if isinstance(support, Box) or not 2 <= dimensions <= MAX_DIMENSIONS:
        return "", 0
    with frozen(energy), torch.inference_mode(False), torch.no_grad():
        space = StandardizedEnergy.of(energy, support, proposal, generator)
        weights = log_w.double().softmax(0).to(x.device)
        picked = torch.multinomial(weights, ENDS, replacement=True, generator=generator)
        z = (x.flatten(1).double()[picked] - space.mean) / space.std
        reach = float(z.norm(dim=1).max())
        starts = z[z.norm(dim=1).argsort(descending=True)[:: len(z) // STARTS]]
        far = BEYOND * max(reach, 1.0)
        least = math.log(LEAST) + log_z - float(space.std.log().sum()) - 0.5 * (dimensions - 1) * math.log(2 * math.pi)
        for start in starts:
            beyond = _follow(space, start, 1.0, far, least) or _follow(space, start, -1.0, far, least)
            if beyond:
                return HELD_BEYOND.format(beyond), space.evaluations
        return "", space.evaluations


def _follow(space: StandardizedEnergy, z: Tensor, sign: float, far: float, least: float) -> float:
    """Distance beyond ``far`` from which on a valley holds more than ``least``, in logs; 0 if it does not get there."""
    here = _floor(space, z, None)
    here = here._replace(direction=sign * here.direction)
    most, stride = here, STRIDE
    for _ in range(STEPS):
        step = stride * max(float(here.z.norm()), 1.0)
        there = _floor(space, here.z + step * here.direction, here.direction)
        if not (there.energy < here.energy + CLIMB and (there.z - here.z).norm() < 3 * step):  # left the valley
            stride /= 2
            if stride < STRIDE / 30:
                return 0.0
            continue
        here, stride = there, min(1.3 * stride, 3 * STRIDE)
        most = max(most, here, key=lambda floor: floor.log_mass)
        lost = most.log_mass - here.log_mass
        if lost > MASS_LOST:
            return 0.0
        if here.z.norm() > far:
            rate = lost / float((here.z.norm() / most.z.norm()).log().clamp(min=1e-3))
            return float(here.z.norm()) if here.log_mass - math.log(max(rate, SLOWEST)) > least else 0.0
    return 0.0


class _Floor(NamedTuple):
    """A point on the floor of a valley: its place, the direction of the valley, and log M and the energy there."""

    z: Tensor
    direction: Tensor
    log_mass: float
    energy: float


def _floor(space: StandardizedEnergy, z: Tensor, along: Tensor | None) -> _Floor:
    """The floor near ``z``, by Newton steps across the softest direction, or the one most parallel to ``along``."""
    for _ in range(NEWTON_STEPS):
        energy, gradient, curvature, vectors = space.second_order(z)
        soft = 0 if along is None else int((vectors.T @ along).abs().argmax())
        rest = [k for k in range(len(z)) if k != soft]
        direction, across = vectors[:, soft], vectors[:, rest]
        stiffness = curvature[rest].abs().clamp(min=max(float(z.norm()), 1.0) ** -2)
        slopes = across.T @ gradient
        if float((slopes.square() / stiffness).sum()) < 0.02:
            break
        z = z - across @ (slopes / stiffness)
    direction = direction if direction @ (z if along is None else along) >= 0 else -direction
    log_mass = -energy + float(z.norm().log() - 0.5 * stiffness.log().sum())
    return _Floor(z, direction, log_mass, energy)
