"""Learning-rate schedules: how a module's schedule is stepped, and the one of JEM and its successors."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from ebm_lightning.checks import check_integer

CONFIG_KEYS = ("interval", "frequency", "monitor", "strict", "name")
OptimizerCallable = Callable[[Iterable[Any]], torch.optim.Optimizer]
LRSchedulerCallable = Callable[[torch.optim.Optimizer], LRScheduler]


def configure_optimizers(
    parameters: Iterable[nn.Parameter],
    optimizer: OptimizerCallable,
    scheduler: LRSchedulerCallable | None,
    config: Mapping[str, Any],
) -> OptimizerLRScheduler:
    """What Lightning's hook of that name returns: an optimizer of the parameters that are not frozen, and its schedule.

    A callback such as BackboneFinetuning adds the frozen ones later, with another learning rate.

    Arguments:
        parameters: All parameters.
        optimizer: Makes the optimizer.
        scheduler: Makes the schedule from the optimizer.
        config: Lightning's settings of the schedule. By default it is stepped after every optimizer step, and
            ReduceLROnPlateau after every epoch.

    Raises:
        ValueError: All parameters are frozen, or ReduceLROnPlateau has no ``monitor``.
    """
    parameters = list(parameters)
    trainable = [p for p in parameters if p.requires_grad]
    if parameters and not trainable:
        raise ValueError("'classifier' should have parameters that are not frozen, got none. Unfreeze its last layer.")
    made = optimizer(trainable)
    if scheduler is None:
        return made
    schedule = scheduler(made)
    settings = {"interval": "step"} | dict(config)
    if isinstance(schedule, ReduceLROnPlateau):
        own = getattr(schedule, "monitor", None)  # that of lightning.pytorch.cli.ReduceLROnPlateau
        settings = {"interval": "epoch"} | ({} if own is None else {"monitor": own}) | dict(config)
        if settings.get("monitor") is None:
            raise ValueError(
                "'lr_scheduler_config' should name what ReduceLROnPlateau monitors, got no 'monitor'. Pass "
                "lr_scheduler_config={'monitor': 'val/nll'}, or 'train/loss' without validation."
            )
    return {"optimizer": made, "lr_scheduler": cast(LRSchedulerConfigType, {"scheduler": schedule} | settings)}


def schedule_and_config(scheduler: Any, config: Mapping[str, Any] | None) -> tuple[Any, dict[str, Any]]:
    """What makes the schedule, and Lightning's settings of it.

    Both may also come in one dictionary, as Lightning has it: ``{"scheduler": ..., "interval": "epoch"}``.

    Raises:
        ValueError: As for :func:`check_schedule_config`.
    """
    if isinstance(scheduler, Mapping) and "scheduler" in scheduler:
        config = {key: value for key, value in scheduler.items() if key != "scheduler"} | dict(config or {})
        scheduler = scheduler["scheduler"]
    return scheduler, check_schedule_config(config)


def check_schedule_config(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """``config`` as a dictionary, checked to hold settings that Lightning has for a schedule.

    Raises:
        ValueError: A key is unknown, the interval is neither "step" nor "epoch", or the frequency is below 1.
    """
    if not isinstance(config, Mapping | None):
        raise ValueError(
            f"'lr_scheduler_config' should be a dictionary, got {config!r}. Pass {{'interval': 'epoch'}}, say."
        )
    config = dict(config or {})
    unknown = [key for key in config if key not in CONFIG_KEYS]
    if unknown:
        raise ValueError(
            f"'lr_scheduler_config' should have keys among {', '.join(CONFIG_KEYS)}, got {unknown[0]!r}. What makes "
            "the schedule goes to 'lr_scheduler'."
        )
    if config.get("interval", "step") not in ("step", "epoch"):
        raise ValueError(
            f"'lr_scheduler_config' should have the interval 'step' or 'epoch', got {config['interval']!r}."
        )
    check_integer("frequency", config.get("frequency", 1), at_least=1)
    return config


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


def warmup_and_decay(step: int, total: float, warmup: float = 0.05) -> float:
    """The factor of the learning rate at ``step``: up in the first ``warmup`` of ``total`` steps, then linearly to 0.

    Without an end, ``total`` is infinite and the factor is 1.
    """
    if not math.isfinite(total):
        return 1.0
    return min((step + 1) / max(1.0, warmup * total), max(0.0, 1 - step / total))
