"""Helpers: small random image sets on disk, and the folder of real images."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ebm_lightning.data import ImageDataModule

REAL = Path(os.environ.get("EBM_DATA", Path(__file__).parent.parent.parent.parent / "shared" / "data"))


def real(*names: str) -> Path:
    """The folder of real images. Skips the test if one of ``names`` is not in it."""
    for name in names:
        if not (REAL / name).exists():
            pytest.skip(f"No {name} in {REAL}: set EBM_DATA to a folder that contains it.")
    return REAL


def made_up(n: int, shape: tuple[int, ...] = (3, 8, 8), classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random integer images, all different, and labels with unequal class frequencies."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(256, (n, *shape), generator=generator, dtype=torch.uint8)
    return levels, torch.arange(n).sqrt().long() % classes


def write_arrays(folder: Path, n: int = 60, n_test: int = 12, shape: tuple[int, ...] = (3, 8, 8)) -> Path:
    """Write an .npz file for :class:`ImageArrays`."""
    arrays = {}
    for split, size, seed in (("train", n, 0), ("test", n_test, 1)):
        levels, labels = made_up(size, shape, seed=seed)
        arrays |= {f"x_{split}": levels.permute(0, 2, 3, 1).numpy(), f"y_{split}": labels.numpy()}
    np.savez(folder / "images.npz", **arrays)
    return folder / "images.npz"


def idx_bytes(values: Tensor) -> bytes:
    """``values``, uint8, in MNIST's idx format."""
    shape = b"".join(side.to_bytes(4, "big") for side in values.shape)
    return bytes([0, 0, 8, values.ndim]) + shape + values.to(torch.uint8).numpy().tobytes()


def write_idx(root: Path, name: str = "MNIST", sizes: tuple[int, int] = (60, 12)) -> dict[str, tuple[Tensor, Tensor]]:
    """Write uncompressed idx files in torchvision's layout; returns the images and labels of each split."""
    folder, sets = root / name / "raw", {}
    folder.mkdir(parents=True)
    for split, prefix, n in (("train", "train", sizes[0]), ("test", "t10k", sizes[1])):
        levels, labels = made_up(n, (1, 28, 28), 10, seed=n)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(levels[:, 0]))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
        sets[split] = levels, labels
    return sets


def ready(data: ImageDataModule) -> ImageDataModule:
    """``data`` after its ``prepare_data`` and ``setup``."""
    data.prepare_data()
    data.setup()
    return data


def levels_of(x: Tensor) -> Tensor:
    """The uint8 images that were dequantized into ``x``, in [-1, 1]."""
    return ((x + 1) / 2 * 256).floor().clamp(max=255).to(torch.uint8)
