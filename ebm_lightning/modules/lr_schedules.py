"""The learning-rate schedule of JEM and its successors, as one class that a config can name."""

from collections.abc import Sequence

import torch
from torch.optim.lr_scheduler import LambdaLR

from ebm_lightning.checks import check_integer


class WarmupMultiStep(LambdaLR):
    r"""A linear warm-up, then a decay by a constant factor at each milestone.

    .. math:: \eta_t = \eta \cdot \min(1, (t + 1) / W) \cdot \gamma^{|\{m : m \le t\}|}

    Step it after every optimizer step, as this library's modules do. JEM warms up for 1000 steps and decays by 0.3
    after 160 and 180 epochs. Its first step has a learning rate of 0; here it is 1 / W of the full rate.

    References:
        Grathwohl et al. 2020, app. A. https://arxiv.org/abs/1912.03263

    Arguments:
        optimizer: Optimizer whose learning rates are scaled.
        milestones: Steps at which the rate decays, in increasing order.
        gamma: Factor of each decay.
        warmup_steps: W; 0 for no warm-up.

    Raises:
        ValueError: ``milestones`` do not increase, or ``warmup_steps`` is negative.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, milestones: Sequence[int], gamma: float = 0.3, warmup_steps: int = 1000
    ) -> None:
        if list(milestones) != sorted(set(milestones)):
            raise ValueError(f"'milestones' should increase, got {list(milestones)}.")
        check_integer("warmup_steps", warmup_steps, at_least=0)
        self.milestones = list(milestones)
        self.gamma = gamma
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, self._factor)

    def _factor(self, step: int) -> float:
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warmup * self.gamma ** sum(milestone <= step for milestone in self.milestones)
