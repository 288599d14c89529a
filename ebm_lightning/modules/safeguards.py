"""What every run of this library's modules gets: whole checkpoints, an orderly Ctrl-C, a refusal of sharded weights."""

import signal
import threading
from types import FrameType
from typing import Any

import lightning as L
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ebm_lightning.modules.checkpoint_io import AtomicCheckpointIO

SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy", "XLAFSDPStrategy")


class Safeguards(L.Callback):
    """Modules add it themselves, through ``configure_callbacks``; it needs no switching on.

    Ctrl-C ends the run after the step that is under way, on all ranks together, once every ``ModelCheckpoint`` has
    written a checkpoint to go on from, chains included; a second one stops at once and writes nothing, since weights
    and chains may be in the middle of a step. SIGTERM, which Lightning itself holds until the step's end, is treated
    alike.
    """

    def __init__(self) -> None:
        self._started = False
        self._asked = False
        self._at_step_end = False
        self._previous: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raises RuntimeError under a strategy that shards weights."""
        self._started = self._asked = self._at_step_end = False
        refuse_sharded(trainer.strategy)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = True
        # Python delivers signals to the main thread only; a handler of the user's own is left in place.
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous = signal.signal(signal.SIGINT, self._ask)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            self._at_step_end = True
            raise KeyboardInterrupt

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore_handler()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._started:
            # Resumed after its last step: Lightning then runs none of training's hooks, and averaged weights, which
            # the uninterrupted run ends with, would be left in their callback. (The trainer's attribute is one that
            # Lightning sets where type checkers do not see it.)
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging):
                    callback.on_train_end(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore_handler()
        # Lightning's ModelCheckpoint runs after every other callback: it writes or not as it is told here.
        savers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        if self._at_step_end or isinstance(exception, SIGTERMException):
            for saver in savers:
                saver.save_on_exception = True
            if not savers:
                rank_zero_warn("The run stops without a checkpoint: the trainer has no 'ModelCheckpoint'.")
        elif trainer.world_size > 1 or isinstance(exception, KeyboardInterrupt):
            # In the middle of a step; and a rank that fails alone would wait for ever for the others' chains.
            for saver in savers:
                saver.save_on_exception = False

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        rank_zero_info(
            "The run stops when this step is done. Press Ctrl-C again to stop at once, without a checkpoint."
        )

    def _restore_handler(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None


def refuse_sharded(strategy: Strategy) -> None:
    """Raises RuntimeError if ``strategy`` spreads one copy of the weights over devices."""
    if type(strategy).__name__ in SHARDED:
        raise RuntimeError(
            f"'strategy' should keep whole weights on each device, got {type(strategy).__name__}: chains take "
            "gradients outside the wrapped forward pass, where sharded weights are not there. Use strategy='ddp'."
        )
