"""Writing figures to the run's folder and to loggers."""

from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from matplotlib.image import imread


@rank_zero_only
def publish(
    trainer: L.Trainer, key: str, figure: Figure, directory: Path | str | None, *, step: int | None = None
) -> None:
    """Write ``figure`` as a PNG and log it under ``key`` to W&B and TensorBoard, at the current step.

    Arguments:
        trainer: Supplies the loggers, and the run's folder if ``directory`` is None.
        key: For example ``samples/chains``, which is written to ``samples-chains.png``. No metric may have this name.
        figure: A matplotlib figure.
        directory: Folder of the PNG; created if it does not exist.
        step: Training step, which is added to the file's name; None for a figure of which there is one in a run.
    """
    folder = Path(directory or run_folder(trainer))
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "" if step is None else f"-step-{step:06d}"
    path = folder / f"{key.replace('/', '-')}{suffix}.png"
    figure.savefig(path, dpi=120)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [str(path)], step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, imread(path)[..., :3], trainer.global_step, dataformats="HWC")


@rank_zero_only
def note(trainer: L.Trainer, key: str, text: str) -> None:
    """Show ``text`` under ``key`` in the summary of a W&B run, and among the texts of TensorBoard."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary[key] = text
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(key, text, trainer.global_step)


def run_folder(trainer: L.Trainer) -> Path:
    """The folder of the run: that of the first logger, where Lightning also puts checkpoints.

    Without a logger it is ``trainer.default_root_dir``, or ``figures`` in it if that is the working directory. Unlike
    ``trainer.log_dir`` this does not broadcast, which would hang because only rank 0 calls it.
    """
    logger = trainer.logger
    if logger is None:
        root = Path(trainer.default_root_dir)
        return root / "figures" if root.resolve() == Path.cwd().resolve() else root
    return Path(getattr(logger, "log_dir", None) or _run_folder(logger, trainer))


def _run_folder(logger: Logger, trainer: L.Trainer) -> Path:
    """``save_dir/name/version`` for loggers without ``log_dir``, such as W&B, as Lightning's ModelCheckpoint has it."""
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version
