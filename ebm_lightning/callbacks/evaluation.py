"""What callbacks that measure on validation and test data share: one set of hooks for both stages."""

import math
from abc import abstractmethod
from collections.abc import Sized
from typing import Any, Literal

import lightning as L
import torch
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

    def quota(self, limit: int | None, stage: Stage, trainer: L.Trainer) -> "Quota":
        """``limit`` images of this epoch, this rank's share of them, spread evenly over its images."""
        return Quota(limit, trainer.world_size, _offered(stage, trainer))

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
    """Some images of an epoch, up to ``limit`` over all ranks; all of them where it is None.

    Spread evenly over ``offered`` images, for the order of a test set is rarely random: the first half of MNIST's is
    the easier one. The first image is always taken. Where it is not known how many come, the first ones are taken.

    Arguments:
        limit: Most images, over all ranks.
        world_size: Number of ranks.
        offered: How many images this rank will see.
    """

    def __init__(self, limit: int | None = None, world_size: int = 1, offered: int | None = None) -> None:
        self.seen = 0
        self._passed = 0
        self._limit = None if limit is None else math.ceil(limit / world_size)
        self._offered = offered

    @property
    def full(self) -> bool:
        return self._limit is not None and self.seen >= self._limit

    def take(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The rows of each tensor that are wanted; all have as many rows as the first."""
        index = torch.arange(self._passed, self._passed + len(tensors[0]))
        rows = index[self._wanted(index)] - self._passed
        rows = rows if self._limit is None else rows[: self._limit - self.seen]
        self._passed += len(index)
        self.seen += len(rows)
        return tuple(tensor[rows.to(tensor.device)] for tensor in tensors)

    def _wanted(self, index: Tensor) -> Tensor:
        if self._limit is None or self._offered is None or self._limit >= self._offered:
            return torch.ones(len(index), dtype=torch.bool)
        return index * self._limit % self._offered < self._limit  # exactly ``limit`` of ``offered``


def _offered(stage: Stage, trainer: L.Trainer) -> int | None:
    """How many images this rank will see; None if a loader does not say."""
    test = stage == "test"
    loaders = trainer.test_dataloaders if test else trainer.val_dataloaders
    batches = trainer.num_test_batches if test else trainer.num_val_batches
    images = 0
    for loader, n in zip(loaders if isinstance(loaders, list) else [loaders], batches, strict=False):
        dataset, batch_size = getattr(loader, "dataset", None), getattr(loader, "batch_size", None)
        if not isinstance(dataset, Sized) or batch_size is None:
            return None
        images += min(math.ceil(len(dataset) / trainer.world_size), int(n) * batch_size)
    return images


def check_positive(**numbers: float | None) -> None:
    """Raises ValueError for the first of the named numbers that is not positive; None passes."""
    for name, value in numbers.items():
        if value is not None and not value > 0:
            raise ValueError(f"'{name}' should be positive, got {value}.")
