"""Base class of modules that resume exactly: their checkpoints hold the chains and random states of every rank."""

import inspect
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.data import AttributeDict
from torch import nn

from ebm_lightning.chains import Chains
from ebm_lightning.resume.checkpoint_io import match_keys
from ebm_lightning.resume.hparams import constructor_arguments, describe, for_loggers
from ebm_lightning.resume.interrupts import GracefulInterrupt
from ebm_lightning.resume.lightning_internals import callbacks
from ebm_lightning.resume.loop_counters import correct_loop_counters
from ebm_lightning.resume.rank_state import (
    RankState,
    gather_rank_states,
    load_random_state,
    load_rank_states,
)


class ResumableModule(L.LightningModule):
    """A LightningModule whose runs resume exactly, and whose hyperparameters load with ``weights_only=True``.

    A subclass that runs chains returns them from :meth:`running_chains`, draws from ``self.generator``, and creates
    both in :meth:`start_chains`, which it calls in its ``on_fit_start`` before that of this class.

    Attributes:
        generator: Source of randomness of this rank's chains; None before training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.generator: torch.Generator | None = None
        self._saved_ranks: list[RankState] | None = None

    def running_chains(self) -> dict[str, Chains]:
        """The chains that the loss needs, by the names of their attributes. Empty by default."""
        return {}

    def start_chains(self) -> None:
        """Create ``self.generator`` and set up the chains. Does nothing by default."""

    def derived_hyperparameters(self) -> dict[str, Any]:
        """Values that follow from the constructor's arguments. Loggers show them; checkpoints do not contain them."""
        return {}

    # Lightning's hooks.

    def configure_callbacks(self) -> list[L.Callback]:
        present = any(isinstance(c, GracefulInterrupt) for c in callbacks(self.trainer))
        return [] if present else [GracefulInterrupt()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ranks"] = gather_rank_states(self.trainer, self.running_chains(), self.generator, self.device)
        correct_loop_counters(checkpoint, self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name in {"state_dict", "current_model_state"} & checkpoint.keys():
            checkpoint[name] = match_keys(checkpoint[name], self)
        self._saved_ranks = checkpoint.get("ranks")

    def on_fit_start(self) -> None:
        if self._saved_ranks:
            load_rank_states(self._saved_ranks, self.trainer, self.running_chains(), self.generator)
            self._load_random_state()  # data loaders are created next, and may be seeded from the global state

    def on_train_start(self) -> None:
        if self._saved_ranks:
            self._load_random_state()  # once more, because creating the loaders has drawn numbers
        self._saved_ranks = None

    def _load_random_state(self) -> None:
        # After load_from_checkpoint, a new run starts from saved weights and chains but not from saved random states.
        if self._saved_ranks and self.trainer.ckpt_path:
            load_random_state(self._saved_ranks, self.trainer, self.device)

    # Hyperparameters.

    def save_hyperparameters(
        self, *args: Any, ignore: Any = None, frame: FrameType | None = None, logger: bool = True
    ) -> None:
        """As for LightningModule, but samplers, supports and networks are stored as plain values.

        ``self.hparams``, which ``load_from_checkpoint`` passes to the constructor, holds the arguments of the outermost
        constructor only. Loggers also get those that it passed on to its base classes.
        """
        here = inspect.currentframe()
        frame = frame or (here.f_back if here else None)
        passed_on, given = constructor_arguments(frame)
        modules = [name for name, value in (passed_on | given).items() if isinstance(value, nn.Module)]
        ignore = [ignore] if isinstance(ignore, str) else list(ignore or [])
        # Modules are left out because Lightning would copy them; their descriptions are added below.
        super().save_hyperparameters(*args, ignore=[*ignore, *modules], frame=frame, logger=logger)
        if "_instantiator" in self.hparams:  # under LightningCLI: its config, which holds plain values only
            super().save_hyperparameters(*args, ignore=ignore, frame=frame, logger=logger)
            return
        described = {name: (passed_on | given)[name] for name in modules if name not in ignore and not args}
        described = {name: describe(value) for name, value in (dict(self.hparams) | described).items()}
        inner = (passed_on.keys() - given.keys()) & described.keys()
        self._passed_on = getattr(self, "_passed_on", {}) | {name: described.pop(name) for name in inner}
        self.hparams.clear()
        self.hparams.update(described)

    @property
    def hparams_initial(self) -> AttributeDict:
        """What loggers show: the constructor's arguments and :meth:`derived_hyperparameters`."""
        shown = getattr(self, "_passed_on", {}) | dict(self.hparams) | self.derived_hyperparameters()
        return AttributeDict({name: for_loggers(value) for name, value in shown.items() if not name.startswith("_")})
