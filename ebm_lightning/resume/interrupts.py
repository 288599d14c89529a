"""A callback that every run gets: atomic checkpoints, graceful interrupts, an error for sharded weights."""

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

from ebm_lightning.resume.checkpoint_io import AtomicCheckpointIO
from ebm_lightning.resume.lightning_internals import callbacks

SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy", "XLAFSDPStrategy")


class GracefulInterrupt(L.Callback):
    """Stops a run after the current step on Ctrl-C or SIGTERM, with a checkpoint. Modules add it by themselves.

    Ctrl-C stops all ranks after the same step, and every ``ModelCheckpoint`` then writes a checkpoint, chains included,
    from which the run can resume. A second Ctrl-C stops immediately and writes nothing, because weights and chains may
    be in the middle of a step. SIGTERM, which Lightning handles at the end of a step, also writes a checkpoint.
    """

    def __init__(self) -> None:
        self._started = False
        self._requested = False
        self._at_step_end = False
        self._previous_handler: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raises RuntimeError under a strategy that shards weights."""
        self._started = self._requested = self._at_step_end = False
        refuse_sharded(trainer.strategy)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = True
        # Only the main thread can set signal handlers. A user's own handler is kept.
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous_handler = signal.signal(signal.SIGINT, self._request_stop)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.strategy.reduce_boolean_decision(self._requested, all=False):
            self._at_step_end = True
            raise KeyboardInterrupt

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore_handler()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._started:
            return
        # A run that resumes after its last step gets no training hooks from Lightning, so WeightAveraging would not
        # copy its average into the module.
        for callback in callbacks(trainer):
            if isinstance(callback, WeightAveraging):
                callback.on_train_end(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore_handler()
        # ModelCheckpoint runs after all other callbacks, and saves according to what is set here.
        savers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        if self._at_step_end or isinstance(exception, SIGTERMException):
            for saver in savers:
                saver.save_on_exception = True
            if not savers:
                rank_zero_warn("The run stops without a checkpoint: the trainer has no 'ModelCheckpoint'.")
        elif trainer.world_size > 1 or isinstance(exception, KeyboardInterrupt):
            # The step is not finished, and if one rank fails, saving would block it: it gathers every rank's chains.
            for saver in savers:
                saver.save_on_exception = False

    def _request_stop(self, signum: int, frame: FrameType | None) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True
        rank_zero_info("The run stops after this step. Press Ctrl-C again to stop immediately, without a checkpoint.")

    def _restore_handler(self) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None


def refuse_sharded(strategy: Strategy) -> None:
    """Raise RuntimeError if ``strategy`` shards the weights over devices."""
    if type(strategy).__name__ in SHARDED:
        raise RuntimeError(
            f"'strategy' should keep all weights on each device, got {type(strategy).__name__}: chains need gradients "
            "outside the wrapped forward pass, where sharded weights are not available. Use strategy='ddp'."
        )
