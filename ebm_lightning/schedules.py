"""The learning-rate schedule of the JEM lineage, in one class that a config can name."""

from collections.abc import Sequence

import torch
from torch.optim.lr_scheduler import LambdaLR


class WarmupMultiStep(LambdaLR):
    r"""A linear warm-up, and then a decay by a factor at each milestone.

    .. math:: \eta_t = \eta \cdot \min(1, (t + 1) / W) \cdot \gamma^{|\{m : m \le t\}|}

    It is stepped after every optimiser step, as the modules of this library do. JEM warms up for 1000 steps and decays
    by 0.3 after 160 and 180 epochs; its first step there has a rate of 0, here 1 / W of the full one.

    References:
        Grathwohl et al. 2020, app. A. https://arxiv.org/abs/1912.03263

    Arguments:
        optimizer: Whose rates are multiplied.
        milestones: Steps, rising, at which the rate falls.
        gamma: By how much.
        warmup_steps: W; 0 for none.

    Raises:
        ValueError: ``milestones`` do not rise, or ``warmup_steps`` is negative.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, milestones: Sequence[int], gamma: float = 0.3, warmup_steps: int = 1000
    ) -> None:
        if list(milestones) != sorted(set(milestones)):
            raise ValueError(f"'milestones' should rise, got {list(milestones)}.")
        if warmup_steps < 0:
            raise ValueError(f"'warmup_steps' should be 0 or positive, got {warmup_steps}.")
        self.milestones = list(milestones)
        self.gamma = gamma
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, self._factor)

    def _factor(self, step: int) -> float:
        warmth = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warmth * self.gamma ** sum(milestone <= step for milestone in self.milestones)
