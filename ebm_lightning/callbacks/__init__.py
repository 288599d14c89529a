"""Callbacks that evaluate a model without changing the run, and DivergenceGuard, which rolls back a diverging run."""

from ebm_lightning.callbacks.ais_log_z import AISLogZ
from ebm_lightning.callbacks.calibration import Calibration
from ebm_lightning.callbacks.chain_diagnostics import ChainDiagnostics
from ebm_lightning.callbacks.divergence_guard import DivergenceGuard
from ebm_lightning.callbacks.energy_landscape import EnergyLandscape
from ebm_lightning.callbacks.fresh_samples import FreshSamples
from ebm_lightning.callbacks.ood_detection import OODDetection
from ebm_lightning.callbacks.refinement import Refinement
from ebm_lightning.callbacks.robustness import Robustness
from ebm_lightning.callbacks.sample_agreement import SampleAgreement
from ebm_lightning.callbacks.sample_grid import SampleGrid
from ebm_lightning.callbacks.sample_quality import SampleQuality

__all__ = [
    "AISLogZ",
    "Calibration",
    "ChainDiagnostics",
    "DivergenceGuard",
    "EnergyLandscape",
    "FreshSamples",
    "OODDetection",
    "Refinement",
    "Robustness",
    "SampleAgreement",
    "SampleGrid",
    "SampleQuality",
]
