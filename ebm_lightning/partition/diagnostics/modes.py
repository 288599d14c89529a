"""Modes of the model that chains missed: found by descent from points up to 8 times as wide as the proposal.

Between walls, descents start at points of the proposal and stay inside.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ebm_lightning.partition.annealing_path import Annealing
from ebm_lightning.partition.diagnostics.descent import StandardizedEnergy, descend
from ebm_lightning.partition.log_z import LogZ, log_mean_exp, relative_ess
from ebm_lightning.samplers import frozen
from ebm_lightning.supports import Box

MAX_DIMENSIONS = 32  # a Hessian takes twice as many gradients
WIDTHS = (1.0, 2.0, 4.0, 8.0)  # of the starting points, relative to the proposal
STARTS = 24  # of each width
STEPS = 40
HESSIANS = 2048  # gradients
NEWTON_STEPS, HALVINGS = 4, 5
DECREMENT = 0.01  # nats; Newton steps stop below it
SAMPLES, SAMPLES_PER_MODE = 2048, 512
MAX_MODES = 32  # whose mass is measured
LEAST = 1e-3  # mass of a mode, relative to the estimate
SIGNIFICANT = 4.0  # standard errors
PRECISE = 0.1  # relative error with which a mass may be smaller than what the chains carry
MATERIAL = 0.05  # mass, relative to the estimate
CURVATURE = 1e-3  # a mode is at most 30 times as wide as the proposal


class MissedModes(NamedTuple):
    """What the search for modes found.

    Attributes:
        why: Why modes are missing, in one sentence; empty if none are known.
        missing: Mass of the modes minus that which the chains carry there, relative to the estimate of Z.
        std_err: The error of log Z beyond the noise of measuring both, in nats; at least 0.
        gradient_evaluations: Cost of the search.
    """

    why: str
    missing: float
    std_err: float
    gradient_evaluations: int


class _Mode(NamedTuple):
    """A normal density around a minimum of the energy.

    Attributes:
        center: Shape (D,).
        root: Maps standard normal rows to deviations from the center, shape (D, D).
        log_mass: Log of the integral of exp(-E) to second order, in nats.
    """

    center: Tensor
    root: Tensor
    log_mass: float

    def contains(self, z: Tensor) -> Tensor:
        """Which points are in the region that holds about 9 of 10 draws, shape (N,), bool."""
        d = len(self.center)
        u: Tensor = torch.linalg.solve(self.root, (z - self.center).T)
        return u.square().sum(0) < d + 1.5 * math.sqrt(2 * d)


def missed_modes(annealing: Annealing, x: Tensor, estimate: LogZ, generator: torch.Generator) -> MissedModes:
    """Search for modes that hold more mass than the chains found there.

    The mass of a mode is measured by importance sampling from the normal density that its Hessian gives. Only in up to
    32 dimensions; elsewhere the sentence is empty.

    Arguments:
        annealing: Of the run.
        x: Ends of its chains, shape (N, *shape).
        estimate: log Z with the log weights of these chains.
        generator: Source of randomness.
    """
    if x[0].numel() > MAX_DIMENSIONS:
        return MissedModes("", 0.0, 0.0, 0)
    with frozen(annealing.energy), torch.inference_mode(False), torch.no_grad():
        space = StandardizedEnergy.of(annealing.energy, annealing.support, annealing.proposal, generator)
        ends = (x.flatten(1).double() - space.mean) / space.std
        share = estimate.log_weights.to(x.device).softmax(0)
        log_z = estimate.log_z - float(space.std.log().sum())
        modes = [mode for mode in _modes(space) if mode.log_mass - log_z > math.log(LEAST)]
        modes = sorted(modes, key=lambda mode: -mode.log_mass)[:MAX_MODES]  # not by what is missing: no bias
        missing, total, variance, noise = 0.0, 0.0, 0.0, 0.0
        for k in range(len(modes)):
            carried = float(share[_region(modes, k, ends)].sum())
            mass, error = _mass(space, modes, k, log_z)
            if mass < carried and not 0 < error < PRECISE * mass:  # the normal density may not cover the mode
                continue
            missing, total, noise = missing + mass - carried, total + carried, noise + error**2
            variance += error**2 + mass / (estimate.ess * len(ends))
        noise += total * (1 - total) / (estimate.ess * len(ends))  # of the fraction of chains outside all regions
        excess = math.sqrt(max(0.0, missing**2 - noise))
    if missing < MATERIAL or missing < SIGNIFICANT * math.sqrt(variance):
        return MissedModes("", missing, excess, space.evaluations)  # log(1 + excess) is the same in first order
    why = (
        f"Descents of the energy find modes that hold {math.log1p(missing):.2g} nats of log Z more than the chains "
        "found there: use a 'proposal' that covers them, such as a Mixture, pass 'data', or raise 'num_chains'."
    )
    return MissedModes(why, missing, math.log1p(excess), space.evaluations)


def _modes(space: StandardizedEnergy) -> list[_Mode]:
    """Distinct minima from wide starting points, the lowest first."""
    widths = [1.0] * len(WIDTHS) if isinstance(space.support, Box) else WIDTHS
    starts = torch.cat([width * space.points[k::4][:STARTS] for k, width in enumerate(widths)])
    z, energies = descend(space, starts, STEPS)
    modes: list[_Mode] = []
    enough = space.evaluations + HESSIANS
    for k in energies.argsort().tolist():
        if space.evaluations >= enough or not math.isfinite(float(energies[k])):
            break
        mode = None if _known(modes, z[k]) else _mode(space, z[k])
        if mode is not None and not _known(modes, mode.center):
            modes.append(mode)
    return modes


def _known(modes: list[_Mode], z: Tensor) -> bool:
    return any(bool(mode.contains(z[None])) for mode in modes)


def _mode(space: StandardizedEnergy, z: Tensor) -> _Mode | None:
    """The normal density around the minimum near ``z``, by Newton steps; None where the energy is not convex."""
    for _ in range(NEWTON_STEPS):
        energy, gradient, curvature, vectors = space.second_order(z)
        slopes = vectors.T @ gradient
        stiffness = curvature.abs().clamp(min=CURVATURE)
        if float((slopes.square() / stiffness).sum()) < DECREMENT:
            break
        step = -vectors @ (slopes / stiffness)
        tried = space.inside(z + step * 0.5 ** torch.arange(HALVINGS, device=z.device)[:, None])
        z = torch.cat([tried, z[None]])[int(torch.cat([space.energy(tried), tried.new_tensor([energy])]).argmin())]
    if float(curvature[0]) < CURVATURE:
        return None
    energy = float(space.energy(z[None]))
    return _Mode(z, vectors * curvature.rsqrt(), -energy + 0.5 * float((2 * math.pi / curvature).log().sum()))


def _region(modes: list[_Mode], k: int, z: Tensor) -> Tensor:
    """Which points are in the region of a mode, and not in that of a mode before it, shape (N,), bool."""
    inside = modes[k].contains(z)
    for mode in modes[:k]:
        inside = inside & ~mode.contains(z)
    return inside


def _mass(space: StandardizedEnergy, modes: list[_Mode], k: int, log_z: float) -> tuple[float, float]:
    """The mass in the region of a mode relative to Z, and its standard error."""
    mode, n = modes[k], min(SAMPLES_PER_MODE, SAMPLES // len(modes))
    d = len(mode.center)
    u = torch.randn((n, d), generator=space.generator, device=mode.center.device, dtype=mode.center.dtype)
    z = mode.center + u @ mode.root.T
    log_q = -0.5 * u.square().sum(1) - d / 2 * math.log(2 * math.pi) - torch.linalg.slogdet(mode.root)[1]
    counts = space.contains(z) & _region(modes, k, z)
    log_w = (-space.energy(z) - log_q - log_z).masked_fill(~counts, -math.inf)
    mass, ess = float(log_mean_exp(log_w).exp()), relative_ess(log_w)
    return mass, mass * math.sqrt((1 / ess - 1) / n) if ess else 0.0
