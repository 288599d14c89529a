"""Base data module of the image data sets: split, augmentation, noise and loaders."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader

from ebm_lightning.checks import check_integer, check_number
from ebm_lightning.data.augmentation import mirrored, shifted
from ebm_lightning.data.dequantization import Dequantized, FixedDequantized
from ebm_lightning.data.resumable_loader import identity_collate, resumable_loader
from ebm_lightning.data.sources import Source
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Box

Augment = Literal["none", "flip", "crop", "crop-flip"]


class ImageDataModule(L.LightningDataModule):
    """Real images of 256 levels, dequantized into [-1, 1]: the base class of ``MNIST``, ``CIFAR10`` and others.

    Training images get new dequantization noise each time they are loaded; that of validation and test images is fixed.
    Validation images are a stratified subset of the training images. They depend on ``val_size`` and ``split_seed``
    only: not on the seed of the run, on ``size`` or on ``batch_size``. Only ``trainer.test`` uses the test images.
    Images are kept in memory as uint8.

    With ``separate_batch_size`` b, a training batch is ``{"clf": (x, y), "gen": (x, y)}``. The first part has
    ``batch_size`` images for p(y|x), with augmentation and Gaussian noise. The second has b images for p(x), without
    either and in a separate order, because the model would otherwise learn the density of augmented images. An epoch
    ends when either part runs out.

    References:
        Theis et al., A note on the evaluation of generative models, 2016 (dequantization).
        Grathwohl et al. 2020 (two loaders, crops, noise). https://arxiv.org/abs/1912.03263
        Yang, Su & Ji, Towards bridging the performance gaps of joint energy-based models, 2023 (no augmentation for
        p(x), ``batch_size`` 128 and ``separate_batch_size`` 64). https://arxiv.org/abs/2209.07959

    Arguments:
        root: Folder of the images, in torchvision's layout.
        batch_size: Images in a training batch on each rank.
        val_size: Number of training images to hold out for validation; 0 for no validation.
        augment: ``"crop"`` is a random crop after reflection padding, by 4 pixels for images of 32 and 2 for images of
            28; ``"flip"`` is a random horizontal flip; ``"crop-flip"`` is both; ``"none"`` is neither.
        noise_std: Standard deviation of Gaussian noise on training images, in units of x, reflected into the box (JEM:
            0.03). ``data_noise`` of :class:`~ebm_lightning.JEM` is added on top, unless ``separate_batch_size`` is set.
        separate_batch_size: Images in a second training batch for p(x), without augmentation and Gaussian noise; None
            for no second batch.
        size: Number of training images to use, a stratified subset; by default all that are not held out.
        download: Download the images if they are not on disk.
        split_seed: Seed of the split and of the dequantization noise on validation and test images.

    Raises:
        ValueError: An argument is out of its range.
        MissingImages: The images are not on disk, and ``download`` is false or the download failed.
    """

    source: Source
    support: Box
    num_classes: int
    class_names: tuple[str, ...]
    num_levels = 256

    def __init__(
        self,
        root: str | Path = "data",
        batch_size: int = 64,
        val_size: int = 5000,
        augment: Augment = "none",
        noise_std: float = 0.0,
        separate_batch_size: int | None = None,
        size: int | None = None,
        download: bool = True,
        split_seed: int = 0,
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.batch_size = batch_size
        self.val_size = val_size
        self.augment = augment
        self.noise_std = noise_std
        self.separate_batch_size = separate_batch_size
        self.size = size
        self.download = download
        self.split_seed = split_seed
        self._check_arguments()

    def prepare_data(self) -> None:
        self.source.fetch(self.root, "train", self.download)
        self.source.fetch(self.root, "test", self.download)

    def setup(self, stage: str | None = None) -> None:
        if stage not in ("test", "predict"):
            self._set_up_training(*self.source.read(self.root, "train"))
        if stage in ("test", "predict", None):
            self.test = self._fixed(*self.source.read(self.root, "test"), "test")

    def train_dataloader(self) -> Any:
        clf = resumable_loader(self.train, self.batch_size, self.trainer, collate_fn=identity_collate)
        self._check_batches(clf, "batch_size")
        if self.separate_batch_size is None:
            return clf
        b = self.separate_batch_size
        gen = resumable_loader(self.train_gen, b, self.trainer, collate_fn=identity_collate, stream="gen")
        self._check_batches(gen, "separate_batch_size")
        return CombinedLoader({"clf": clf, "gen": gen}, "min_size")

    def val_dataloader(self) -> Any:
        # A separate generator: without one, starting the loader would advance the global random state.
        return DataLoader(self.val, batch_size=256, generator=torch.Generator()) if self.val_size else []

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(self.test, batch_size=256, generator=torch.Generator())

    predict_dataloader = test_dataloader

    def _set_up_training(self, levels: Tensor, labels: Tensor) -> None:
        self._check_sizes(len(labels))
        order = stratified_order(labels, make_generator(self.split_seed, self.source.name, "split"))
        val, train = order[: self.val_size], order[self.val_size :][: self.size]
        self.val = self._fixed(levels[val], labels[val], "val")
        augmentations: dict[str, Callable[[Tensor], Tensor]]
        augmentations = {"flip": mirrored, "crop": shifted, "crop-flip": functools.partial(shifted, flip=True)}
        plain = (levels[train], labels[train], self.num_levels, self.support)
        self.train = Dequantized(*plain, augmentations.get(self.augment), self.noise_std)
        self.train_gen = Dequantized(*plain)

    def _fixed(self, levels: Tensor, labels: Tensor, split: str) -> FixedDequantized:
        stream = f"{self.source.name} {split}"
        return FixedDequantized(levels, labels, self.num_levels, self.support, self.split_seed, stream)

    def _check_arguments(self) -> None:
        check_integer("batch_size", self.batch_size, at_least=1)
        check_integer("separate_batch_size", self.separate_batch_size, at_least=1, optional=True)
        check_integer("size", self.size, at_least=1, optional=True)
        check_integer("val_size", self.val_size, at_least=0)
        check_number("noise_std", self.noise_std, at_least=0)
        if self.augment not in get_args(Augment):
            raise ValueError(f"'augment' should be one of {', '.join(get_args(Augment))}, got {self.augment!r}.")

    def _check_sizes(self, n: int) -> None:
        if self.val_size >= n:
            raise ValueError(f"'val_size' should be below the {n} training images, got {self.val_size}. Lower it.")
        if self.size is not None and self.size > n - self.val_size:
            raise ValueError(
                f"'size' should be at most the {n - self.val_size} training images that are not held out, "
                f"got {self.size}. Lower it or 'val_size'."
            )

    def _check_batches(self, loader: DataLoader[Any], name: str) -> None:
        if not len(loader):
            raise ValueError(
                f"'{name}' should be at most the number of training images on each rank, got {getattr(self, name)} for "
                f"{len(self.train)} images on all ranks together. Lower it, or use more images."
            )


def stratified_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A random permutation in which every contiguous block has the class proportions of the whole, up to rounding.

    Its first n indices are thus a stratified sample for every n.

    Arguments:
        labels: Shape (N,).
        generator: Source of the permutation.

    Returns:
        A permutation of 0..N-1, shape (N,).
    """
    order = torch.randperm(len(labels), generator=generator)
    shuffled, position = labels[order], torch.empty(len(labels), dtype=torch.double)
    for label in labels.unique():
        members = shuffled == label
        n = int(members.sum())
        # Spread each class evenly over (0, 1): sorting by position then interleaves the classes.
        position[members] = (torch.arange(n, dtype=torch.double) + 0.5) / n
    return order[position.argsort(stable=True)]
