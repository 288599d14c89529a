"""Data modules whose x lies in a stated box, in an order that a checkpoint can go on with from any step."""

from ebm_lightning.data.arrays import ImageArrays
from ebm_lightning.data.augment import mirrored, shifted
from ebm_lightning.data.datasets import Binarised, Dequantised, FixedDequantised
from ebm_lightning.data.digits import Digits
from ebm_lightning.data.foreign import OOD_PAIRS, ood_image_sets, ood_images
from ebm_lightning.data.images import Augment, Images
from ebm_lightning.data.loading import EpochSampler, dequantise, resumable_loader
from ebm_lightning.data.rings import Rings
from ebm_lightning.data.sets import CIFAR10, CIFAR100, MNIST, SVHN, FashionMNIST, NotMNIST
from ebm_lightning.data.sources import SOURCES, MissingImages, Source
from ebm_lightning.data.splits import stratified_order

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "OOD_PAIRS",
    "SOURCES",
    "SVHN",
    "Augment",
    "Binarised",
    "Dequantised",
    "Digits",
    "EpochSampler",
    "FashionMNIST",
    "FixedDequantised",
    "ImageArrays",
    "Images",
    "MissingImages",
    "NotMNIST",
    "Rings",
    "Source",
    "dequantise",
    "mirrored",
    "ood_image_sets",
    "ood_images",
    "resumable_loader",
    "shifted",
    "stratified_order",
]
