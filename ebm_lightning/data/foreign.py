"""Real images that are foreign to a model: test images of another set, brought to the shape of its own."""

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchvision.transforms import functional as F

from ebm_lightning.data.arrays import array_source
from ebm_lightning.data.loading import dequantise
from ebm_lightning.data.sources import SOURCES, MissingImages, Source
from ebm_lightning.streams import make_generator
from ebm_lightning.supports import Box, Support

OOD_PAIRS: dict[str, tuple[str, ...]] = {
    "MNIST": ("FashionMNIST", "KMNIST", "notMNIST", "Omniglot"),
    "FashionMNIST": ("MNIST", "KMNIST", "notMNIST", "Omniglot"),
    "CIFAR10": ("SVHN", "CIFAR100"),
    "CIFAR100": ("SVHN", "CIFAR10"),
    "SVHN": ("CIFAR10", "CIFAR100"),
}
"""The sets that models of each set are usually asked to tell from it."""


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
    """Test images of another set, made to look like those of a model: resized, in its colours, dequantised.

    Sizes are changed by antialiased bilinear interpolation, and colours by the luma of ITU-R 601. Images of few levels
    have coarser noise than others, by which alone a model can tell them apart: hence ``num_levels``.

    Arguments:
        name: One of :data:`ebm_lightning.data.SOURCES`, or an .npz file below the root with x_test and y_test.
        like: The model's support, a box of shape (C, H, W) with one or three channels.
        root: Folder that holds the images.
        size: How many, drawn at random; by default all.
        num_levels: Levels of the model's own images.
        download: Download the images if they are absent. On several ranks, fetch them first.
        seed: Of the choice and of the noise.

    Returns:
        Shape (size, C, H, W), float32, in the box.

    Raises:
        ValueError: An unknown name, or a support that is no such box.
        MissingImages: The images are absent, and were not to be downloaded or could not be.
    """
    source, box = _source(name), _image_box(like)
    source.fetch(root, "test", download)
    levels, _ = source.read(root, "test")
    generator = make_generator(seed, source.name, "ood")
    chosen = torch.randperm(len(levels), generator=generator)[:size]
    adapted = torch.cat([_adapted(part, box) for part in levels[chosen].split(1024)])
    return dequantise(adapted.float().mul(num_levels / 256).floor(), num_levels, box, generator)


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
    """:func:`ood_images` of each name that can be had; why others are left out is logged.

    ``ood_image_sets(OOD_PAIRS["MNIST"], model.support)`` gives what is usual. Arguments as for :func:`ood_images`.
    """
    sets = {}
    for name in names:
        try:
            sets[name] = ood_images(name, like, root, size, num_levels=num_levels, download=download, seed=seed)
        except MissingImages as error:
            rank_zero_info(f"{name} is left out: {error}")
    return sets


def _source(name: str) -> Source:
    if name in SOURCES:
        return SOURCES[name]
    if name.endswith(".npz"):
        return array_source(name)
    raise ValueError(f"'name' should be among {', '.join(SOURCES)} or end with .npz, got {name!r}.")


def _image_box(like: Support) -> Box:
    if not isinstance(like, Box) or len(like.shape) != 3 or like.shape[0] not in (1, 3):
        raise ValueError(f"'like' should be a Box of shape (1, H, W) or (3, H, W), got {like}.")
    return like


def _adapted(levels: Tensor, box: Box) -> Tensor:
    """uint8 images, shape (N, C, H, W), in the channels and size of the box."""
    channels, *size = box.shape
    if levels.shape[1] > channels:
        levels = F.rgb_to_grayscale(levels)
    if list(levels.shape[2:]) != size:
        levels = F.resize(levels, size, antialias=True)
    return levels.expand(-1, channels, -1, -1)
