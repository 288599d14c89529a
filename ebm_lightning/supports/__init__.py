"""Supports: the domain of x with a reference density q on it."""

from ebm_lightning.supports.autoregressive import AutoregressiveDensity
from ebm_lightning.supports.base import Support
from ebm_lightning.supports.binary import Binary
from ebm_lightning.supports.box import Box
from ebm_lightning.supports.class_gaussians import ClassGaussians
from ebm_lightning.supports.density import Density
from ebm_lightning.supports.euclidean import Euclidean
from ebm_lightning.supports.gaussian import Gaussian

__all__ = ["AutoregressiveDensity", "Binary", "Box", "ClassGaussians", "Density", "Euclidean", "Gaussian", "Support"]
