"""Real out-of-distribution images: test images of another data set, converted to the shape of the model's own."""

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from ebm_lightning._lazy import optional_packages
from ebm_lightning.data.dequantization import dequantize
from ebm_lightning.data.image_arrays import array_source
from ebm_lightning.data.sources import SOURCES, MissingImages, Source
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Box, Support

OOD_PAIRS: dict[str, tuple[str, ...]] = {
    "MNIST": ("FashionMNIST", "KMNIST", "notMNIST", "Omniglot"),
    "FashionMNIST": ("MNIST", "KMNIST", "notMNIST", "Omniglot"),
    "CIFAR10": ("SVHN", "CIFAR100"),
    "CIFAR100": ("SVHN", "CIFAR10"),
    "SVHN": ("CIFAR10", "CIFAR100"),
}
"""For each data set, those that are commonly used as out-of-distribution for it."""


def ood_images(
    name: str,
    like: Support,
    root: str | Path = "data",
    size: int | None = None,
    *,
    num_levels: int = 256,
    download: bool = True,
    seed: int = 0,
) -> Tensor:
    """Test images of another data set, resized, converted to the model's channels and dequantized.

    Images are resized by antialiased bilinear interpolation, and converted to grayscale by the luma of ITU-R 601.
    Images with fewer levels have wider dequantization noise, which would be enough to tell two data sets apart. All
    images are therefore quantized to ``num_levels`` first.

    Arguments:
        name: One of :data:`ebm_lightning.data.SOURCES`, or an .npz file below the root with x_test and y_test.
        like: The model's support, a box of shape (C, H, W) with one or three channels.
        root: Folder of the images.
        size: Number of images, chosen at random; by default all.
        num_levels: Number of levels of the images that the model was trained on.
        download: Download the images if they are not on disk. With several ranks, download them beforehand.
        seed: Seed of the choice and of the noise.

    Returns:
        Shape (size, C, H, W), float32, in the box.

    Raises:
        ValueError: The name is unknown, or the support is not a box of images.
        MissingImages: The images are not on disk, and ``download`` is false or the download failed.
    """
    source, box = _source(name), _image_box(like)
    source.fetch(root, "test", download)
    levels, _ = source.read(root, "test")
    generator = make_generator(seed, source.name, "ood")
    chosen = torch.randperm(len(levels), generator=generator)[:size]
    converted = torch.cat([_convert(part, box) for part in levels[chosen].split(1024)])
    return dequantize(converted.float().mul(num_levels / 256).floor(), num_levels, box, generator)


def ood_image_sets(
    names: Sequence[str],
    like: Support,
    root: str | Path = "data",
    size: int | None = None,
    *,
    num_levels: int = 256,
    download: bool = True,
    seed: int = 0,
) -> dict[str, Tensor]:
    """:func:`ood_images` of each name whose images are available. A message is logged for each of the others.

    Example: ``ood_image_sets(OOD_PAIRS["MNIST"], model.support)``. Arguments as for :func:`ood_images`.
    """
    sets = {}
    for name in names:
        try:
            sets[name] = ood_images(name, like, root, size, num_levels=num_levels, download=download, seed=seed)
        except MissingImages as error:
            rank_zero_info(f"{name} is skipped: {error}")
    return sets


def _source(name: str) -> Source:
    if name in SOURCES:
        return SOURCES[name]
    if name.endswith(".npz"):
        return array_source(name)
    raise ValueError(f"'name' should be one of {', '.join(SOURCES)} or end with .npz, got {name!r}.")


def _image_box(like: Support) -> Box:
    if not isinstance(like, Box) or len(like.shape) != 3 or like.shape[0] not in (1, 3):
        raise ValueError(f"'like' should be a Box of shape (1, H, W) or (3, H, W), got {like}.")
    return like


def _convert(levels: Tensor, box: Box) -> Tensor:
    """``levels``, uint8 of shape (N, C, H, W), with the channels and size of the box."""
    with optional_packages("ood_images"):
        from torchvision.transforms import functional as F

    channels, *size = box.shape
    if levels.shape[1] > channels:
        levels = F.rgb_to_grayscale(levels)
    if list(levels.shape[2:]) != size:
        levels = F.resize(levels, size, antialias=True)
    return levels.expand(-1, channels, -1, -1)
