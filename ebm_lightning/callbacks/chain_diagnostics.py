"""Chain diagnostics."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from ebm_lightning.callbacks.base import due
from ebm_lightning.chains import ReplayBuffer, ReweightedBuffer
from ebm_lightning.chains.step import ChainStep
from ebm_lightning.checks import check_integer
from ebm_lightning.modules import JEM
from ebm_lightning.supports import Box

WALL = 1e-3  # a component closer to a wall than this fraction of the box's width counts as at the wall


class ChainDiagnostics(L.Callback):
    r"""Logs diagnostics of the chains that moved in the last training step. Problems show here before in the loss.

    - ``chains/energy_gap``: mean E(x_neg) - mean E(x_pos), in nats. It is about 0 where chains follow the model, and
      grows without bound before a run diverges.
    - ``chains/gradient_norm``: mean norm of dE/dx at the chains.
    - ``chains/at_wall``: fraction of components within a thousandth of the box's width of a wall. At 1, the walls and
      not the energy keep the chains in place.
    - ``chains/duplicates``: fraction of the batch's chains that equal another one. It should be 0.
    - ``chains/age_mean``, ``chains/age_max``: sampler calls since a chain of the replay buffer was last reinitialized.
    - ``chains/log_z``: estimate of log Z by the weights of a :class:`~ebm_lightning.ReweightedBuffer`, in nats and
      relative to the reference density.
    - ``chains/acceptance``: acceptance rate of an exact kernel's last step.
    - ``chains/step_size``: step size of the sampler, which an :class:`~ebm_lightning.Adaptation` changes and
      :class:`DivergenceGuard` may reduce.
    - ``chains/repeats``: how often an :class:`~ebm_lightning.Adaptation` ran chains again that were behind.

    All values come from the training step; no energy is evaluated for them.

    Arguments:
        every_n_steps: Optimizer steps between two logs.

    Raises:
        ValueError: ``every_n_steps`` is below 1. At the start of ``fit``: the module has no chains.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        check_integer("every_n_steps", every_n_steps, at_least=1)
        self.every_n_steps = every_n_steps

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, JEM):
            raise ValueError(f"ChainDiagnostics needs a JEM, got {type(pl_module).__name__}. Leave it out.")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if due(trainer.global_step, self.every_n_steps) and pl_module.chain_step is not None:
            for name, value in chain_metrics(pl_module, pl_module.chain_step).items():
                pl_module.log(f"chains/{name}", value)


@torch.no_grad()
def chain_metrics(module: JEM, step: ChainStep) -> dict[str, Tensor | float]:
    """The metrics by name. Those that do not apply to the module are left out."""
    state = step.state
    metrics: dict[str, Tensor | float] = {
        "gradient_norm": state.gradient.flatten(1).norm(dim=1).mean(),
        "duplicates": duplicates(state.x),
    }
    if step.energy_gap is not None:
        metrics["energy_gap"] = step.energy_gap
    if isinstance(module.support, Box):
        metrics["at_wall"] = at_wall(state.x, module.support)
    if state.accepted is not None:
        metrics["acceptance"] = state.accepted.float().mean()
    if module.adapted_sampler.adaptation is not None:
        metrics["repeats"] = float(step.repeats)
    if isinstance(step.chains, ReplayBuffer):
        age = step.chains.age.float()
        metrics |= {"age_mean": age.mean(), "age_max": age.max()}
    if isinstance(step.chains, ReweightedBuffer):
        metrics["log_z"] = step.chains.log_z
    if hasattr(module.sampler, "step_size"):
        metrics["step_size"] = float(module.sampler.step_size)
    return metrics


def at_wall(x: Tensor, box: Box) -> Tensor:
    """Fraction of the components of ``x`` that touch a wall."""
    middle, half = (box.high + box.low) / 2, (box.high - box.low) / 2
    return ((x - middle).abs() > half * (1 - 2 * WALL)).float().mean()


def duplicates(x: Tensor) -> float:
    """Fraction of the rows of ``x`` that equal an earlier row."""
    return 1 - len(torch.unique(x.flatten(1), dim=0)) / len(x)
