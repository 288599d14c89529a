"""A data module for images in a NumPy file: your own images, or a subset of a known data set."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ebm_lightning.data.images import Augment, ImageDataModule
from ebm_lightning.data.sources import MissingImages, Source, Split
from ebm_lightning.supports import Box


class ImageArrays(ImageDataModule):
    """Images from an .npz file with the arrays ``x_train, y_train, x_test, y_test``.

    Images are uint8 of shape (N, H, W, C), or (N, H, W) if they are grayscale. Labels are integers starting at 0.
    ``support`` and ``num_classes`` are inferred from the file.

    Arguments:
        path: The .npz file.
        batch_size: Images in a training batch on each rank.
        val_size: Number of training images to hold out for validation; 0 for no validation.
        augment: ``"none"``, ``"flip"``, ``"crop"`` or ``"crop-flip"``.
        noise_std: Standard deviation of Gaussian noise on training images, in units of x.
        separate_batch_size: Images in a second training batch for p(x), without augmentation and Gaussian noise; None
            for no second batch.
        size: Number of training images to use; by default all that are not held out.
        split_seed: Seed of the split and of the dequantization noise on validation and test images.

    Raises:
        ValueError: An argument is out of its range.
        MissingImages: The file does not exist, or its contents are not as described.
    """

    def __init__(
        self,
        path: str | Path,
        batch_size: int = 64,
        val_size: int = 5000,
        augment: Augment = "none",
        noise_std: float = 0.0,
        separate_batch_size: int | None = None,
        size: int | None = None,
        split_seed: int = 0,
    ) -> None:
        path = Path(path)
        if not path.is_file():
            raise MissingImages(
                f"'path' should be an .npz file with x_train, y_train, x_test and y_test, got '{path}', which does not "
                "exist. Check the path, or write the file with numpy.savez."
            )
        super().__init__(
            path.parent, batch_size, val_size, augment, noise_std, separate_batch_size, size, False, split_seed
        )
        self.path = path
        self.source = array_source(path.name)
        images, labels = self.source.read(path.parent, "train")
        self.support = Box(-1.0, 1.0, tuple(images.shape[1:]))
        self.num_classes = int(labels.max()) + 1
        self.class_names = tuple(map(str, range(self.num_classes)))


def array_source(name: str) -> Source:
    """The images in the .npz file of that name."""
    return Source(name, {"train": (name,), "test": (name,)}, lambda root, split: _read(root / name, split))


def _read(path: Path, split: Split) -> tuple[Tensor, Tensor]:
    with open(path, "rb") as file, np.load(file) as arrays:
        images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"x_{split} is {images.dtype} of shape {images.shape} and y_{split} has shape {labels.shape}; expected "
            "uint8 (N, H, W, C) or (N, H, W), and (N,)"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError(f"y_{split} is {labels.dtype}; expected integers from 0")
    levels = torch.from_numpy(images).unsqueeze(-1) if images.ndim == 3 else torch.from_numpy(images)
    return levels.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype(np.int64))
