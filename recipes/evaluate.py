"""Evaluate a checkpoint, and the plain classifier of the same network as its baseline.

``python recipes/evaluate.py --checkpoint model.ckpt --baseline baseline.ckpt --data MNIST --data.root DIR`` measures
both on the same test images, and writes metrics.json, report.html and the pictures to one folder. In Python, call
:func:`ebm_lightning.evaluate`.
"""

import importlib
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import auto_cli
from torch import nn

import ebm_lightning.data  # noqa: F401  (names of data modules)
from ebm_lightning import evaluate
from ebm_lightning.evaluation.checkpoints import load_model
from ebm_lightning.evaluation.report import comparison_table, results_folder


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
    checkpoint: Path,
    data: L.LightningDataModule,
    baseline: Path | None = None,
    output: Path | None = None,
    classifier: Network | None = None,
    features: Network | None = None,
    ood: tuple[str, ...] | None = None,
    **options: Any,
) -> dict[str, float]:
    """Evaluate the checkpoint of a JEM or a ConditionalEBM on test images.

    Args:
        checkpoint: Lightning checkpoint of a JEM or a ConditionalEBM.
        data: Data module whose test images are used, such as Digits or MNIST.
        baseline: Checkpoint of the plain classifier to compare with.
        output: Folder for the results, new or empty; by default the next free runs/eval-N.
        classifier: The network of the checkpoints; needed if it is not one of this library's networks.
        features: Network that maps images to features (N, D) for FID and KID; by default the classifier of the baseline
            without its last layer, or that of the model without a baseline.
        ood: Out-of-distribution images: names such as SVHN, or of .npz files in the folder; by default the sets that
            are commonly used for the data.
        **options: As for ebm_lightning.evaluate.
    """
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|log Z is unreliable|in eval mode).*")
    folder = results_folder(output, "eval")
    network = classifier.create() if classifier else None
    metrics = evaluate(
        load_model(checkpoint, network),
        data,
        load_model(baseline, network) if baseline else None,
        folder,
        title=f"Evaluation of {checkpoint}" + (f" and {baseline}" if baseline else ""),
        features=features.create() if features else None,
        ood=ood,
        **options,
    )
    print(comparison_table(metrics))
    print(f"report.html, metrics.json and pictures are in {folder}")
    return metrics


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
