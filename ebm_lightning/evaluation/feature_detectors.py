"""Out-of-distribution detectors that work on features and logits of a trained network: those of pytorch-ood, and ours.

Scores are larger for in-distribution data; those of pytorch-ood are negated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ebm_lightning.evaluation.optional import import_optional
from ebm_lightning.modules import FeatureJEM


class NetworkOutputs(NamedTuple):
    """What a network makes of a set of inputs.

    Attributes:
        features: Shape (N, D).
        logits: Shape (N, K).
        y: Labels, shape (N,); None if there are none.
    """

    features: Tensor
    logits: Tensor
    y: Tensor | None = None


class Detector(Protocol):
    """A detector: fitted to training data and validation data, it scores any data."""

    def fit(self, train: NetworkOutputs, val: NetworkOutputs) -> None:
        """Fit the detector to in-distribution data."""

    def score(self, data: NetworkOutputs) -> Tensor:
        """Scores, shape (N,), larger for in-distribution data."""


@dataclass
class OfPytorchOOD:
    """A detector of pytorch-ood.

    Arguments:
        detector: The detector.
        predict: Maps the outputs to its scores, which are larger for out-of-distribution data.
        fit_to: Fits it to the outputs of training and validation data. By default nothing is fitted.
    """

    detector: Any
    predict: Callable[[Any, NetworkOutputs], Tensor]
    fit_to: Callable[[Any, NetworkOutputs, NetworkOutputs], Any] | None = None

    def fit(self, train: NetworkOutputs, val: NetworkOutputs) -> None:
        if self.fit_to is not None:
            self.fit_to(self.detector, train, val)

    def score(self, data: NetworkOutputs) -> Tensor:
        with torch.no_grad():
            return -self.predict(self.detector, data).double()


@dataclass
class OfModel:
    """A score of a fitted model.

    Arguments:
        model: The model.
        function: Maps the model and features (N, D) to scores (N,). By default the one that ``model.score`` uses.
    """

    model: FeatureJEM
    function: Callable[[FeatureJEM, Tensor], Tensor] | None = None

    def fit(self, train: NetworkOutputs, val: NetworkOutputs) -> None:
        pass

    def score(self, data: NetworkOutputs) -> Tensor:
        function = FeatureJEM.feature_score if self.function is None else self.function
        with torch.no_grad():
            parts = [function(self.model, z.to(self.model.device)) for z in data.features.split(1000)]
        return torch.cat(parts).double().cpu()


def pytorch_ood_detectors(last_linear: nn.Linear | None = None, neighbors: int = 50) -> dict[str, Detector]:
    """Eight detectors of pytorch-ood, by name. Needs ``pip install "ebm_lightning[ood]"``.

    ViM and ReAct need the layer that maps features to logits; without it they are left out.

    References:
        Kirchheim, Filax & Ortmeier, PyTorch-OOD, 2022. https://pytorch-ood.readthedocs.io

    Arguments:
        last_linear: The linear layer whose input the features are.
        neighbors: k of KNN; the paper takes 50 for CIFAR-10.
    """
    import_optional("pytorch_ood", "the default detectors", "pass your own 'detectors'")
    from pytorch_ood import detector as ood

    by_logits = {"plain energy": ood.EnergyBased, "maximum softmax": ood.MaxSoftmax, "entropy": ood.Entropy}
    detectors: dict[str, Detector] = {
        name: OfPytorchOOD(kind(None), lambda d, data: d.predict_logits(data.logits))
        for name, kind in by_logits.items()
    }
    detectors["scaled energy"] = OfPytorchOOD(
        ood.TemperatureScaling(None),
        lambda d, data: ood.EnergyBased.score(data.logits, t=float(d.t)),
        lambda d, train, val: d.fit_logits(val.logits, val.y),
    )
    of_features = {"KNN": ood.KNN(None, k=neighbors), "Mahalanobis": ood.Mahalanobis(None)}
    if last_linear is not None:
        weight, bias = _weights(last_linear)
        of_features["ViM"] = ood.ViM(None, last_linear.in_features // 2, weight, bias)
    detectors |= {
        name: OfPytorchOOD(
            made,
            lambda d, data: d.predict_features(data.features),
            lambda d, train, val: d.fit_features(train.features, train.y),
        )
        for name, made in of_features.items()
    }
    if last_linear is not None:
        detectors["ReAct"] = OfPytorchOOD(
            ood.ReAct(nn.Identity(), lambda z: z @ weight.T + bias),
            lambda d, data: d.predict_feature_maps(data.features),
            lambda d, train, val: d.fit_feature_maps(train.features, train.y),
        )
    return detectors


def _weights(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    weight = layer.weight.detach().cpu().float()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().cpu().float()
    return weight, bias
