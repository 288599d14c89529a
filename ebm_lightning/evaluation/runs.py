"""One ``Trainer.test`` run per model, which leaves the model and the data as they are."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from ebm_lightning.callbacks import AISLogZ, ErrorBars, OODDetection
from ebm_lightning.callbacks.ood_histogram import Scores
from ebm_lightning.evaluation.comparison import Measured
from ebm_lightning.evaluation.inputs import Data
from ebm_lightning.evaluation.loggers import LoggerName, finish_wandb, run_logger
from ebm_lightning.evaluation.measurements import Measurements
from ebm_lightning.evaluation.names import model_names
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.modules.random_state import seeded_globally
from ebm_lightning.samplers import eval_mode


def run_all(
    models: Mapping[str, ConditionalEBM],
    data: Data,
    measurements: Measurements,
    folder: Path,
    logger: LoggerName,
    device: str,
) -> dict[str, Measured]:
    """Measure each model. Pictures and logs go to ``folder / key``.

    With W&B, the run of the first model is left open for the report.

    Arguments:
        models: The models by key.
        data: A data module, or a loader of test images and labels.
        measurements: What to measure.
        folder: Folder of the evaluation.
        logger: Where metrics are also logged.
        device: Lightning's accelerator.
    """
    found: dict[str, Measured] = {}
    names = model_names(models)
    for key in reversed(list(models)):
        if found and logger == "wandb":
            finish_wandb()
        tags = ["evaluation", names[key], type(models[key].classifier).__name__]
        own_logger = run_logger(logger, folder / key, f"{folder.name}-{names[key]}", folder.name, tags)
        callbacks = measurements.callbacks(folder / key, models[key])
        progress = measurements.settings.progress_bar
        if progress:
            print(f"Evaluating the {names[key]} of {type(models[key].classifier).__name__}", file=sys.stderr)
        metrics = run_test(models[key], data, callbacks, own_logger, device, progress)
        found[key] = _measured(metrics, callbacks)
    return {key: found[key] for key in models}


def _measured(metrics: dict[str, float], callbacks: Sequence[Callback]) -> Measured:
    """The metrics of a run, and what its callbacks keep."""
    errors = next(c for c in callbacks if isinstance(c, ErrorBars))
    detection = next(c for c in callbacks if isinstance(c, OODDetection))
    results = [c.result for c in callbacks if isinstance(c, AISLogZ) and c.result is not None]
    scores = {pair: Scores(*(part.cpu() for part in metric.scores())) for pair, metric in detection.metrics.items()}
    return Measured(metrics, errors.values, scores, detection.examples, results[0].why if results else "")


def run_test(
    model: ConditionalEBM, data: Data, callbacks: Sequence[Callback], logger: Logger, device: str, progress_bar: bool
) -> dict[str, float]:
    """The metrics of ``Trainer.test`` on one device; of the first loader if there are several."""
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
        metrics = trainer.test(model, verbose=False, **loaders)[0]
    first = {name.removesuffix("/dataloader_idx_0"): value for name, value in metrics.items()}
    return {name: value for name, value in first.items() if "/dataloader_idx_" not in name}


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


def _trainer(item: Any) -> Any:
    """The trainer that a module or a data module is attached to; None if there is none."""
    try:
        return item.trainer
    except RuntimeError:  # how a LightningModule says that it is not attached
        return None
