"""Annealing from a reference density that makes x from noise, by kernels that redraw a part of the noise."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ebm_lightning.energies import Energy, log_tilt
from ebm_lightning.partition.annealing_path import Annealing, Move
from ebm_lightning.partition.log_z import LogZ
from ebm_lightning.samplers import GHMC, HMC, NoiseRefresh
from ebm_lightning.samplers.hmc import Phase, Tempered
from ebm_lightning.samplers.noise_refresh import refreshed
from ebm_lightning.supports import Density, Support
from ebm_lightning.supports.density import InvertibleDensity, zero_gradient

BEYOND = 0.1  # fraction of the data that no chain reached
ROWS = 250  # evaluated at once


def from_noise(proposal: Density | None) -> InvertibleDensity | None:
    """The density of ``proposal``, a density or a support with a reference, that makes x from noise; None if none."""
    reference = getattr(proposal, "reference", proposal)
    return reference if isinstance(reference, InvertibleDensity) else None


def annealing_from(proposal: Density, energy: Energy, support: Support, kernel: HMC | NoiseRefresh | None) -> Annealing:
    """Annealing between ``proposal`` and the energy. Without ``kernel``, the kernel follows from the proposal.

    Raises:
        ValueError: NoiseRefresh and a proposal that does not make x from noise.
    """
    noise = from_noise(proposal) is not None
    if isinstance(kernel, NoiseRefresh) and not noise:
        raise ValueError(
            f"'kernel' should be GHMC(), HMC() or MALA() for a proposal that does not make x from noise, got {kernel} "
            f"and {type(proposal).__name__}. Leave 'kernel' out, or use AutoregressiveDensity as the proposal."
        )
    if isinstance(kernel, NoiseRefresh) or (kernel is None and noise):
        return NoiseAnnealing(energy, support, proposal, kernel or NoiseRefresh())
    return Annealing(energy, support, proposal, kernel or GHMC())


@dataclass(frozen=True)
class NoiseAnnealing(Annealing):
    """Annealing of the tilt of a model: its density relative to the proposal, raised to the power beta.

    In place of momenta a :class:`~ebm_lightning.samplers.hmc.Phase` holds the noise of its points. Gradients are 0.
    """

    kernel: NoiseRefresh
    max_log_step: ClassVar[float] = 0.0  # all of the noise

    def begin(
        self, x: Tensor, generator: torch.Generator, beta: float = 0.0, path_exponent: float = 1.0
    ) -> tuple[Tempered, Phase]:
        return Tempered(self.energy, self.proposal, beta, path_exponent), self.at(x)

    def integrand(self, x: Tensor) -> Tensor:
        """The energy relative to the proposal, which is bounded but jumps between gray levels, shape (N,)."""
        no_gradient = 0 * x.flatten(1).sum(1)  # of an energy that has none
        if self.proposal is self.support:
            return no_gradient - log_tilt(self.energy, self.support, x)
        return no_gradient + self.energy(x).double() + self._reference.log_prob(x)

    def move(self, target: Tempered, phase: Phase, step: Move, generator: torch.Generator) -> tuple[Phase, Tensor]:
        assert isinstance(step, Tensor)
        x, u, log_q = refreshed(self._reference, phase.v, min(1.0, float(step)), generator)
        proposed = self._at(x, u, log_q)
        log_ratio = target.potential(phase) - target.potential(proposed) + phase.log_q - proposed.log_q
        draw = torch.rand(log_ratio.shape, generator=generator, device=log_ratio.device, dtype=torch.float64)
        accepted = draw.log() < log_ratio
        parts = zip(proposed, phase, strict=True)
        return Phase(*(torch.where(accepted.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in parts)), accepted

    def log_width(self, target: Tempered, phase: Phase) -> Tensor:
        """0: the step is a part of the noise, and not a distance."""
        return torch.zeros((), dtype=torch.float64, device=phase.x.device)

    @property
    def move_cost(self) -> int:
        return 1

    @property
    def keeps_proposal(self) -> bool:
        return True

    @property
    def _reference(self) -> InvertibleDensity:
        reference = from_noise(self.proposal)
        assert reference is not None
        return reference

    def at(self, x: Tensor) -> Phase:
        """Chains at ``x``, shape (N, *shape)."""
        return self._at(x, *self._reference.to_noise(x))

    def _at(self, x: Tensor, u: Tensor, log_q: Tensor) -> Phase:
        energy = self.integrand(x) - log_q if self.proposal is self.support else self.energy(x).double()
        return Phase(x, u, energy, zero_gradient(x), log_q, zero_gradient(x))


def tilt_evidence(estimate: LogZ, annealing: NoiseAnnealing, data: Tensor) -> str:
    """Why an estimate may lack the mass where data lie; empty if its chains reach them.

    They do not if more than a tenth of the data have a larger density relative to the proposal than any chain.

    Arguments:
        estimate: With the ends of its chains.
        annealing: What was annealed.
        data: Points of the regions of interest, shape (N, *shape).
    """
    assert estimate.samples is not None
    of_chains, of_data = (_tilt(annealing, x.to(data.device)) for x in (estimate.samples, data))
    missed = float((of_data > of_chains.max()).double().mean())
    if missed < BEYOND:
        return ""
    gap = float(of_data.mean() - of_chains.mean())
    return (
        f"{missed:.0%} of the data are likelier relative to the proposal than the ends of all chains, by {gap:.1f} "
        "nats on average, so chains did not reach them: raise 'temperatures' or 'num_chains'."
    )


def _tilt(annealing: NoiseAnnealing, x: Tensor) -> Tensor:
    with torch.no_grad():
        phases = [annealing.at(part) for part in x.split(ROWS)]
    return torch.cat([-phase.energy - phase.log_q for phase in phases])
