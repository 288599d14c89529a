"""Scalings: Metropolis moves that multiply the distance of a chain from a center by a random factor.

Under heavy tails, and in a box that is much larger than the model, local moves need very many steps from the center to
where the tails end. A scaling gets there in one.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm_lightning.partition.jumps import jump_move, weight_change
from ebm_lightning.samplers.hmc import Phase, Tempered
from ebm_lightning.supports import Support

ACCEPTANCE, GAIN = 0.4, 2.0  # for which the spread of the factors is tuned
LARGEST = 3.0  # spread of their logarithm
LEAST_ACCEPTED = 0.08  # at a stage, below which it has no scalings
WORTHWHILE, LATE = 0.58, 0.6  # change of weights by scalings, relative to a move of the kernel, in all and late stages


@dataclass(frozen=True)
class Scaling:
    r"""x' = c + s (x - c), where log s is normal with mean 0.

    Arguments:
        center: c, shape (D,).
        spread: Standard deviation of log s.

    References:
        Liu & Sabatti, Generalised Gibbs sampler and multigrid Monte Carlo for Bayesian computation, 2000.
        https://doi.org/10.1093/biomet/87.2.353
    """

    center: Tensor
    spread: float

    def to(self, device: torch.device, dtype: torch.dtype) -> "Scaling":
        return Scaling(self.center.to(device, dtype), self.spread)

    def propose(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Scaled points, shape (N, *shape), and D log s, shape (N,)."""
        log_s = self.spread * torch.randn(len(x), generator=generator, device=x.device, dtype=torch.float64)
        rows = self.center + log_s.exp().to(x.dtype)[:, None] * (x.flatten(1) - self.center)
        return rows.view_as(x), len(self.center) * log_s


class ScalingFinder:
    """Scalings of the chains of a pilot run around their median, whose spread is tuned stage by stage.

    Arguments:
        support: Domain.
        move: Whether chains move by them. Otherwise they are tried, with random numbers that do not disturb the run.
        generator: Of the run.

    Attributes:
        found: Scalings of each stage; None where hardly any was accepted.
        evaluations: Of the energy.
    """

    def __init__(self, support: Support, move: bool, generator: torch.Generator) -> None:
        self.support, self.move, self.generator = support, move, generator
        if not move:
            self.generator = torch.Generator(generator.device)
            self.generator.set_state(generator.get_state())
        self.found: list[Scaling | None] = []
        self.evaluations = 0
        self._spread = 0.0
        self._changes: list[float] = []
        self._local_changes: list[float] = []

    @property
    def worthwhile(self) -> bool:
        """Whether scalings change weights about as much as moves of the kernel do, in all stages or in the second half.

        In the second half modes and scales are apart, and moves of the kernel do not get from one to another.
        """
        late = len(self._changes) // 2
        return self._relative_change(0) >= WORTHWHILE or self._relative_change(late) >= LATE

    def stage(self, target: Tempered, phase: Phase) -> Phase:
        """Scalings at one beta, and the chains after them, or as they came if scalings are tried only."""
        rows = phase.x.flatten(1)
        self._spread = self._spread or math.sqrt(2 / rows.shape[1])
        scaling = Scaling(rows.median(0).values, self._spread)
        scaled, accepted = jump_move(target, phase, scaling, self.support, self.generator)
        rate = float(accepted.double().mean())
        self.evaluations += len(accepted)
        self._changes.append(weight_change(phase, scaled))
        self.found.append(scaling.to(torch.device("cpu"), phase.x.dtype) if rate > LEAST_ACCEPTED else None)
        self._spread = min(self._spread * math.exp(GAIN * (rate - ACCEPTANCE)), LARGEST)
        return scaled if self.move else phase

    def compare(self, before: Phase, after: Phase) -> None:
        """Note how much a move of the kernel changed weights at this stage."""
        self._local_changes.append(weight_change(before, after))

    def _relative_change(self, first: int) -> float:
        """Change of the weights by scalings relative to that by moves of the kernel, from that stage on."""
        return sum(self._changes[first:]) / max(sum(self._local_changes[first:]), 1e-12)
