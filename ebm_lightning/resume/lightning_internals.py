"""Every attribute of Lightning that is private, or that type checkers do not see, each behind a function.

``tests/resume/test_lightning_privates.py`` checks that the installed Lightning still has them.
"""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod

restricted_classmethod = _restricted_classmethod


def train_dataloader(trainer: L.Trainer) -> Any:
    """What ``fit`` received for training: the loader itself, or a new one from the data module or the module."""
    return trainer.fit_loop._data_source.dataloader()


def attached_trainer(module: L.LightningModule) -> L.Trainer | None:
    """The trainer that a module is attached to; None before the first run."""
    return module._trainer


def data_source(trainer: L.Trainer) -> Any:
    """What the running 'fit', 'validate' or 'test' loads: a data module, a module, or loaders; None if none runs."""
    sources = {
        "fit": trainer.fit_loop._data_source,
        "validate": trainer.validate_loop._data_source,
        "test": trainer.test_loop._data_source,
    }
    source = sources.get(trainer.state.fn or "")
    return None if source is None else source.instance


def in_epoch(trainer: L.Trainer) -> bool:
    """Whether a training epoch has started and its loaders are set up."""
    return trainer.fit_loop._data_fetcher is not None


def validation_is_due(trainer: L.Trainer) -> bool:
    """Whether Lightning validates after the current training batch."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.enable_validation and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def callbacks(trainer: L.Trainer) -> list[L.Callback]:
    """The trainer's callbacks. A connector sets this public attribute in a way that type checkers do not see."""
    found: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return found


def ends_with_its_process(trainer: L.Trainer) -> bool:
    """Whether this process was started for ``fit`` and ends with it, as under ``ddp_spawn`` and ``ddp_fork``."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def averaged_modules(trainer: L.Trainer) -> list[Any]:
    """The copies of the module that callbacks average weights in."""
    averages = [c._average_model for c in callbacks(trainer) if isinstance(c, WeightAveraging)]
    return [average.module for average in averages if average is not None]
