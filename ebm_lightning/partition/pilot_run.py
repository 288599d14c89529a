"""What a pilot run of annealing measured, and the path that follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm_lightning.partition.annealing_path import AnnealingPath, Schedule, Steps, interpolate, spaced_betas
from ebm_lightning.partition.flips import Flips
from ebm_lightning.partition.jumps import Jump
from ebm_lightning.partition.preconditioner import Scale
from ebm_lightning.partition.scalings import Scaling

FLIP_EVERY, SCALE_EVERY = 4, 2  # temperatures: flips at the last of 4, scalings at the first of 2, where there are some


@dataclass(frozen=True)
class PilotRun:
    """What a pilot run measured at each of its S temperatures.

    Attributes:
        betas: Inverse temperatures that the pilot chose, shape (S,), float64.
        log_steps: Log of the tuned step size times diagonal preconditioner, shape (S, *shape).
        barrier: Sum of the standard deviations of the log weights up to each beta, shape (S,), float64.
        gradient_evaluations: Cost of the run.
        path_exponent: Exponent of the path that it followed.
        scales: The distinct preconditioners that turn.
        turn_of: Index in ``scales`` at each beta, shape (S,); -1 for a diagonal preconditioner.
        flips: Of components with two modes, at each beta; None where there are none.
        scalings: Of all of x, at each beta; None where there are none.
        worth_scaling: Whether scalings were tried, not used, and worthwhile.
        limit: Number of stages at which the run stopped before beta = 1; 0 if it was complete.
    """

    betas: Tensor
    log_steps: Tensor
    barrier: Tensor
    gradient_evaluations: int
    path_exponent: float
    scales: tuple[Scale, ...]
    turn_of: Tensor
    flips: tuple[Flips | None, ...]
    scalings: tuple[Scaling | None, ...]
    worth_scaling: bool = False
    limit: int = 0

    def path(self, temperatures: int, schedule: Schedule) -> AnnealingPath:
        """A path of ``temperatures`` steps with that spacing. Temperatures between two matrices take the nearer one."""
        betas = spaced_betas(schedule, temperatures, *self._knots())
        right = torch.searchsorted(self.betas, betas[1:]).clamp(1, len(self.betas) - 1)
        left = right - 1
        nearest = torch.where(betas[1:] - self.betas[left] < self.betas[right] - betas[1:], left, right)
        sizes = interpolate(betas[1:], self.betas, self.log_steps)
        mixed = self.turn_of[left] != self.turn_of[right]
        sizes[mixed] = self.log_steps[nearest[mixed]]
        matrices = tuple(turn for scale in self.scales if (turn := scale.turn) is not None)
        jumps, jumps_at = self._jumps_at(nearest)
        steps = Steps(sizes.exp(), matrices, self.turn_of[nearest] if matrices else None, jumps, jumps_at)
        barrier = float(self.barrier[-1])
        return AnnealingPath(betas, steps, self.gradient_evaluations, self.path_exponent, barrier, self._why())

    def _jumps_at(self, nearest: Tensor) -> tuple[tuple[Jump, ...], Tensor | None]:
        """The jumps, and which of them takes the place of the move at each temperature, but not at the last one.

        Arguments:
            nearest: Stage of each temperature, shape (T,).
        """
        t, jumps = torch.arange(1, len(nearest) + 1), list[Jump]()
        at = torch.full((len(nearest),), -1)
        kinds: tuple[tuple[Sequence[Jump | None], Tensor], ...] = (
            (self.scalings, t % SCALE_EVERY == 1),
            (self.flips, t % FLIP_EVERY == 0),
        )
        for of_stage, here in kinds:
            found = [stage for stage, jump in enumerate(of_stage) if jump is not None]
            number = torch.full((len(of_stage),), -1)
            number[found] = torch.arange(len(jumps), len(jumps) + len(found))
            at = torch.where(here & (t < len(nearest)), number[nearest], at)
            jumps += [jump for jump in of_stage if jump is not None]
        return tuple(jumps), at if jumps else None

    def _knots(self) -> tuple[Tensor, Tensor]:
        """Betas and barrier for the spacing. An incomplete run leaves half of the temperatures for the rest."""
        if not self.limit:
            return self.betas, self.barrier
        return torch.cat([self.betas, self.betas.new_ones(1)]), torch.cat([self.barrier, 2 * self.barrier[-1:]])

    def _why(self) -> str:
        if not self.limit:
            return ""
        return (
            f"The pilot run reached only beta = {float(self.betas[-1]):.2g} in {self.limit} stages, so the steps "
            "beyond it are not tuned: raise 'temperatures', or choose a 'proposal' closer to the model."
        )
