"""Base class and helpers of callbacks that evaluate a model on validation and test data."""

import math
from abc import abstractmethod
from collections.abc import Sized
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from ebm_lightning.callbacks.warn import warn
from ebm_lightning.chains.sampling import with_steps
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.modules.batches import class_indices, with_labels
from ebm_lightning.samplers import SGLD, Sampler

Stage = Literal["val", "test"]


class Evaluation(L.Callback):
    """Base class with one set of hooks for validation and test: ``begin``, ``observe`` and ``report``.

    They are called at the start of an epoch, after each batch and at the end. The sanity check is skipped. Of several
    loaders the first is observed, unless ``every_loader`` is True.

    Attributes:
        every_loader: Whether the batches of all loaders are observed.
        loader: Index of the loader of the batch that is observed.
        needs_labels: Whether batches without labels are left out, with a warning. If all are, nothing is reported.

    Raises:
        ValueError: The module is not a ConditionalEBM.
    """

    every_loader = False
    needs_labels = False
    loader = 0
    _observed = False
    _warned = False

    @abstractmethod
    def begin(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None: ...

    @abstractmethod
    def observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any) -> None:
        """Called for each batch.

        Arguments:
            stage: "val" or "test".
            module: The model.
            outputs: What the module's step returned: logits and energies of the batch.
            batch: Inputs, shape (N, *shape), and labels, shape (N,): -1 in batches without labels, and the most likely
                classes of soft labels.
        """

    @abstractmethod
    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None: ...

    def quota(self, limit: int | None, stage: Stage, trainer: L.Trainer) -> "Quota":
        """This rank's part of ``limit`` images, spread evenly over the images of the first loader."""
        return Quota(limit, trainer.world_size, _offered(stage, trainer))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not isinstance(pl_module, ConditionalEBM):
            raise ValueError(f"{type(self).__name__} needs a ConditionalEBM or JEM, got {type(pl_module).__name__}.")

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._start("val", trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking:
            self._observe("val", pl_module, outputs, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._finish("val", trainer, pl_module)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._start("test", trainer, pl_module)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._observe("test", pl_module, outputs, batch, dataloader_idx)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._finish("test", trainer, pl_module)

    def _start(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        self._observed = self._warned = False
        self.begin(stage, trainer, module)

    def _observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any, loader: int) -> None:
        if loader and not self.every_loader:
            return
        x, y = module.inputs_and_labels(batch)
        if y is None and self.needs_labels:
            self._warn(stage)
            return
        self._observed, self.loader = True, loader
        self.observe(stage, module, outputs, with_labels(x, None if y is None else class_indices(y)))

    def _finish(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        if self._observed or not self.needs_labels:
            self.report(stage, trainer, module)

    def _warn(self, stage: Stage) -> None:
        if not self._warned:
            warn(f"{type(self).__name__} needs labels, and some {stage} batches have none: it skips them.")
        self._warned = True


def loader_suffix(loader: int, stage: Stage, trainer: L.Trainer) -> str:
    """What Lightning appends to the names of metrics if there are several loaders; else nothing."""
    batches = trainer.num_test_batches if stage == "test" else trainer.num_val_batches
    return f"/dataloader_idx_{loader}" if len(batches) > 1 else ""


class Quota:
    """Selects up to ``limit`` images of an epoch, over all ranks. None selects all of them.

    The selected images are spread evenly over the ``offered`` ones, because the order of a test set is rarely random:
    the first half of MNIST's is easier than the second. The first image is always selected. If ``offered`` is unknown,
    the first images are selected.

    Arguments:
        limit: Largest number of images, over all ranks.
        world_size: Number of ranks.
        offered: Number of images that this rank will see.
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
        """The selected rows of each tensor. All tensors have the same number of rows."""
        index = torch.arange(self._passed, self._passed + len(tensors[0]))
        rows = index[self._selected(index)] - self._passed
        rows = rows if self._limit is None else rows[: self._limit - self.seen]
        self._passed += len(index)
        self.seen += len(rows)
        return tuple(tensor[rows.to(tensor.device)] for tensor in tensors)

    def _selected(self, index: Tensor) -> Tensor:
        if self._limit is None or self._offered is None or self._limit >= self._offered:
            return torch.ones(len(index), dtype=torch.bool)
        return index * self._limit % self._offered < self._limit  # true for exactly ``limit`` of ``offered`` indices


def _offered(stage: Stage, trainer: L.Trainer) -> int | None:
    """Number of images of the first loader that this rank will see; None if it has no length or batch size."""
    test = stage == "test"
    loaders = trainer.test_dataloaders if test else trainer.val_dataloaders
    batches = trainer.num_test_batches if test else trainer.num_val_batches
    first = next(iter(CombinedLoader(loaders, "sequential").flattened), None)
    dataset, batch_size = getattr(first, "dataset", None), getattr(first, "batch_size", None)
    if not isinstance(dataset, Sized) or batch_size is None:
        return None
    return min(math.ceil(len(dataset) / trainer.world_size), int(batches[0]) * batch_size)


def due(count: int, every: int) -> bool:
    """Whether ``count``, the number of epochs or steps done, is a multiple of ``every``; 0 is never due."""
    return every > 0 and count % every == 0


def chosen_sampler(module: ConditionalEBM, sampler: Sampler | None, steps: int | None = None) -> Sampler:
    """``sampler``, else the module's sampler, else ``SGLD.jem()``; with ``steps`` steps, if given."""
    return with_steps(sampler or getattr(module, "sampler", None) or SGLD.jem(), steps)


class TrainerRanks:
    """The processes of a trainer, as :func:`~ebm_lightning.ais` expects them; also gathers results from all ranks.

    Arguments:
        trainer: The trainer.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self.trainer = trainer

    @property
    def rank(self) -> int:
        return self.trainer.global_rank

    @property
    def world_size(self) -> int:
        return self.trainer.world_size

    def broadcast(self, value: Any) -> Any:
        """Rank 0's ``value``, on every rank."""
        return self.trainer.strategy.broadcast(value)

    def all_gather(self, value: Any) -> list[Any]:
        """The ``value`` of every rank, ordered by rank, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values
