"""The digits that scikit-learn bundles: real images without a download."""

from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning._lazy import optional_packages
from ebm_lightning.checks import check_integer
from ebm_lightning.data.augmentation import affine
from ebm_lightning.data.dequantization import Dequantized, dequantize
from ebm_lightning.data.resumable_loader import identity_collate, resumable_loader
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Box


class Digits(L.LightningDataModule):
    """scikit-learn's 1797 handwritten digits, 8x8 pixels of 17 levels, dequantized into [-1, 1].

    The split is stratified: 60 % training, 15 % validation and 25 % test images. It depends on ``split_seed`` only, not
    on the seed of the run. The dequantization noise of validation and test images is fixed, so that evaluations are
    reproducible. Needs scikit-learn.

    With ``separate_batch_size`` b, a training batch is ``{"clf": (x, y), "gen": (x, y)}``. The second part has b images
    for p(x) that are not augmented, because the model would otherwise learn the density of augmented images.

    References:
        Alpaydin & Kaynak, Optical recognition of handwritten digits, UCI, 1998.

    Arguments:
        batch_size: Images in a batch.
        augment: ``"affine"`` rotates, scales, shears and shifts training images at random; ``"none"`` does not.
        separate_batch_size: Images in a second training batch for p(x), without augmentation; None for no second batch.
        split_seed: Seed of the split and of the noise on validation and test images.

    Raises:
        ValueError: ``augment`` is unknown, or ``separate_batch_size`` is below 1.
    """

    num_classes = 10
    num_levels = 17
    support = Box(-1.0, 1.0, (1, 8, 8))

    def __init__(
        self,
        batch_size: int = 64,
        augment: Literal["none", "affine"] = "none",
        separate_batch_size: int | None = None,
        split_seed: int = 0,
    ) -> None:
        super().__init__()
        if augment not in ("none", "affine"):
            raise ValueError(f"'augment' should be 'none' or 'affine', got {augment!r}.")
        check_integer("separate_batch_size", separate_batch_size, at_least=1, optional=True)
        self.batch_size = batch_size
        self.augment = augment
        self.separate_batch_size = separate_batch_size
        self.split_seed = split_seed

    def setup(self, stage: str | None = None) -> None:
        with optional_packages("Digits"):
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        levels, y = torch.from_numpy(images).float().view(-1, 1, 8, 8), torch.from_numpy(labels).long()
        rest, test = train_test_split(range(len(y)), test_size=0.25, stratify=y, random_state=self.split_seed)
        train, val = train_test_split(rest, test_size=0.2, stratify=y[rest], random_state=self.split_seed)
        plain = (levels[train], y[train], self.num_levels, self.support)
        self.train = Dequantized(*plain, affine if self.augment == "affine" else None)
        self.train_gen = Dequantized(*plain)
        self.val = self._fixed(levels[val], y[val], "val")
        self.test = self._fixed(levels[test], y[test], "test")

    def _fixed(self, levels: Tensor, y: Tensor, name: str) -> TensorDataset:
        generator = make_generator(self.split_seed, "digits", name)
        return TensorDataset(dequantize(levels, self.num_levels, self.support, generator), y)

    def train_dataloader(self) -> Any:
        clf = resumable_loader(self.train, self.batch_size, self.trainer, collate_fn=identity_collate)
        if self.separate_batch_size is None:
            return clf
        b = self.separate_batch_size
        gen = resumable_loader(self.train_gen, b, self.trainer, collate_fn=identity_collate, stream="gen")
        return CombinedLoader({"clf": clf, "gen": gen}, "min_size")

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        # A separate generator: without one, starting the loader would advance the global random state.
        return DataLoader(self.val, batch_size=256, generator=torch.Generator())

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.test, batch_size=256, generator=torch.Generator())

    predict_dataloader = test_dataloader
