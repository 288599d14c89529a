"""Any classifier as a joint energy model, in an ordinary Lightning project."""

from ebm_lightning.attacks import PGD
from ebm_lightning.callbacks import (
    AISLogZ,
    Calibration,
    ChainDiagnostics,
    DivergenceGuard,
    EnergyLandscape,
    FreshSamples,
    OODDetection,
    Refinement,
    Robustness,
    SampleGrid,
    SampleQuality,
)
from ebm_lightning.chains import Chains, DataInit, ReplayBuffer, SupportInit
from ebm_lightning.energies import JointEnergy
from ebm_lightning.modules import JEM, SADAJEM, ClassificationRBM, ConditionalEBM
from ebm_lightning.partition import LogZ, ais, exact_log_z, reverse_ais
from ebm_lightning.samplers import GHMC, HMC, MALA, PYLD, SGLD, BlockGibbs, Compute, Sampler
from ebm_lightning.starts import ClassGaussians, Start
from ebm_lightning.supports import Binary, Box, Euclidean, Gaussian, Support

__version__ = "0.1.0"

__all__ = [
    "GHMC",
    "HMC",
    "JEM",
    "MALA",
    "PGD",
    "PYLD",
    "SADAJEM",
    "SGLD",
    "AISLogZ",
    "Binary",
    "BlockGibbs",
    "Box",
    "Calibration",
    "ChainDiagnostics",
    "Chains",
    "ClassGaussians",
    "ClassificationRBM",
    "Compute",
    "ConditionalEBM",
    "DataInit",
    "DivergenceGuard",
    "EnergyLandscape",
    "Euclidean",
    "FreshSamples",
    "Gaussian",
    "JointEnergy",
    "LogZ",
    "OODDetection",
    "Refinement",
    "ReplayBuffer",
    "Robustness",
    "SampleGrid",
    "SampleQuality",
    "Sampler",
    "Start",
    "Support",
    "SupportInit",
    "ais",
    "exact_log_z",
    "reverse_ais",
]
