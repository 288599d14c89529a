"""One way from a picture to the disk and to every logger that shows pictures."""

from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torchvision.utils import make_grid, save_image

from ebm_lightning.supports import Binary, Box, Support

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@rank_zero_only
def publish(trainer: L.Trainer, key: str, picture: "Tensor | Figure", directory: Path | str | None) -> None:
    """Write ``picture`` as PNG and show it under ``key`` in W&B and TensorBoard.

    Arguments:
        trainer: Its loggers are used, and its log folder if ``directory`` is None.
        key: Such as ``samples/chains``; the file is then ``samples-chains.png``.
        picture: An image (C, H, W) in [0, 1], or a matplotlib figure.
        directory: Where to write; made if absent.
    """
    folder = Path(directory or _log_dir(trainer))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key.replace('/', '-')}.png"
    if isinstance(picture, Tensor):
        save_image(picture, path)
    else:
        picture.savefig(path, dpi=120)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [str(path)])
        elif isinstance(logger, TensorBoardLogger):
            from matplotlib.image import imread

            logger.experiment.add_image(key, imread(path)[..., :3], trainer.global_step, dataformats="HWC")


def image_grid(x: Tensor, support: Box | Binary, columns: int, scale: int = 1) -> Tensor:
    """Images (N, C, H, W) of the support as one picture (3, H', W') in [0, 1], each pixel ``scale`` pixels wide."""
    x = x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    pixels = (x - support.low) / (support.high - support.low)
    return make_grid(pixels, nrow=columns, padding=scale, pad_value=0.5)


def image_support(support: Support, asker: str) -> Box | Binary:
    """``support``, whose points can be drawn.

    Raises:
        ValueError: It is no box of images (1 or 3, H, W).
    """
    if not isinstance(support, Box | Binary) or len(support.shape) != 3 or support.shape[0] not in (1, 3):
        raise ValueError(f"'support' should be a Box of images (1 or 3, H, W) for {asker}, got {support}.")
    return support


def _log_dir(trainer: L.Trainer) -> str:
    """Where the first logger writes. ``trainer.log_dir`` would wait for the other ranks, and they are not here."""
    logger = trainer.logger
    return getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None) or trainer.default_root_dir
