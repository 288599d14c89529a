"""A guard that takes a diverging run back to where it was sound, and goes on from there another way."""

import copy
import math
import statistics
from collections import deque
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ebm_lightning.modules import JEM, ConditionalEBM


class Snapshot(NamedTuple):
    """A sound state of a run on this rank."""

    step: int
    module: dict[str, Tensor]
    optimizers: list[dict[str, Any]]
    schedulers: list[dict[str, Any]]
    chains: dict[str, dict[str, Any]]


class DivergenceGuard(L.Callback):
    r"""Watches every step before its update, and rolls back a run that diverges.

    A step is bad if its loss or a gradient is not finite, if the energy gap \|E(x_neg) - E(x_pos)\| exceeds
    ``max_energy_gap``, or if the gap, the norm of the parameters' gradient or that of the chains' gradient leaves the
    running bounds, ``tolerance`` robust standard deviations (1.4826 times the median absolute deviation; norms on a
    log scale) around the median of the last sound steps. The weights are then not updated with it. Model, optimiser,
    scheduler and chains go back to a snapshot, the chains that moved last start anew, the sampler gets fresh random
    numbers and, unless ``backoff`` is 1, a shorter step at the same temperature. Where the next steps are bad too, an
    older snapshot is taken. Every event is a warning and is logged as ``guard/rollbacks``. On several processes, one
    bad rank takes all back together.

    A gap that stays wide means that the chains cannot follow the energy. At temperature 1 an energy that is sharper
    than the sampler's step lets none follow it: a shorter step mends that, another seed would not.

    Arguments:
        every_n_steps: Steps between two snapshots; up to twice as many are lost to a rollback.
        max_rollbacks: Events after which the run ends with an error.
        backoff: Multiplies the sampler's step at each rollback.
        max_energy_gap: In nats; by default the number of dimensions of x.
        tolerance: Width of the running bounds, in robust standard deviations.
        window: Sound steps that the bounds rest on; there are none before.

    Raises:
        ValueError: A number outside its range; at the start of ``fit``, a module that is no ConditionalEBM.
        RuntimeError: More than ``max_rollbacks`` events.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        max_rollbacks: int = 10,
        backoff: float = 0.5,
        max_energy_gap: float | None = None,
        tolerance: float = 30.0,
        window: int = 200,
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("max_rollbacks", max_rollbacks), ("window", window)):
            if value < 1:
                raise ValueError(f"'{name}' should be at least 1, got {value}.")
        if not 0 < backoff <= 1:
            raise ValueError(f"'backoff' should be in (0, 1], got {backoff}. 1 leaves the sampler's step alone.")
        if not tolerance > 0:
            raise ValueError(f"'tolerance' should be positive, got {tolerance}.")
        self.every_n_steps = every_n_steps
        self.max_rollbacks = max_rollbacks
        self.backoff = backoff
        self.max_energy_gap = max_energy_gap
        self.tolerance = tolerance
        self.rollbacks = 0
        self._seen: dict[str, deque[float]] = {
            name: deque(maxlen=window) for name in ("energy gap", "gradient norm", "chain gradient norm")
        }
        self._snapshots: deque[Snapshot] = deque(maxlen=3)
        self._loss: Tensor | None = None

    # Lightning's hooks.

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, ConditionalEBM):
            raise ValueError(f"DivergenceGuard needs a ConditionalEBM or JEM, got {type(pl_module).__name__}.")
        pl_module.halts_on_divergence = False

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._snapshots.clear()
        self._snapshots.append(snapshot(trainer, pl_module))
        if self.rollbacks and isinstance(pl_module, JEM):  # resumed: the checkpoint holds the sampler's first step
            pl_module.sampler = pl_module.sampler.shortened(self.backoff**self.rollbacks)

    def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: Tensor) -> None:
        self._loss = loss.detach()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        cause = self._cause(pl_module)
        if trainer.strategy.reduce_boolean_decision(cause is not None, all=False):
            self._roll_back(trainer, pl_module, cause or "a bad step on another process")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step - self._snapshots[-1].step >= self.every_n_steps:
            self._snapshots.append(snapshot(trainer, pl_module))

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            pl_module.halts_on_divergence = True

    def state_dict(self) -> dict[str, Any]:
        return {"rollbacks": self.rollbacks, "seen": {name: list(values) for name, values in self._seen.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rollbacks = state_dict["rollbacks"]
        for name, values in state_dict["seen"].items():
            self._seen[name].extend(values)

    # What a bad step is.

    def _cause(self, module: ConditionalEBM) -> str | None:
        """Why the step is bad, in words; None for a sound one, which then moves the bounds."""
        values = self._values(module)
        for name, value in values.items():
            if not math.isfinite(value):
                return f"the {name} is {value}"
        gap, limit = abs(values.get("energy gap", 0.0)), self._limit(module)
        if gap > limit:
            return f"the energy gap is {gap:.4g} nats, over {limit:.4g}"
        for name, seen in self._seen.items():
            if name in values and not within(values[name], seen, self.tolerance, log=name != "energy gap"):
                return f"the {name} is {values[name]:.4g}, far from its median {statistics.median(seen):.4g}"
        for name, seen in self._seen.items():
            if name in values:
                seen.append(values[name])
        return None

    def _values(self, module: ConditionalEBM) -> dict[str, float]:
        """All that is watched, with one transfer from the device."""
        parts = {"gradient norm": gradient_norm(module)}
        if self._loss is not None:
            parts["loss"] = self._loss
        if isinstance(module, JEM) and module.last_energies is not None and module.last_move is not None:
            parts["energy gap"] = module.last_energies[1] - module.last_energies[0]
            parts["chain gradient norm"] = module.last_move.gradient.flatten(1).norm(dim=1).mean()
        numbers = torch.stack([part.float() for part in parts.values()]).tolist()
        return dict(zip(parts, numbers, strict=True))

    def _limit(self, module: ConditionalEBM) -> float:
        if self.max_energy_gap is not None:
            return self.max_energy_gap
        return math.inf if module.support.shape is None else float(math.prod(module.support.shape))

    # What follows from one.

    def _roll_back(self, trainer: L.Trainer, module: ConditionalEBM, cause: str) -> None:
        step = trainer.global_step
        self.rollbacks += 1
        if self.rollbacks > self.max_rollbacks:
            raise RuntimeError(
                f"Training diverged again at step {step} ({cause}), after {self.max_rollbacks} rollbacks. Nothing was "
                "updated with that step. Raise the sampler's temperature or 'data_noise', set 'energy_l2' to 0.1, "
                "lower the learning rate, or raise 'max_rollbacks'."
            )
        if len(self._snapshots) > 1:
            self._snapshots.pop()  # taken while the run was on its way to the bad step
        good = self._snapshots[-1]
        restore(good, trainer, module)
        if isinstance(module, JEM):
            module.restart_chains(self.rollbacks, self.backoff)
        rank_zero_warn(
            f"Training diverged at step {step}: {cause}. Rolled back to the state of step {good.step} "
            f"(rollback {self.rollbacks} of at most {self.max_rollbacks})."
        )
        self._snapshots[-1] = good._replace(step=step)  # the next one is due a full interval from here
        for logger in trainer.loggers:
            logger.log_metrics({"guard/rollbacks": float(self.rollbacks)}, step=step)


def snapshot(trainer: L.Trainer, module: ConditionalEBM) -> Snapshot:
    """A copy of all that a rollback needs, on the devices where it is."""
    return Snapshot(
        trainer.global_step,
        {name: value.detach().clone() for name, value in module.state_dict().items()},
        [copy.deepcopy(optimizer.state_dict()) for optimizer in trainer.optimizers],
        [copy.deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
        {name: chains.state_dict() for name, chains in module.running_chains().items()},
    )


def restore(good: Snapshot, trainer: L.Trainer, module: ConditionalEBM) -> None:
    """Put the run back; without gradients, the optimiser's step that is due moves nothing."""
    module.load_state_dict(good.module)
    for optimizer, state in zip(trainer.optimizers, good.optimizers, strict=True):
        optimizer.load_state_dict(copy.deepcopy(state))
        optimizer.zero_grad(set_to_none=True)
    for config, state in zip(trainer.lr_scheduler_configs, good.schedulers, strict=True):
        config.scheduler.load_state_dict(copy.deepcopy(state))
    for name, chains in module.running_chains().items():
        chains.load_state_dict(copy.deepcopy(good.chains[name]))


def gradient_norm(module: L.LightningModule) -> Tensor:
    """Norm of all gradients together; 0 without any."""
    norms = [p.grad.detach().norm() for p in module.parameters() if p.grad is not None]
    return torch.stack(norms).norm() if norms else torch.zeros((), device=module.device)


def within(value: float, seen: deque[float], tolerance: float, log: bool) -> bool:
    """Whether ``value`` is near the median of ``seen``; True while too few are."""
    if len(seen) < (seen.maxlen or 1):
        return True
    values = [math.log(v + 1e-12) for v in seen] if log else list(seen)
    median = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(v - median) for v in values)
    floor = 0.1 if log else 0.1 * abs(median) + 0.01
    return abs((math.log(value + 1e-12) if log else value) - median) <= tolerance * max(spread, floor)
