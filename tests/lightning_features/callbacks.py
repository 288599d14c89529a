"""Lightning's callbacks."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch import callbacks as cb
from lightning.pytorch.loggers import CSVLogger

from ebm_lightning import JEM
from tests.helpers import batches, jem, trainer, weights
from tests.lightning_features.registry import feature

GROUP = "Callbacks"


def fit(folder: Path, *callbacks: L.Callback, module: JEM | None = None, **options: Any) -> JEM:
    """A run with ``callbacks``; weights stay finite."""
    module = module or jem()
    kinds = (cb.ModelCheckpoint, cb.OnExceptionCheckpoint)
    saves = any(isinstance(callback, kinds) for callback in callbacks)
    run = trainer(folder, callbacks=list(callbacks), enable_checkpointing=saves, **options)
    run.fit(module, batches(), batches())
    assert torch.isfinite(weights(module)).all()
    return module


@feature(
    GROUP,
    "`ModelCheckpoint`: `monitor`, `every_n_train_steps`, `save_last`, `save_weights_only`",
    "Metrics have names such as `val/nll` and `val/accuracy`.",
)
def checkpoints(folder: Path) -> None:
    fit(folder, cb.ModelCheckpoint(folder / "a", monitor="val/nll", save_top_k=1), max_epochs=2)
    fit(folder, cb.ModelCheckpoint(folder / "b", every_n_train_steps=2, save_last=True))
    fit(folder, cb.ModelCheckpoint(folder / "c", save_weights_only=True))
    assert len(list(folder.rglob("*.ckpt"))) >= 3


@feature(
    GROUP,
    "`EarlyStopping`",
    "Monitor `val/nll` or `val/accuracy`; losses of the generative terms do not converge to a value.",
)
def early_stopping(folder: Path) -> None:
    fit(folder, cb.EarlyStopping("val/nll", patience=1), max_epochs=3)


@feature(GROUP, "`LearningRateMonitor`")
def learning_rates(folder: Path) -> None:
    fit(folder, cb.LearningRateMonitor(), logger=CSVLogger(folder))


@feature(GROUP, "`LearningRateFinder`, `BatchSizeFinder`", "They leave weights and chains as they were.")
def finders(folder: Path) -> None:
    class Data(L.LightningDataModule):
        batch_size = 2

        def train_dataloader(self):
            return batches(24, self.batch_size)

        val_dataloader = train_dataloader

    fit(folder, cb.LearningRateFinder(num_training_steps=5, update_attr=False))
    run = trainer(folder, callbacks=[cb.BatchSizeFinder(max_trials=1, steps_per_trial=1)])
    run.fit(jem(), datamodule=Data())


@feature(GROUP, "`StochasticWeightAveraging`")
def swa(folder: Path) -> None:
    fit(folder, cb.StochasticWeightAveraging(1e-3, swa_epoch_start=1), max_epochs=3)


@feature(GROUP, "`WeightAveraging`, `EMAWeightAveraging`", "Validation and checkpoints use the average.")
def averaging(folder: Path) -> None:
    fit(folder, cb.EMAWeightAveraging(decay=0.9))


@feature(GROUP, "`GradientAccumulationScheduler`")
def accumulation(folder: Path) -> None:
    fit(folder, cb.GradientAccumulationScheduler({0: 1, 1: 3}), max_epochs=2)


@feature(GROUP, "`BaseFinetuning`, `BackboneFinetuning`", "Learning rates of the callback are kept.")
def finetuning(folder: Path) -> None:
    class Unfreeze(cb.BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.classifier.layers[1])

        def finetune_function(self, pl_module, epoch, optimizer):
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.classifier.layers[1], optimizer, lr=1e-4)

    fit(folder, Unfreeze(), max_epochs=2)


@feature(GROUP, "`ModelPruning`")
def pruning(folder: Path) -> None:
    fit(folder, cb.ModelPruning("l1_unstructured", amount=0.3))


@feature(GROUP, "`Timer`, `DeviceStatsMonitor`, `ThroughputMonitor`")
def timing(folder: Path) -> None:
    throughput = cb.ThroughputMonitor(lambda batch: len(batch[0]))
    fit(folder, cb.Timer(), cb.DeviceStatsMonitor(cpu_stats=False), throughput, logger=CSVLogger(folder))


@feature(GROUP, "`ModelSummary`, `TQDMProgressBar`")
def display(folder: Path) -> None:
    fit(folder, cb.ModelSummary(3), cb.TQDMProgressBar(), enable_model_summary=True, enable_progress_bar=True)


@feature(GROUP, "`BasePredictionWriter`", "Predictions are dictionaries with `logits` and `energy`.")
def predictions(folder: Path) -> None:
    class Writer(cb.BasePredictionWriter):
        def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
            torch.save(predictions, folder / "predictions.pt")

    trainer(folder, callbacks=[Writer("epoch")]).predict(jem(), batches(), return_predictions=False)
    assert {"logits", "energy"} <= torch.load(folder / "predictions.pt")[0].keys()


@feature(GROUP, "`LambdaCallback`")
def lambdas(folder: Path) -> None:
    seen = []
    fit(folder, cb.LambdaCallback(on_train_batch_end=lambda *_: seen.append(1)))
    assert len(seen) == 3


@feature(GROUP, "`OnExceptionCheckpoint`")
def on_exception(folder: Path) -> None:
    class Fails(L.Callback):
        def on_train_batch_end(self, *_):
            raise ZeroDivisionError

    try:
        fit(folder, cb.OnExceptionCheckpoint(folder), Fails())
    except ZeroDivisionError:
        assert list(folder.glob("*.ckpt"))
