"""The data module that all sets of real images are made of."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader

from ebm_lightning.data.augment import mirrored, shifted
from ebm_lightning.data.datasets import Dequantised, FixedDequantised
from ebm_lightning.data.loading import as_it_is, resumable_loader
from ebm_lightning.data.sources import Source
from ebm_lightning.data.splits import stratified_order
from ebm_lightning.streams import make_generator
from ebm_lightning.supports import Box

Augment = Literal["none", "flip", "crop", "crop-flip"]


class Images(L.LightningDataModule):
    """Real images of 256 levels, dequantised into [-1, 1]; the base of ``MNIST``, ``CIFAR10`` and the others.

    Training batches get fresh noise and validation and test images always the same. Validation images are held out
    from the training images, with every class in its share, and are the same for every seed of a run, every ``size``
    and every ``batch_size``. Test images are used by ``trainer.test`` alone. Memory holds one byte for each value.

    With ``separate_batch_size`` b, a training batch is ``{"clf": (x, y), "gen": (x, y)}``: ``batch_size`` images,
    augmented and noisy, for p(y|x), and b images as they are, in an order of their own, for p(x), which would else
    become the density of augmented images. An epoch ends when either runs out.

    References:
        Theis et al., A note on the evaluation of generative models, 2016 (dequantisation).
        Grathwohl et al. 2020 (two loaders, crops, noise). https://arxiv.org/abs/1912.03263
        Yang, Su & Ji, Towards bridging the performance gaps of joint energy-based models, 2023 (no augmentation for
        p(x), ``batch_size`` 128 and ``separate_batch_size`` 64). https://arxiv.org/abs/2209.07959

    Arguments:
        root: Folder that holds the images, in torchvision's layout.
        batch_size: Images in a training batch on each rank.
        val_size: Images held out from the training images; 0 for no validation.
        augment: ``"crop"`` pads training images by reflection, by 4 pixels of 32 or 2 of 28, and crops them at random;
            ``"flip"`` mirrors half of them left to right; ``"crop-flip"`` does both.
        noise_std: Standard deviation of Gaussian noise on training images, in units of x, reflected into the box (JEM:
            0.03). ``data_noise`` of :class:`~ebm_lightning.JEM` is added to it, unless p(x) has batches of its own.
        separate_batch_size: Images in a second batch for p(x), without augmentation and noise; None for none.
        size: Training images to use, with every class in its share; by default all that are not held out.
        download: Download the images if they are absent.
        split_seed: Of the split and of the noise on validation and test images.

    Raises:
        ValueError: An argument is out of its range.
        MissingImages: The images are absent, and were not to be downloaded or could not be.
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
        if stage != "test":
            self._set_up_training(*self.source.read(self.root, "train"))
        if stage in ("test", None):
            self.test = self._fixed(*self.source.read(self.root, "test"), "test")

    def train_dataloader(self) -> Any:
        clf = resumable_loader(self.train, self.batch_size, self.trainer, collate_fn=as_it_is)
        self._check_batches(clf, "batch_size")
        if self.separate_batch_size is None:
            return clf
        b = self.separate_batch_size
        gen = resumable_loader(self.train_gen, b, self.trainer, collate_fn=as_it_is, stream="gen")
        self._check_batches(gen, "separate_batch_size")
        return CombinedLoader({"clf": clf, "gen": gen}, "min_size")

    def val_dataloader(self) -> Any:
        # With a generator of its own, a loader leaves the global random state to training.
        return DataLoader(self.val, 256, generator=torch.Generator()) if self.val_size else []

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(self.test, 256, generator=torch.Generator())

    def _set_up_training(self, levels: Tensor, labels: Tensor) -> None:
        self._check_sizes(len(labels))
        order = stratified_order(labels, make_generator(self.split_seed, self.source.name, "split"))
        val, train = order[: self.val_size], order[self.val_size :][: self.size]
        self.val = self._fixed(levels[val], labels[val], "val")
        changes: dict[str, Callable[[Tensor], Tensor]]
        changes = {"flip": mirrored, "crop": shifted, "crop-flip": functools.partial(shifted, flip=True)}
        plain = (levels[train], labels[train], self.num_levels, self.support)
        self.train = Dequantised(*plain, changes.get(self.augment), self.noise_std)
        self.train_gen = Dequantised(*plain)

    def _fixed(self, levels: Tensor, labels: Tensor, split: str) -> FixedDequantised:
        stream = f"{self.source.name} {split}"
        return FixedDequantised(levels, labels, self.num_levels, self.support, self.split_seed, stream)

    def _check_arguments(self) -> None:
        for name, least in (
            ("batch_size", 1),
            ("separate_batch_size", 1),
            ("size", 1),
            ("val_size", 0),
            ("noise_std", 0),
        ):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"'{name}' should be at least {least}, got {value}.")
        if self.augment not in get_args(Augment):
            raise ValueError(f"'augment' should be among {', '.join(get_args(Augment))}, got {self.augment!r}.")

    def _check_sizes(self, n: int) -> None:
        if self.val_size >= n:
            raise ValueError(f"'val_size' should leave some of the {n} training images, got {self.val_size}. Lower it.")
        if self.size is not None and self.size > n - self.val_size:
            raise ValueError(
                f"'size' should be at most the {n - self.val_size} training images that are not held out, "
                f"got {self.size}. Lower it, or 'val_size'."
            )

    def _check_batches(self, loader: DataLoader[Any], name: str) -> None:
        if not len(loader):
            raise ValueError(
                f"'{name}' should be at most the training images of one rank, got {getattr(self, name)} for "
                f"{len(self.train)} images in all. Lower it, or use more images."
            )
