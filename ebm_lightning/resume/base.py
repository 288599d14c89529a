"""Base class of modules that resume exactly: their checkpoints hold the chains and random states of every rank."""

import argparse
import inspect
from collections.abc import Mapping
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.data import AttributeDict
from torch import nn

from ebm_lightning.chains import Chains
from ebm_lightning.resume.argument_tensors import put_back, take_out
from ebm_lightning.resume.checkpoint_io import match_keys
from ebm_lightning.resume.hparams import constructor_arguments, describe, for_loggers
from ebm_lightning.resume.interrupts import GracefulInterrupt
from ebm_lightning.resume.lightning_internals import (
    attached_trainer,
    callbacks,
    ends_with_its_process,
    restricted_classmethod,
)
from ebm_lightning.resume.loop_counters import correct_loop_counters
from ebm_lightning.resume.rank_state import (
    RankState,
    gather_rank_states,
    load_random_state,
    load_rank_states,
    show_chains,
)
from ebm_lightning.resume.run_settings import run_settings


class ResumableModule(L.LightningModule):
    """A LightningModule whose runs resume exactly, and whose hyperparameters load with ``weights_only=True``.

    A subclass that runs chains returns them from :meth:`running_chains`, draws from ``self.generator``, and creates
    both in :meth:`start_chains`. :meth:`prepare_fit` calls it before training; then chains of a checkpoint replace the
    new ones. Until then a module that was loaded holds the chains of its checkpoint, for reading.

    Attributes:
        generator: Source of randomness of this rank's chains; None before training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.generator: torch.Generator | None = None
        self._saved_ranks: list[RankState] | None = None  # of a checkpoint, until training starts
        self._continued = False  # whether the chains of the checkpoint were taken up
        self._carried_ranks: list[RankState] | None = None  # from a process that ends with 'fit' to its parent

    def running_chains(self) -> dict[str, Chains]:
        """The chains that the loss needs, by the names of their attributes. Empty by default."""
        return {}

    def place_chains(self) -> None:
        """Tell the chains their domain and classes, before chains of a checkpoint are put in. Nothing by default."""

    def start_chains(self) -> None:
        """Create ``self.generator`` and set up the chains. Does nothing by default."""

    def prepare_fit(self) -> None:
        """Create what training needs, unless it exists. Training may start in a callback, so two hooks call it."""
        if self.generator is None:
            self.start_chains()

    def derived_hyperparameters(self) -> dict[str, Any]:
        """Values that follow from the constructor's arguments. Loggers show them; checkpoints do not contain them."""
        return {}

    @restricted_classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As for LightningModule. The module has the chains of the checkpoint.

        Raises:
            ValueError: An argument, such as a network from elsewhere, cannot be built from its description.
        """
        try:
            tensors = put_back(checkpoint_path, kwargs.get("weights_only"))
            return super().load_from_checkpoint(checkpoint_path, *args, **tensors | kwargs)
        except argparse.ArgumentError as error:  # of a checkpoint that a LightningCLI wrote
            raise ValueError(
                f"'{checkpoint_path}' holds a configuration that cannot be built here. Import what it names, or pass "
                f"it, as in 'load_from_checkpoint(path, classifier=...)'. {error}"
            ) from error

    # Lightning's hooks.

    def configure_callbacks(self) -> list[L.Callback]:
        present = any(isinstance(c, GracefulInterrupt) for c in callbacks(self.trainer))
        return [] if present else [GracefulInterrupt()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        take_out(checkpoint)
        if "optimizer_states" in checkpoint:  # not if weights alone are saved
            checkpoint["ranks"] = self._saved_ranks or self._rank_states()
        if attached_trainer(self) is not None:
            correct_loop_counters(checkpoint, self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name in {"state_dict", "current_model_state"} & checkpoint.keys():
            checkpoint[name] = match_keys(checkpoint[name], self)
        self._adopt(checkpoint.get("ranks"))

    def on_fit_start(self) -> None:
        self._begin()
        self._load_random_state()  # data loaders are created next, and may be seeded from the global state

    def on_train_start(self) -> None:
        self._begin()  # again, because callbacks that search for a learning rate train before 'on_fit_start'
        self._load_random_state()  # once more, because creating the loaders has drawn numbers
        self._saved_ranks = None

    def on_fit_end(self) -> None:
        if ends_with_its_process(self.trainer):
            self._carried_ranks = self._rank_states()

    # PyTorch declares overloads, which would have to be repeated here.
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """As for LightningModule. At the end of ``ddp_spawn`` and ``ddp_fork`` it also takes chains to the parent."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        return state if self._carried_ranks is None else state | {"ranks": self._carried_ranks}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        if "ranks" in state_dict:
            self._adopt(state_dict["ranks"])
            state_dict = {name: value for name, value in state_dict.items() if name != "ranks"}
        return super().load_state_dict(state_dict, *args, **kwargs)

    def _begin(self) -> None:
        """Make the chains, and continue those of a checkpoint. Does nothing the second time."""
        self.prepare_fit()
        if self._saved_ranks and not self._continued:
            load_rank_states(self._saved_ranks, self.trainer, self.running_chains(), self.generator)
        self._continued = True

    def _rank_states(self) -> list[RankState]:
        trainer = attached_trainer(self)  # which moves the module back to the CPU after a run
        device = self.device if trainer is None else trainer.strategy.root_device
        return gather_rank_states(trainer, self.running_chains(), self.generator, device)

    def _adopt(self, ranks: list[RankState] | None) -> None:
        """Hold what a checkpoint has of each rank. One from before training resets the chains."""
        self._saved_ranks, self._continued = ranks, False
        if ranks:
            self.place_chains()
            show_chains(ranks, attached_trainer(self), self.running_chains())
            self.generator = None if ranks[0]["generator"] is None else self.generator

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
        """What loggers show: the constructor's arguments, :meth:`derived_hyperparameters`, and the run's settings."""
        shown = getattr(self, "_passed_on", {}) | dict(self.hparams) | self.derived_hyperparameters()
        trainer = attached_trainer(self)
        settings = {} if trainer is None else run_settings(trainer)
        if shown.get("seed") is None and "seed" in settings:
            shown.pop("seed", None)  # by default it is that of the run
        shown = settings | shown
        return AttributeDict({name: for_loggers(value) for name, value in shown.items() if not name.startswith("_")})
