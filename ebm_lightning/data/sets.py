"""The usual sets of real images."""

from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ebm_lightning.data.datasets import FixedDequantised
from ebm_lightning.data.images import Images
from ebm_lightning.data.sources import SOURCES
from ebm_lightning.supports import Box

GREY = Box(-1.0, 1.0, (1, 28, 28))
COLOUR = Box(-1.0, 1.0, (3, 32, 32))
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


class MNIST(Images):
    """70000 handwritten digits, 28x28 grey; arguments as for :class:`~ebm_lightning.data.Images`.

    References:
        LeCun et al., Gradient-based learning applied to document recognition, 1998.
    """

    source = SOURCES["MNIST"]
    support = GREY
    num_classes = 10
    class_names = DIGITS


class FashionMNIST(Images):
    """70000 articles of clothing, 28x28 grey; arguments as for :class:`~ebm_lightning.data.Images`.

    References:
        Xiao et al. 2017. https://arxiv.org/abs/1708.07747
    """

    source = SOURCES["FashionMNIST"]
    support = GREY
    num_classes = 10
    class_names = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


class CIFAR10(Images):
    """60000 colour photographs, 32x32; arguments as for :class:`~ebm_lightning.data.Images`.

    References:
        Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """

    source = SOURCES["CIFAR10"]
    support = COLOUR
    num_classes = 10
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CIFAR100(Images):
    """60000 colour photographs of 100 classes, 32x32; arguments as for :class:`~ebm_lightning.data.Images`.

    References:
        Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """

    source = SOURCES["CIFAR100"]
    support = COLOUR
    num_classes = 100
    class_names = tuple(CIFAR100_NAMES.split())


class SVHN(Images):
    """99289 house numbers, 32x32 in colour; arguments as for :class:`~ebm_lightning.data.Images`. Needs SciPy.

    Mirrored numbers are no numbers: take ``"crop"``, not ``"crop-flip"``.

    References:
        Netzer et al., Reading digits in natural images with unsupervised feature learning, 2011.
    """

    source = SOURCES["SVHN"]
    support = COLOUR
    num_classes = 10
    class_names = DIGITS


class NotMNIST(L.LightningDataModule):
    """Letters A to J in many fonts, 28x28 grey, to test with: a classic that is foreign to MNIST.

    Nothing downloads it: the files are ``notMNIST/raw/t10k-images-idx3-ubyte.gz`` and ``t10k-labels-idx1-ubyte.gz``
    below the root.

    References:
        Bulatov, notMNIST dataset, 2011.

    Arguments:
        root: Folder that holds the images.
        split_seed: Of the noise on them.

    Raises:
        MissingImages: The images are absent.
    """

    source = SOURCES["notMNIST"]
    support = GREY
    num_classes = 10
    num_levels = 256
    class_names = tuple("ABCDEFGHIJ")

    def __init__(self, root: str | Path = "data", split_seed: int = 0) -> None:
        super().__init__()
        self.root = Path(root)
        self.split_seed = split_seed

    def setup(self, stage: str | None = None) -> None:
        levels, labels = self.source.read(self.root, "test")
        self.test = FixedDequantised(levels, labels, 256, self.support, self.split_seed, f"{self.source.name} test")

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(self.test, 256, generator=torch.Generator())
