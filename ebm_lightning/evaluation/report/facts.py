"""The lines under the title of an evaluation report: the models, the data and the settings."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import nn

from ebm_lightning.evaluation.measurements import Measurements
from ebm_lightning.evaluation.names import model_names
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.supports import Density
from ebm_lightning.supports.density import FittedDensity


def evaluation_facts(
    models: Mapping[str, ConditionalEBM], data: Any, measurements: Measurements, metrics: Mapping[str, float]
) -> list[str]:
    """What was evaluated, on which data, and with which settings.

    Arguments:
        models: The models by key.
        data: The data module or the loader of test images.
        measurements: What was measured.
        metrics: Metrics of the evaluation, for counts.
    """
    s, names = measurements.settings, model_names(models)
    return [
        f"{'. '.join(_model(key, model, names[key]) for key, model in models.items())}.",
        *_different_networks(models),
        f"Data: all {metrics['test/images']:.0f} test images of {_data(data)}, unless a smaller number is stated. Then "
        "they are evenly spaced over the test images.",
        f"Chains of all models: {measurements.sampler}, with {s.sampler_steps} steps from "
        f"{_density(measurements.initial)}.",
        *[f"Left out, because its images were not found: {name}." for name in measurements.missing],
        f"Seed {s.seed}; torch {torch.__version__}; {metrics['seconds']:.0f} seconds.",
    ]


def _model(key: str, model: ConditionalEBM, name: str) -> str:
    parameters, kind = sum(p.numel() for p in model.classifier.parameters()), type(model).__name__
    called = "" if name == kind else f", called '{name}' below"
    return f"{key.capitalize()}: {kind} of {type(model.classifier).__name__} with {parameters:,} parameters{called}"


def _different_networks(models: Mapping[str, ConditionalEBM]) -> list[str]:
    shapes = {str(_shapes(model.classifier)) for model in models.values()}
    return [] if len(shapes) == 1 else ["THE NETWORKS DIFFER, so the training is not the only difference."]


def _shapes(network: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in network.parameters()]


def _data(data: Any) -> str:
    return type(data if isinstance(data, L.LightningDataModule) else data.dataset).__name__


def _density(initial: Density | None) -> str:
    if initial is None:
        return "the support's reference density"
    return type(initial).__name__ + (" fitted to training images" if isinstance(initial, FittedDensity) else "")
