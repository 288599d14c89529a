"""Jumps to independent draws of the reference density, before the steps of another kernel."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ebm_lightning.checks import check_integer, plain_numbers
from ebm_lightning.energies import Energy, log_tilt
from ebm_lightning.samplers.base import Sampler, State
from ebm_lightning.samplers.hmc import HMC, MALA
from ebm_lightning.supports import Support


@dataclass(frozen=True)
class ReferenceJumps(Sampler):
    r"""Cycles of a Metropolis step that proposes a draw of the support's reference density q, and steps of a kernel.

    .. math:: x' \sim q, \qquad \alpha = \min\left(1, \frac{e^{-E(x')} q(x)}{e^{-E(x)} q(x')}\right)

    The stationary distribution is exp(-E), as that of the kernel. Local steps do not cross the regions of low density
    between classes; a jump does, so that the fraction of chains in each class follows the model. It is often accepted
    if the model is close to its reference density, as one with ``Euclidean(shape, reference=ClassGaussians())`` in
    fitted coordinates is. ``reinit_prob`` of the replay buffer can then be 0. In addition to its steps, a cycle costs
    two evaluations of the energy.

    References:
        Tierney, Markov chains for exploring posterior distributions, 1994, sec. 2.3.3 (independence chains).

    Arguments:
        kernel: HMC, MALA or GHMC. Its ``steps`` follow each jump.
        cycles: Cycles per call.

    Raises:
        ValueError: ``cycles`` is below 1, or ``kernel`` has no acceptance step. In use: the reference density has
            infinite mass.
    """

    kernel: HMC = field(default_factory=MALA)
    cycles: int = 1
    steps: int = field(init=False)  # of the kernel in all cycles

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_integer("cycles", self.cycles, at_least=1)
        if not isinstance(self.kernel, HMC):
            raise ValueError(f"'kernel' should be HMC, MALA or GHMC, got {type(self.kernel).__name__}.")
        object.__setattr__(self, "steps", self.cycles * self.kernel.steps)  # the dataclass is frozen

    @property
    def step_size(self) -> float:
        """Step size of the kernel."""
        return self.kernel.step_size

    def transitions(
        self, energy: Energy, x: Tensor, support: Support, generator: torch.Generator | None
    ) -> Iterator[State]:
        for _ in range(self.cycles):
            x = jump(energy, x, support, generator)
            for state in self.kernel.transitions(energy, x, support, generator):
                x = state.x
                yield state

    def scale_step(self, factor: float) -> "ReferenceJumps":
        return replace(self, kernel=self.kernel.scale_step(factor))

    def with_steps(self, steps: int) -> "ReferenceJumps":
        """As many cycles as have ``steps`` steps, rounded up; a shorter cycle if that is fewer than one."""
        if steps < self.kernel.steps:
            return replace(self, kernel=replace(self.kernel, steps=steps), cycles=1)
        return replace(self, cycles=math.ceil(steps / self.kernel.steps))


def jump(energy: Energy, x: Tensor, support: Support, generator: torch.Generator | None) -> Tensor:
    """The chains after one proposal each from the reference density, shape (N, *shape)."""
    proposal = support.sample(len(x), generator=generator, device=x.device).to(x.dtype)
    u = torch.rand(len(x), generator=generator, device=x.device, dtype=torch.float64)
    accepted = u.log() < log_tilt(energy, support, proposal) - log_tilt(energy, support, x)
    return torch.where(accepted.view(-1, *[1] * (x.ndim - 1)), proposal, x)
