"""Data modules of standard image data sets: MNIST, FashionMNIST, CIFAR-10, CIFAR-100, SVHN and notMNIST."""

from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ebm_lightning.data.dequantization import FixedDequantized
from ebm_lightning.data.images import ImageDataModule
from ebm_lightning.data.sources import SOURCES
from ebm_lightning.supports import Box

GRAY = Box(-1.0, 1.0, (1, 28, 28))
COLOR = Box(-1.0, 1.0, (3, 32, 32))
DIGITS = tuple("0123456789")
CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


class MNIST(ImageDataModule):
    """70000 handwritten digits, 28x28, grayscale; arguments as for :class:`~ebm_lightning.data.ImageDataModule`.

    References:
        LeCun et al., Gradient-based learning applied to document recognition, 1998.
    """

    source = SOURCES["MNIST"]
    support = GRAY
    num_classes = 10
    class_names = DIGITS


class FashionMNIST(ImageDataModule):
    """70000 articles of clothing, 28x28, grayscale; arguments as for :class:`~ebm_lightning.data.ImageDataModule`.

    References:
        Xiao et al. 2017. https://arxiv.org/abs/1708.07747
    """

    source = SOURCES["FashionMNIST"]
    support = GRAY
    num_classes = 10
    class_names = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


class CIFAR10(ImageDataModule):
    """60000 color photographs of 10 classes, 32x32; arguments as for :class:`~ebm_lightning.data.ImageDataModule`.

    References:
        Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """

    source = SOURCES["CIFAR10"]
    support = COLOR
    num_classes = 10
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CIFAR100(ImageDataModule):
    """60000 color photographs of 100 classes, 32x32; arguments as for :class:`~ebm_lightning.data.ImageDataModule`.

    References:
        Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """

    source = SOURCES["CIFAR100"]
    support = COLOR
    num_classes = 100
    class_names = tuple(CIFAR100_NAMES.split())


class SVHN(ImageDataModule):
    """99289 digits of house numbers, 32x32, color; arguments as for :class:`~ebm_lightning.data.ImageDataModule`.

    Needs SciPy. Use ``augment="crop"``, not ``"crop-flip"``: flipped digits are not digits.

    References:
        Netzer et al., Reading digits in natural images with unsupervised feature learning, 2011.
    """

    source = SOURCES["SVHN"]
    support = COLOR
    num_classes = 10
    class_names = DIGITS


class NotMNIST(L.LightningDataModule):
    """Test images of the letters A to J in many fonts, 28x28, grayscale: often used as out-of-distribution for MNIST.

    The images are not downloaded automatically. Put the files ``t10k-images-idx3-ubyte.gz`` and
    ``t10k-labels-idx1-ubyte.gz`` into the folder ``notMNIST/raw`` below the root.

    References:
        Bulatov, notMNIST dataset, 2011.

    Arguments:
        root: Folder of the images.
        split_seed: Seed of the dequantization noise.

    Raises:
        MissingImages: The images are not on disk.
    """

    source = SOURCES["notMNIST"]
    support = GRAY
    num_classes = 10
    num_levels = 256
    class_names = tuple("ABCDEFGHIJ")

    def __init__(self, root: str | Path = "data", split_seed: int = 0) -> None:
        super().__init__()
        self.root = Path(root)
        self.split_seed = split_seed

    def setup(self, stage: str | None = None) -> None:
        levels, labels = self.source.read(self.root, "test")
        self.test = FixedDequantized(levels, labels, 256, self.support, self.split_seed, f"{self.source.name} test")

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(self.test, batch_size=256, generator=torch.Generator())

    predict_dataloader = test_dataloader
