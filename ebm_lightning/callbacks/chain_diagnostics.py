"""Figures that say how the chains of a training run fare, before the loss does."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from ebm_lightning.chains import ReplayBuffer
from ebm_lightning.modules import JEM
from ebm_lightning.samplers import State
from ebm_lightning.supports import Box

WALL = 1e-3  # of the box's width: nearer than that is at the wall


class ChainDiagnostics(L.Callback):
    r"""Logs, every few steps, figures of the chains that moved last.

    - ``chains/energy_gap``: mean E(x_neg) - mean E(x_pos), about 0 where chains follow the model; it grows without
      bound before a run diverges.
    - ``chains/gradient_norm``: mean norm of dE/dx at the chains.
    - ``chains/at_wall``: share of components within a thousandth of the box's width of its walls; 1 means that the
      walls, not the energy, hold the chains.
    - ``chains/duplicates``: share of the batch's chains that are copies of another: 0, or something is wrong.
    - ``chains/age_mean``, ``chains/age_max``: calls of the sampler since a buffer's chains last started anew.
    - ``chains/acceptance``: of an exact kernel's last move.
    - ``chains/step_size``: of the sampler, which a :class:`DivergenceGuard` may shorten.

    It reads what the step left behind and evaluates no energy.

    Arguments:
        every_n_steps: Optimiser steps between two readings.

    Raises:
        ValueError: ``every_n_steps`` below 1; at the start of ``fit``, a module without chains.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"'every_n_steps' should be at least 1, got {every_n_steps}.")
        self.every_n_steps = every_n_steps

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, JEM):
            raise ValueError(f"ChainDiagnostics needs a JEM, got {type(pl_module).__name__}. Leave it out.")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.every_n_steps == 0 and pl_module.last_move is not None:
            for name, value in figures(pl_module, pl_module.last_move).items():
                pl_module.log(f"chains/{name}", value)


@torch.no_grad()
def figures(module: JEM, move: State) -> dict[str, Tensor | float]:
    """The figures by name; those that do not apply are left out."""
    result: dict[str, Tensor | float] = {
        "gradient_norm": move.gradient.flatten(1).norm(dim=1).mean(),
        "duplicates": duplicates(move.x),
    }
    if module.last_energies is not None:
        result["energy_gap"] = module.last_energies[1] - module.last_energies[0]
    if isinstance(module.support, Box):
        result["at_wall"] = at_wall(move.x, module.support)
    if move.accepted is not None:
        result["acceptance"] = move.accepted.float().mean()
    if isinstance(module.chains, ReplayBuffer) and (module.generative_weight or module.joint_weight):
        age = module.chains.age.float()
        result |= {"age_mean": age.mean(), "age_max": age.max()}
    if hasattr(module.sampler, "step_size"):
        result["step_size"] = float(module.sampler.step_size)
    return result


def at_wall(x: Tensor, box: Box) -> Tensor:
    """Share of components of ``x`` that touch a wall."""
    middle, half = (box.high + box.low) / 2, (box.high - box.low) / 2
    return ((x - middle).abs() > half * (1 - 2 * WALL)).float().mean()


def duplicates(x: Tensor) -> float:
    """Share of rows of ``x`` that equal an earlier one."""
    return 1 - len(torch.unique(x.flatten(1), dim=0)) / len(x)
