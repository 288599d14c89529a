"""Evaluation: scores, out-of-distribution sets, metrics, attacks, and a report that compares models."""

from typing import TYPE_CHECKING

from ebm_lightning._lazy import lazy_exports

if TYPE_CHECKING:
    from ebm_lightning.evaluation.attacks import PGD as PGD
    from ebm_lightning.evaluation.evaluate_models import evaluate as evaluate
    from ebm_lightning.evaluation.feature_detectors import (
        Detector as Detector,
        NetworkOutputs as NetworkOutputs,
        OfModel as OfModel,
        pytorch_ood_detectors as pytorch_ood_detectors,
    )
    from ebm_lightning.evaluation.features import Penultimate as Penultimate
    from ebm_lightning.evaluation.metrics import OODScores as OODScores
    from ebm_lightning.evaluation.ood_comparison import OODResults as OODResults, evaluate_ood as evaluate_ood
    from ebm_lightning.evaluation.ood_sets import OOD_SETS as OOD_SETS
    from ebm_lightning.evaluation.scores import (
        approximate_mass as approximate_mass,
        log_density as log_density,
        max_probability as max_probability,
        negative_entropy as negative_entropy,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "attacks": ("PGD",),
        "feature_detectors": ("Detector", "NetworkOutputs", "OfModel", "pytorch_ood_detectors"),
        "features": ("Penultimate",),
        "metrics": ("OODScores",),
        "ood_sets": ("OOD_SETS",),
        "evaluate_models": ("evaluate",),
        "ood_comparison": ("OODResults", "evaluate_ood"),
        "scores": ("approximate_mass", "log_density", "max_probability", "negative_entropy"),
    },
)
