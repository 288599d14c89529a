"""Data modules with dequantization and shuffling that resumes from a checkpoint at any step.

Each data module has a ``support`` that contains its x.
"""

from ebm_lightning.data.augmentation import mirrored, shifted
from ebm_lightning.data.dequantization import Binarized, Dequantized, FixedDequantized, dequantize
from ebm_lightning.data.digits import Digits
from ebm_lightning.data.image_arrays import ImageArrays
from ebm_lightning.data.image_sets import CIFAR10, CIFAR100, MNIST, SVHN, FashionMNIST, NotMNIST
from ebm_lightning.data.images import Augment, ImageDataModule, stratified_order
from ebm_lightning.data.near_and_far import NearAndFar, near_and_far
from ebm_lightning.data.ood_images import OOD_PAIRS, ood_image_sets, ood_images
from ebm_lightning.data.resumable_loader import EpochSampler, resumable_loader
from ebm_lightning.data.rings import Rings
from ebm_lightning.data.sources import SOURCES, MissingImages, Source
from ebm_lightning.data.table import Table
from ebm_lightning.data.textures import textures
from ebm_lightning.data.waves import Waves

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "OOD_PAIRS",
    "SOURCES",
    "SVHN",
    "Augment",
    "Binarized",
    "Dequantized",
    "Digits",
    "EpochSampler",
    "FashionMNIST",
    "FixedDequantized",
    "ImageArrays",
    "ImageDataModule",
    "MissingImages",
    "NearAndFar",
    "NotMNIST",
    "Rings",
    "Source",
    "Table",
    "Waves",
    "dequantize",
    "mirrored",
    "near_and_far",
    "ood_image_sets",
    "ood_images",
    "resumable_loader",
    "shifted",
    "stratified_order",
    "textures",
]
