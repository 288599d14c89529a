"""Reference classifiers.

By default they have no normalization layers, so that the energy of one x does not depend on its batch.
"""

from ebm_lightning.networks.convnets import ConvNet, StridedConvNet, ThresholdConvNet
from ebm_lightning.networks.density_head import DensityHead
from ebm_lightning.networks.mlp import MLP
from ebm_lightning.networks.spectral_norm import SpectrallyNormalized
from ebm_lightning.networks.split_logits import SplitLogits
from ebm_lightning.networks.sum_logits import SumLogits
from ebm_lightning.networks.wide_resnet import WideResNet

__all__ = [
    "MLP",
    "ConvNet",
    "DensityHead",
    "SpectrallyNormalized",
    "SplitLogits",
    "StridedConvNet",
    "SumLogits",
    "ThresholdConvNet",
    "WideResNet",
]
