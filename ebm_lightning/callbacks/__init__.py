"""Callbacks that evaluate a model without changing the run, and DivergenceGuard, which rolls back a diverging run.

Those that draw figures need matplotlib and torchvision, so each is imported when it is first used.
"""

from typing import TYPE_CHECKING

from ebm_lightning._lazy import lazy_exports

if TYPE_CHECKING:
    from ebm_lightning.callbacks.ais_log_z import AISLogZ as AISLogZ
    from ebm_lightning.callbacks.calibration import Calibration as Calibration
    from ebm_lightning.callbacks.chain_diagnostics import ChainDiagnostics as ChainDiagnostics
    from ebm_lightning.callbacks.divergence_guard import DivergenceGuard as DivergenceGuard
    from ebm_lightning.callbacks.energy_extremes import EnergyExtremes as EnergyExtremes
    from ebm_lightning.callbacks.energy_landscape import EnergyLandscape as EnergyLandscape
    from ebm_lightning.callbacks.error_bars import ErrorBars as ErrorBars
    from ebm_lightning.callbacks.fresh_samples import FreshSamples as FreshSamples
    from ebm_lightning.callbacks.ood_detection import OODDetection as OODDetection
    from ebm_lightning.callbacks.refinement import Refinement as Refinement
    from ebm_lightning.callbacks.robustness import Robustness as Robustness
    from ebm_lightning.callbacks.sample_agreement import SampleAgreement as SampleAgreement
    from ebm_lightning.callbacks.sample_grid import SampleGrid as SampleGrid
    from ebm_lightning.callbacks.sample_quality import SampleQuality as SampleQuality

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ais_log_z": ("AISLogZ",),
        "calibration": ("Calibration",),
        "chain_diagnostics": ("ChainDiagnostics",),
        "divergence_guard": ("DivergenceGuard",),
        "energy_landscape": ("EnergyLandscape",),
        "energy_extremes": ("EnergyExtremes",),
        "error_bars": ("ErrorBars",),
        "fresh_samples": ("FreshSamples",),
        "ood_detection": ("OODDetection",),
        "refinement": ("Refinement",),
        "robustness": ("Robustness",),
        "sample_agreement": ("SampleAgreement",),
        "sample_grid": ("SampleGrid",),
        "sample_quality": ("SampleQuality",),
    },
)
