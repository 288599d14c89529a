"""``ebm-lightning evaluate``: metrics and a page of a model, and of the plain classifier as its baseline."""

import importlib
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from torch import nn

import ebm_lightning.data  # noqa: F401  (names of data modules)
from ebm_lightning.evaluation import evaluate
from ebm_lightning.evaluation.names import model_names
from ebm_lightning.evaluation.report import comparison_table, results_folder
from ebm_lightning.models import load
from ebm_lightning.modules import ConditionalEBM


@dataclass
class Network:
    """A network that this library does not have.

    Args:
        path: Import path of its class, or of a function that creates it, such as torchvision.models.resnet18.
        arguments: Keyword arguments of the class or function.
    """

    path: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def create(self) -> nn.Module:
        module, _, name = self.path.rpartition(".")
        network: nn.Module = getattr(importlib.import_module(module), name)(**self.arguments)
        return network


def main(
    checkpoint: str,
    data: L.LightningDataModule,
    baseline: str | None = None,
    output: Path | None = None,
    classifier: Network | None = None,
    features: Network | None = None,
    ood: tuple[str, ...] | None = None,
    **options: Any,
) -> dict[str, float]:
    """Evaluate a JEM or a ConditionalEBM on test images.

    Args:
        checkpoint: Checkpoint, or a name such as digits.
        data: Data module whose test images are used, such as Digits or MNIST.
        baseline: The plain classifier to compare with.
        output: Folder for the results, new or empty; by default the next free runs/eval-N.
        classifier: The network of the checkpoints; needed if it is not one of this library's networks.
        features: Maps images to features (N, D) for FID and KID; by default the baseline's or the model's last hidden
            layer.
        ood: Out-of-distribution images: names such as SVHN, or of .npz files; by default those commonly used.
        **options: As for ebm_lightning.evaluate.
    """
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|log Z is unreliable|in eval mode).*")
    network = classifier.create() if classifier else None
    model, other = model_of(checkpoint, network), model_of(baseline, network) if baseline else None
    folder = results_folder(output, "eval")
    metrics = evaluate(
        model,
        data,
        other,
        folder,
        title=f"Evaluation of {checkpoint}" + (f" and {baseline}" if baseline else ""),
        features=features.create() if features else None,
        ood=ood,
        **options,
    )
    names = model_names({"model": model} | ({} if other is None else {"baseline": other}))
    print(comparison_table(metrics, names=list(names.values())))
    print(f"{metrics['seconds']:.0f} seconds. report.html, metrics.json, pictures and logs are in {folder.resolve()}")
    return metrics


def model_of(checkpoint: str, network: nn.Module | None) -> ConditionalEBM:
    """The model of a name or a checkpoint.

    Raises:
        ValueError: There is none, or it cannot rebuild its network, and none was given.
    """
    try:
        return load(checkpoint, classifier=network)
    except ValueError as error:
        if network is None and "'classifier'" in str(error):
            raise ValueError(
                f"'--classifier' should be given, because {checkpoint} does not say how to build its network. Pass "
                "the path and the arguments of its class, as in '--classifier.path torchvision.models.resnet18 "
                "--classifier.arguments.num_classes 10'."
            ) from error
        raise
