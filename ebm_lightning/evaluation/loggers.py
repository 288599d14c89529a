"""Loggers of recipes and evaluations, and what they get at the end of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from ebm_lightning.evaluation.optional import import_optional
from ebm_lightning.evaluation.report.ranking import Results
from ebm_lightning.evaluation.report.verdict import Verdict

LoggerName = Literal["csv", "tensorboard", "wandb"]


def run_logger(
    kind: LoggerName,
    folder: Path,
    name: str,
    group: str | None = None,
    tags: Sequence[str] = (),
    *,
    log_model: bool = False,
) -> Logger:
    """A logger that writes to ``folder``.

    Arguments:
        kind: Which logger.
        folder: Folder of the run; created if it does not exist.
        name: Name of the run in W&B.
        group: What the runs of one comparison have in common, such as a JEM and its classifier.
        tags: Words to filter runs by.
        log_model: Upload checkpoints to W&B.
    """
    if kind == "wandb":
        folder = folder.resolve()  # a W&B service that was started elsewhere would take a relative path for its own
        folder.mkdir(parents=True, exist_ok=True)
        return WandbLogger(name, folder, project="ebm_lightning", group=group, tags=list(tags), log_model=log_model)
    return (CSVLogger if kind == "csv" else TensorBoardLogger)(folder, "logs", "")


def check_logger(kind: LoggerName) -> None:
    """Check that the logger of an evaluation can be used.

    Raises:
        ValueError: The name is unknown, or a W&B run is in progress.
        ModuleNotFoundError: W&B is not installed.
    """
    if kind not in ("csv", "wandb"):
        raise ValueError(f"'logger' should be 'csv' or 'wandb', got {kind!r}.")
    if kind == "wandb" and _wandb().run is not None:
        raise ValueError(
            "'logger' should be 'csv' while a W&B run is in progress, got 'wandb'. Or call wandb.finish()."
        )


def log_to_wandb(
    results: Results,
    *,
    metrics: Mapping[str, float] | None = None,
    verdicts: Sequence[Verdict] = (),
    report: Path | None = None,
) -> None:
    """Log a comparison to the current W&B run: a table, the verdicts, all metrics, and the report.

    Arguments:
        results: The metrics of each model, by the model's name: ``comparison``, with a row for each metric.
        metrics: Metrics of the run, which go to its summary.
        verdicts: ``verdict/<topic>`` in the summary.
        report: The HTML page: ``report``, and an artifact.
    """
    wandb = _wandb()
    keys = dict.fromkeys(key for values in results.values() for key in values)
    rows = [[key, *(values.get(key) for values in results.values())] for key in keys]
    logged: dict[str, Any] = {"comparison": wandb.Table(["metric", *results], rows)}
    if report is not None:
        logged["report"] = wandb.Html(str(report))
        artifact = wandb.Artifact(f"report-{wandb.run.id}", "report")
        artifact.add_file(str(report))
        wandb.run.log_artifact(artifact)
    wandb.log(logged)
    wandb.run.summary.update(dict(metrics or {}) | {f"verdict/{v.topic}": f"{v.word}. {v.text}" for v in verdicts})


def finish_wandb() -> None:
    """Finish the current W&B run."""
    _wandb().finish()


def _wandb() -> Any:
    return import_optional("wandb", "logger='wandb'", "pass logger='csv'")
