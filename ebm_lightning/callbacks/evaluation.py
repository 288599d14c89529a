"""What callbacks that measure on validation and test data share: one set of hooks for both stages."""

import math
from abc import abstractmethod
from typing import Any, Literal

import lightning as L
from torch import Tensor

from ebm_lightning.modules import ConditionalEBM

Stage = Literal["val", "test"]


class Evaluation(L.Callback):
    """Calls ``begin``, ``observe`` and ``report`` in each validation or test epoch; the sanity check is left out.

    Raises:
        ValueError: The module is no ConditionalEBM.
    """

    @abstractmethod
    def begin(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None: ...

    @abstractmethod
    def observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any) -> None:
        """``outputs`` are those of the module's step: logits and energies of the batch."""

    @abstractmethod
    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None: ...

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not isinstance(pl_module, ConditionalEBM):
            raise ValueError(f"{type(self).__name__} needs a ConditionalEBM or JEM, got {type(pl_module).__name__}.")

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.begin("val", trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking:
            self.observe("val", pl_module, outputs, batch)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.report("val", trainer, pl_module)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.begin("test", trainer, pl_module)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.observe("test", pl_module, outputs, batch)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.report("test", trainer, pl_module)


class Quota:
    """The first images of an epoch, up to ``limit`` over all ranks; all of them where it is None."""

    def __init__(self, limit: int | None = None, world_size: int = 1) -> None:
        self.seen = 0
        self._limit = math.inf if limit is None else math.ceil(limit / world_size)

    def take(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The first rows of each tensor, as many as are still wanted."""
        wanted = int(min(self._limit - self.seen, len(tensors[0])))
        self.seen += wanted
        return tuple(tensor[:wanted] for tensor in tensors)


def check_positive(**numbers: float | None) -> None:
    """Raises ValueError for the first of the named numbers that is not positive; None passes."""
    for name, value in numbers.items():
        if value is not None and not value > 0:
            raise ValueError(f"'{name}' should be positive, got {value}.")
