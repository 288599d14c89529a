"""The domain of x: where a density lives, and the reference density q that makes its mass finite."""

from ebm_lightning.supports.base import Support
from ebm_lightning.supports.binary import Binary
from ebm_lightning.supports.box import Box
from ebm_lightning.supports.euclidean import Euclidean
from ebm_lightning.supports.gaussian import Gaussian

__all__ = ["Binary", "Box", "Euclidean", "Gaussian", "Support"]
