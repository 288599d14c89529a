"""Coordinates: invertible maps of x, fitted to the training data, in which chains move."""

from ebm_lightning.coordinates.base import Coordinates, Identity
from ebm_lightning.coordinates.compose import Compose
from ebm_lightning.coordinates.flow import Flow
from ebm_lightning.coordinates.normal_scores import NormalScores
from ebm_lightning.coordinates.quantiles import Quantiles
from ebm_lightning.coordinates.radial_power import RadialPower
from ebm_lightning.coordinates.whitening import Whitening

__all__ = ["Compose", "Coordinates", "Flow", "Identity", "NormalScores", "Quantiles", "RadialPower", "Whitening"]
