"""Any classifier as a joint energy model, in an ordinary Lightning project.

Names are imported on first use: the core (supports, coordinates, energies, samplers, chains, partition, networks, rbm,
rng) needs torch and the standard library only.
"""

from typing import TYPE_CHECKING

from ebm_lightning._lazy import lazy_exports

if TYPE_CHECKING:
    from ebm_lightning.callbacks import (
        AISLogZ as AISLogZ,
        Calibration as Calibration,
        ChainDiagnostics as ChainDiagnostics,
        DivergenceGuard as DivergenceGuard,
        EnergyExtremes as EnergyExtremes,
        EnergyLandscape as EnergyLandscape,
        ErrorBars as ErrorBars,
        FreshSamples as FreshSamples,
        OODDetection as OODDetection,
        Refinement as Refinement,
        Robustness as Robustness,
        SampleAgreement as SampleAgreement,
        SampleGrid as SampleGrid,
        SampleQuality as SampleQuality,
    )
    from ebm_lightning.chains import (
        Chains as Chains,
        DataInit as DataInit,
        ReplayBuffer as ReplayBuffer,
        ReweightedBuffer as ReweightedBuffer,
        SupportInit as SupportInit,
    )
    from ebm_lightning.coordinates import (
        Compose as Compose,
        Coordinates as Coordinates,
        Flow as Flow,
        NormalScores as NormalScores,
        Quantiles as Quantiles,
        RadialPower as RadialPower,
        Whitening as Whitening,
    )
    from ebm_lightning.energies import (
        JointEnergy as JointEnergy,
    )
    from ebm_lightning.evaluation import (
        PGD as PGD,
        evaluate as evaluate,
        evaluate_ood as evaluate_ood,
    )
    from ebm_lightning.models import (
        load as load,
    )
    from ebm_lightning.modules import (
        JEM as JEM,
        SADAJEM as SADAJEM,
        ClassificationRBM as ClassificationRBM,
        ConditionalEBM as ConditionalEBM,
        FeatureJEM as FeatureJEM,
        NoiseContrastiveJEM as NoiseContrastiveJEM,
    )
    from ebm_lightning.partition import (
        LogZ as LogZ,
        Normal as Normal,
        ais as ais,
        exact_log_z as exact_log_z,
        reverse_ais as reverse_ais,
    )
    from ebm_lightning.samplers import (
        GHMC as GHMC,
        HMC as HMC,
        MALA as MALA,
        PYLD as PYLD,
        SGLD as SGLD,
        Adaptation as Adaptation,
        BlockGibbs as BlockGibbs,
        Compute as Compute,
        NoiseRefresh as NoiseRefresh,
        ReferenceJumps as ReferenceJumps,
        Sampler as Sampler,
    )
    from ebm_lightning.supports import (
        AutoregressiveDensity as AutoregressiveDensity,
        Binary as Binary,
        Box as Box,
        ClassGaussians as ClassGaussians,
        Density as Density,
        Euclidean as Euclidean,
        Gaussian as Gaussian,
        Support as Support,
    )

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "callbacks": (
            "AISLogZ",
            "Calibration",
            "ChainDiagnostics",
            "DivergenceGuard",
            "EnergyLandscape",
            "EnergyExtremes",
            "ErrorBars",
            "FreshSamples",
            "OODDetection",
            "Refinement",
            "Robustness",
            "SampleAgreement",
            "SampleGrid",
            "SampleQuality",
        ),
        "chains": ("Chains", "DataInit", "ReplayBuffer", "ReweightedBuffer", "SupportInit"),
        "coordinates": ("Compose", "Coordinates", "Flow", "NormalScores", "Quantiles", "RadialPower", "Whitening"),
        "energies": ("JointEnergy",),
        "evaluation": ("PGD", "evaluate", "evaluate_ood"),
        "models": ("load",),
        "modules": ("JEM", "SADAJEM", "ClassificationRBM", "ConditionalEBM", "FeatureJEM", "NoiseContrastiveJEM"),
        "partition": ("LogZ", "Normal", "ais", "exact_log_z", "reverse_ais"),
        "samplers": (
            "Adaptation",
            "GHMC",
            "HMC",
            "MALA",
            "PYLD",
            "SGLD",
            "BlockGibbs",
            "Compute",
            "NoiseRefresh",
            "ReferenceJumps",
            "Sampler",
        ),
        "supports": (
            "AutoregressiveDensity",
            "Binary",
            "Box",
            "ClassGaussians",
            "Density",
            "Euclidean",
            "Gaussian",
            "Support",
        ),
    },
)
