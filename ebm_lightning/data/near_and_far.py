"""Data sets with out-of-distribution sets that are near to them and far from them, for comparisons of detectors."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ebm_lightning.data.digits import Digits
from ebm_lightning.data.image_arrays import ImageArrays
from ebm_lightning.data.image_sets import MNIST, FashionMNIST
from ebm_lightning.data.ood_images import ood_images
from ebm_lightning.data.resumable_loader import identity_collate
from ebm_lightning.data.textures import textures
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Box

Name = Literal["digits", "MNIST", "FashionMNIST", "CIFAR10"]
Labeled = tuple[Tensor, Tensor]
SUBSET = "cifar10-subset/cifar10_subset_10000_2000.npz"
KNOWN_CLASSES = 6  # of CIFAR10; the other four are the near set


@dataclass
class NearAndFar:
    """Images (N, C, H, W) with labels (N,), and out-of-distribution images by name.

    Attributes:
        support: Domain of the images.
        num_classes: Number of classes.
        train, val, test: Images and labels.
        near, far: Out-of-distribution images, shape (M, C, H, W).
    """

    support: Box
    num_classes: int
    train: Labeled
    val: Labeled
    test: Labeled
    near: dict[str, Tensor] = field(default_factory=dict)
    far: dict[str, Tensor] = field(default_factory=dict)


def near_and_far(name: Name, root: Path | str | None = None, size: int = 2000, seed: int = 0) -> NearAndFar:
    """A data set with its out-of-distribution sets. Nothing is downloaded.

    ============  ========================================================  =================================
    data          near                                                      far
    ============  ========================================================  =================================
    digits        transposed digits, means of two digits; with a root also  textures, noise; with a root also
                  notMNIST and FashionMNIST of 8x8 pixels                   CIFAR10 of 8x8 pixels
    MNIST         notMNIST, FashionMNIST (as in OpenOOD)                    textures, CIFAR10
    FashionMNIST  notMNIST, MNIST                                           textures, CIFAR10
    CIFAR10       four of the ten classes, which the network has not seen   textures, MNIST, notMNIST
    ============  ========================================================  =================================

    CIFAR10 is a subset of 10 000 training and 2000 test images, ``cifar10-subset/cifar10_subset_10000_2000.npz`` below
    the root.

    Arguments:
        name: The data set.
        root: Folder with the images; digits works without one.
        size: Largest number of images of each out-of-distribution set.
        seed: Seed of made images and of choices.

    Raises:
        ValueError: ``root`` is missing.
        MissingImages: Images are not on disk.
    """
    if root is None and name != "digits":
        raise ValueError(f"'root' should be the folder with the images of {name}, got None. Only digits needs none.")
    made = make_generator(seed, "near and far")
    if name == "digits":
        return _digits(root, size, made)
    if name == "CIFAR10":
        return _cifar(Path(str(root)), size, made)
    data = (MNIST if name == "MNIST" else FashionMNIST)(str(root), download=False)
    other = "FashionMNIST" if name == "MNIST" else "MNIST"
    sets = NearAndFar(data.support, data.num_classes, *_parts(data))
    sets.near = {key: ood_images(key, data.support, str(root), size, download=False) for key in ("notMNIST", other)}
    sets.far = {
        "textures": textures(size, data.support, made),
        "CIFAR10": ood_images(SUBSET, data.support, str(root), size, download=False),
    }
    return sets


def _digits(root: Path | str | None, size: int, generator: torch.Generator) -> NearAndFar:
    data = Digits()
    box = data.support
    sets = NearAndFar(box, data.num_classes, *_parts(data))
    x = sets.test[0][:size]
    sets.near = {"transposed": x.mT, "means of two": (x + x.roll(1, 0)) / 2}
    sets.far = {"textures": textures(size, box, generator), "noise": box.sample(size, generator=generator)}
    if root is not None:
        sources = {"notMNIST": "notMNIST", "FashionMNIST": "FashionMNIST", "CIFAR10": SUBSET}
        for key, source in sources.items():
            group = sets.far if key == "CIFAR10" else sets.near
            group[key] = ood_images(source, box, str(root), size, num_levels=data.num_levels, download=False)
    return sets


def _cifar(root: Path, size: int, generator: torch.Generator) -> NearAndFar:
    data = ImageArrays(root / SUBSET, val_size=1000)
    seen, unseen = zip(*(_split(*part) for part in _parts(data)), strict=True)
    sets = NearAndFar(data.support, KNOWN_CLASSES, *seen)
    sets.near = {"other classes": unseen[2][0][:size]}
    sets.far = {"textures": textures(size, data.support, generator)}
    sets.far |= {key: ood_images(key, data.support, root, size, download=False) for key in ("MNIST", "notMNIST")}
    return sets


def _split(x: Tensor, y: Tensor) -> tuple[Labeled, Labeled]:
    known = y < KNOWN_CLASSES
    return (x[known], y[known]), (x[~known], y[~known])


def _parts(data: Any) -> tuple[Labeled, Labeled, Labeled]:
    """All images and labels for training, validation and test, with the dequantization noise of a fixed seed."""
    data.setup()
    train = DataLoader(data.train, 1000, collate_fn=identity_collate)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _joined(train), _joined(data.val_dataloader()), _joined(data.test_dataloader())


def _joined(loader: Any) -> Labeled:
    x, y = (torch.cat(column) for column in zip(*loader, strict=True))
    return x, y
