"""Data modules whose x lies in a stated box, in an order that a checkpoint can go on with from any step."""

from ebm_lightning.data.datasets import Binarised, Dequantised
from ebm_lightning.data.digits import Digits
from ebm_lightning.data.loading import EpochSampler, dequantise, resumable_loader
from ebm_lightning.data.rings import Rings

__all__ = [
    "Binarised",
    "Dequantised",
    "Digits",
    "EpochSampler",
    "Rings",
    "dequantise",
    "resumable_loader",
]
