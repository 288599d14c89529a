"""Writing figures to disk and to loggers, and grids of images."""

from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import Tensor
from torchvision.utils import make_grid, save_image

from ebm_lightning.supports import Binary, Box, Support


@rank_zero_only
def publish(trainer: L.Trainer, key: str, figure: Tensor | Figure, directory: Path | str | None) -> None:
    """Write ``figure`` as a PNG and log it under ``key`` to W&B and TensorBoard.

    Arguments:
        trainer: Supplies the loggers, and its log folder if ``directory`` is None.
        key: For example ``samples/chains``, which is written to ``samples-chains.png``.
        figure: An image (C, H, W) in [0, 1], or a matplotlib figure.
        directory: Folder of the PNG; created if it does not exist.
    """
    folder = Path(directory or _log_dir(trainer))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key.replace('/', '-')}.png"
    if isinstance(figure, Tensor):
        save_image(figure, path)
    else:
        figure.savefig(path, dpi=120)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [str(path)])
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, imread(path)[..., :3], trainer.global_step, dataformats="HWC")


def image_grid(x: Tensor, support: Box | Binary, columns: int, scale: int = 1) -> Tensor:
    """Images (N, C, H, W) of the support tiled into one image (3, H', W') in [0, 1].

    Each pixel is enlarged to ``scale`` by ``scale`` pixels.
    """
    x = x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    pixels = (x - support.low) / (support.high - support.low)
    return make_grid(pixels, nrow=columns, padding=scale, pad_value=0.5)


def image_support(support: Support, caller: str) -> Box | Binary:
    """``support``, checked to hold images that can be shown.

    Raises:
        ValueError: The support is not a box of images (1 or 3, H, W). The error names ``caller``.
    """
    if not isinstance(support, Box | Binary) or len(support.shape) != 3 or support.shape[0] not in (1, 3):
        raise ValueError(f"'support' should be a Box of images (1 or 3, H, W) for {caller}, got {support}.")
    return support


def _log_dir(trainer: L.Trainer) -> str:
    """Folder of the first logger. ``trainer.log_dir`` broadcasts, and would hang because only rank 0 calls this."""
    logger = trainer.logger
    return getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None) or trainer.default_root_dir
