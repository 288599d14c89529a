"""Small data and models for the tests of ``evaluate``."""

from pathlib import Path
from typing import Any

import torch

from ebm_lightning import JEM, SGLD, ConditionalEBM, ReplayBuffer
from ebm_lightning.data import ImageArrays
from ebm_lightning.networks import MLP
from tests.data.pictures import write_arrays

SETS = ("noise", "shuffled", "inverted", "transposed", "flipped", "interpolated")
SCORES = ("log_density", "max_probability", "negative_entropy", "approximate_mass")
SMALL: dict[str, Any] = {
    "bins": 10,
    "ood_images": 30,
    "samples": 24,
    "sampler_steps": 2,
    "attacked_images": 15,
    "attack_steps": 2,
    "linf": (0.1,),
    "l2": (0.5,),
    "noise": (0.5,),
    "refine_steps": (0, 2),
    "ais_temperatures": 4,
    "ais_num_chains": 20,
    "device": "cpu",
    "progress_bar": False,
}
"""Settings of ``evaluate`` that take little time."""
MEASURED = {
    *("test/accuracy", "test/nll", "test/ece", "ais/log_z", "ais/bits_per_dim", "ais/bits_per_dim_std_err"),
    *(f"ood/{name}/{score}/{metric}" for name in SETS for score in SCORES for metric in ("auroc", "fpr95")),
    *(f"ood/{name}/auroc" for name in SETS),
    *(f"robust/{name}" for name in ("clean", "linf_0.1", "l2_0.5", "noise_0.5", "images")),
    *("refine/accuracy_0", "refine/accuracy_2", "refine/energy_change_2"),
}
"""The metrics of each model with these settings, without those of samples."""


def arrays(folder: Path, **arguments: Any) -> ImageArrays:
    """60 training and 50 test images, 3x8x8, of 3 classes."""
    return ImageArrays(write_arrays(folder, n_test=50), 8, 16, **arguments)


def small_jem(data: ImageArrays, **arguments: Any) -> JEM:
    torch.manual_seed(0)
    sampler, chains = SGLD(0.1, 0.01, 3), ReplayBuffer(16)
    return JEM(MLP(192, 3, (8,)), 3, data.support, **{"sampler": sampler, "chains": chains, **arguments})


def small_classifier(data: ImageArrays) -> ConditionalEBM:
    torch.manual_seed(1)
    return ConditionalEBM(MLP(192, 3, (8,)), 3, data.support)
