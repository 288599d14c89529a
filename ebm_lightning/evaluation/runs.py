"""One ``Trainer.test`` run per model, which leaves the model and the data as they are."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from ebm_lightning.callbacks import AISLogZ
from ebm_lightning.callbacks.base import Evaluation, Stage
from ebm_lightning.evaluation.inputs import Data
from ebm_lightning.evaluation.measurements import Measurements
from ebm_lightning.evaluation.optional import import_optional
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.modules.training_data import seeded_globally
from ebm_lightning.samplers import eval_mode

LoggerName = Literal["csv", "wandb"]


class ImageCount(Evaluation):
    """Counts the test images."""

    images = 0

    def begin(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        self.images = 0

    def observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any) -> None:
        self.images += len(outputs["logits"])

    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        pass


class Results(NamedTuple):
    """What was found out about the models, in the order in which they were given.

    Attributes:
        metrics: Metrics of each model.
        why: Why log Z of a model is not reliable, in one sentence. Only models to which that applies.
        images: Number of test images.
    """

    metrics: dict[str, dict[str, float]]
    why: dict[str, str]
    images: int


def run_all(
    models: Mapping[str, ConditionalEBM],
    data: Data,
    measurements: Measurements,
    folder: Path,
    logger: LoggerName,
    device: str,
) -> Results:
    """Measure each model. Pictures and logs go to ``folder / name``.

    With W&B, the run of the first model is left open for the report.
    """
    metrics: dict[str, dict[str, float]] = {}
    why: dict[str, str] = {}
    count = ImageCount()
    for name in reversed(list(models)):
        if metrics and logger == "wandb":
            finish_wandb()
        own_logger = make_logger(logger, folder / name, f"{folder.name}-{name}")
        callbacks = [*measurements.callbacks(folder / name, models[name]), count]
        metrics[name] = run_test(models[name], data, callbacks, own_logger, device, measurements.settings.progress_bar)
        why[name] = next((c.result.why for c in callbacks if isinstance(c, AISLogZ) and c.result is not None), "")
    return Results(
        {name: metrics[name] for name in models}, {name: why[name] for name in models if why[name]}, count.images
    )


def run_test(
    model: ConditionalEBM, data: Data, callbacks: Sequence[Callback], logger: Logger, device: str, progress_bar: bool
) -> dict[str, float]:
    """The metrics of ``Trainer.test`` on one device."""
    trainer = L.Trainer(
        accelerator=device,
        devices=1,
        logger=logger,
        callbacks=list(callbacks),
        enable_progress_bar=progress_bar,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    loaders: dict[str, Any] = {"datamodule" if isinstance(data, L.LightningDataModule) else "dataloaders": data}
    with unchanged(model, data):
        return dict(trainer.test(model, verbose=False, **loaders)[0])


@contextmanager
def unchanged(model: ConditionalEBM, data: Data) -> Iterator[None]:
    """Restore the train or eval mode, the device, the trainers and the global random states afterwards."""
    attached: list[Any] = [model, data] if isinstance(data, L.LightningDataModule) else [model]
    trainers, device = [_trainer(item) for item in attached], model.device
    with seeded_globally(0), eval_mode(model):
        try:
            yield
        finally:
            for item, trainer in zip(attached, trainers, strict=True):
                item.trainer = trainer
            model.to(device)


def make_logger(name: LoggerName, folder: Path, run_name: str) -> Logger:
    """A logger that writes to ``folder``."""
    if name == "csv":
        return CSVLogger(folder, "logs", "")
    folder.mkdir(parents=True, exist_ok=True)
    return WandbLogger(run_name, folder, project="ebm_lightning")


def check_logger(name: LoggerName) -> None:
    """Check that the logger can be used.

    Raises:
        ValueError: The name is unknown, or a W&B run is in progress.
        ModuleNotFoundError: W&B is not installed.
    """
    if name not in ("csv", "wandb"):
        raise ValueError(f"'logger' should be 'csv' or 'wandb', got {name!r}.")
    if name == "wandb" and _wandb().run is not None:
        raise ValueError(
            "'logger' should be 'csv' while a W&B run is in progress, got 'wandb'. Or call wandb.finish()."
        )


def finish_wandb(metrics: Mapping[str, float] | None = None, report: Path | None = None) -> None:
    """Finish the current W&B run, after logging all metrics and the report if they are given."""
    wandb = _wandb()
    if metrics is not None and report is not None:
        wandb.log({**metrics, "report": wandb.Html(str(report))})
    wandb.finish()


def _wandb() -> Any:
    return import_optional("wandb", "logger='wandb'", "pass logger='csv'")


def _trainer(item: Any) -> Any:
    """The trainer that a module or a data module is attached to; None if there is none."""
    try:
        return item.trainer
    except RuntimeError:  # how a LightningModule says that it is not attached
        return None
