"""Roll back a diverging run to the last good snapshot."""

import copy
import math
import statistics
from collections import deque
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from ebm_lightning.callbacks.warn import warn
from ebm_lightning.checks import check_integer, check_number
from ebm_lightning.modules import JEM, ConditionalEBM


class Snapshot(NamedTuple):
    """State of a run on this rank, taken after a good step."""

    step: int
    module: dict[str, Tensor]
    optimizers: list[dict[str, Any]]
    schedulers: list[dict[str, Any]]
    chains: dict[str, dict[str, Any]]


class DivergenceGuard(L.Callback):
    r"""Checks every step before the weights are updated, and rolls the run back if it diverges.

    A step is bad if

    - its loss or a gradient is not finite,
    - the energy gap \|E(x_neg) - E(x_pos)\| exceeds ``max_energy_gap``, or
    - the gap, the norm of the parameters' gradient or the norm of the chains' gradient is more than ``tolerance``
      robust standard deviations away from its median over the last good steps. A robust standard deviation is 1.4826
      times the median absolute deviation; norms are compared on a log scale.

    The weights are not updated with a bad step. Instead, model, optimizer, scheduler and chains are restored from a
    snapshot, the chains that moved last are reinitialized, and the sampler is reseeded. Unless ``backoff`` is 1, its
    step size is also reduced; the temperature does not change. If the next steps are bad too, an older snapshot is
    restored. Every rollback is a warning and is logged as ``guard/rollbacks``. With several processes, a bad step on
    one rank rolls back all of them.

    A gap that stays wide means that the chains cannot follow the energy. At temperature 1, this happens where the
    energy is sharper than the sampler's step can resolve. A smaller step fixes that, another seed does not.

    Arguments:
        every_n_steps: Steps between two snapshots. A rollback loses up to twice as many.
        max_rollbacks: Number of rollbacks after which the run stops with an error.
        backoff: Factor of the sampler's step size at each rollback, in (0, 1].
        max_energy_gap: Largest energy gap in nats; by default the number of dimensions of x.
        tolerance: Width of the running bounds, in robust standard deviations.
        window: Number of good steps from which the bounds are computed; the first steps have none.

    Raises:
        ValueError: A number is out of range. At the start of ``fit``: the module is not a ConditionalEBM.
        RuntimeError: More than ``max_rollbacks`` rollbacks.
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
        check_integer("every_n_steps", every_n_steps, at_least=1)
        check_integer("max_rollbacks", max_rollbacks, at_least=1)
        check_integer("window", window, at_least=1)
        check_number("backoff", backoff, above=0, at_most=1, remedy="1 keeps the sampler's step size.")
        check_number("max_energy_gap", max_energy_gap, above=0, optional=True)
        check_number("tolerance", tolerance, above=0)
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
        self._resumed = False

    # Lightning's hooks.

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, ConditionalEBM):
            raise ValueError(f"DivergenceGuard needs a ConditionalEBM or JEM, got {type(pl_module).__name__}.")
        pl_module.halts_on_divergence = False

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._snapshots.clear()
        self._snapshots.append(snapshot(trainer, pl_module))
        if self._resumed and isinstance(pl_module, JEM):  # built with the sampler's original step size
            pl_module.adapted_sampler.scale_step(self.backoff**self.rollbacks)
        self._resumed = False

    def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: Tensor) -> None:
        self._loss = loss.detach()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        cause = self._cause(pl_module)
        if trainer.strategy.reduce_boolean_decision(cause is not None, all=False):
            self._roll_back(trainer, pl_module, cause or "a bad step on another rank")

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
        self._resumed = True
        for name, values in state_dict["seen"].items():
            self._seen[name].extend(values)

    # Detection of a bad step.

    def _cause(self, module: ConditionalEBM) -> str | None:
        """Why the step is bad. None for a good step, which is then added to the running bounds."""
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
        """All monitored values, by one transfer from the device."""
        parts = {"gradient norm": gradient_norm(module)}
        if self._loss is not None:
            parts["loss"] = self._loss
        step = module.chain_step if isinstance(module, JEM) else None
        if step is not None and step.energy_gap is not None:
            parts["energy gap"] = step.energy_gap
            parts["chain gradient norm"] = step.state.gradient.flatten(1).norm(dim=1).mean()
        numbers = torch.stack([part.float() for part in parts.values()]).tolist()
        return dict(zip(parts, numbers, strict=True))

    def _limit(self, module: ConditionalEBM) -> float:
        if self.max_energy_gap is not None:
            return self.max_energy_gap
        return math.inf if module.support.shape is None else float(math.prod(module.support.shape))

    # Rollback.

    def _roll_back(self, trainer: L.Trainer, module: ConditionalEBM, cause: str) -> None:
        step = trainer.global_step
        self.rollbacks += 1
        if self.rollbacks > self.max_rollbacks:
            raise RuntimeError(
                f"Training diverged again at step {step} ({cause}), after {self.max_rollbacks} rollbacks. The weights "
                "were not updated with that step. Raise the sampler's temperature or 'data_noise', set 'energy_l2' to "
                "0.1, lower the learning rate, or raise 'max_rollbacks'."
            )
        if len(self._snapshots) > 1:
            self._snapshots.pop()  # probably taken when the run was already diverging
        good = self._snapshots[-1]
        restore(good, trainer, module)
        if isinstance(module, JEM):
            module.restart_chains(self.rollbacks, self.backoff)
        warn(
            f"Training diverged at step {step}: {cause}. Rolled back to the state of step {good.step} (rollback "
            f"{self.rollbacks} of at most {self.max_rollbacks} of this {type(module).__name__}). If it happens again, "
            "lower the learning rate or raise 'data_noise' or 'energy_l2'."
        )
        self._snapshots[-1] = good._replace(step=step)  # the next snapshot is a full interval from here
        for logger in trainer.loggers:
            logger.log_metrics({"guard/rollbacks": float(self.rollbacks)}, step=step)


def snapshot(trainer: L.Trainer, module: ConditionalEBM) -> Snapshot:
    """A copy of everything that a rollback restores, on the same devices."""
    return Snapshot(
        trainer.global_step,
        {name: value.detach().clone() for name, value in module.state_dict().items()},
        [copy.deepcopy(optimizer.state_dict()) for optimizer in trainer.optimizers],
        [copy.deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
        {name: chains.state_dict() for name, chains in module.running_chains().items()},
    )


def restore(good: Snapshot, trainer: L.Trainer, module: ConditionalEBM) -> None:
    """Restore the run from ``good``. Gradients are set to None, so the optimizer step that follows changes nothing."""
    module.load_state_dict(good.module)
    for optimizer, state in zip(trainer.optimizers, good.optimizers, strict=True):
        optimizer.load_state_dict(copy.deepcopy(state))
        optimizer.zero_grad(set_to_none=True)
    for config, state in zip(trainer.lr_scheduler_configs, good.schedulers, strict=True):
        config.scheduler.load_state_dict(copy.deepcopy(state))
    for name, chains in module.running_chains().items():
        chains.load_state_dict(copy.deepcopy(good.chains[name]))


def gradient_norm(module: L.LightningModule) -> Tensor:
    """Norm of all gradients as one vector; 0 if there are none."""
    return get_total_norm([p.grad.detach() for p in module.parameters() if p.grad is not None]).to(module.device)


def within(value: float, seen: deque[float], tolerance: float, log: bool) -> bool:
    """Whether ``value`` is within the bounds around the median of ``seen``; True until ``seen`` is full."""
    if len(seen) < (seen.maxlen or 1):
        return True
    values = [math.log(v + 1e-12) for v in seen] if log else list(seen)
    median = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(v - median) for v in values)
    floor = 0.1 if log else 0.1 * abs(median) + 0.01
    return abs((math.log(value + 1e-12) if log else value) - median) <= tolerance * max(spread, floor)
