"""Inputs of an evaluation: initial points of fresh chains, out-of-distribution sets, and the network for FID."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ebm_lightning.callbacks.ood_detection import ImageSource
from ebm_lightning.data import OOD_PAIRS, ood_image_sets
from ebm_lightning.energies import last_linear
from ebm_lightning.evaluation.features import Penultimate
from ebm_lightning.evaluation.measurements import FeatureNetwork, holds_images
from ebm_lightning.evaluation.ood_sets import OODSet, usual_sets
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.modules.fit_densities import in_coordinates
from ebm_lightning.modules.loaders import Rows, as_loader
from ebm_lightning.modules.random_state import seeded_globally
from ebm_lightning.modules.training_data import pass_over
from ebm_lightning.supports import Density, Support
from ebm_lightning.supports.density import FittedDensity

Data = L.LightningDataModule | DataLoader[Any]
AnyData = Data | Dataset[Any] | tuple[Rows, Rows]
"""A data module, or a loader or dataset of test images and labels, or both as tensors or arrays."""
Initial = Density | Literal["model", "reference"]
OODChoice = Sequence[str] | Mapping[str, ImageSource] | None


def labeled_data(data: AnyData) -> Data:
    """``data`` as a data module or a loader, as a trainer takes them.

    Raises:
        ValueError: It is something else, such as one tensor of images without labels.
    """
    if isinstance(data, L.LightningDataModule):
        return data
    loader = as_loader(data) if isinstance(data, DataLoader | Dataset | tuple | list) else None
    if isinstance(loader, DataLoader):
        return loader
    raise ValueError(
        f"'data' should be a data module, a loader or dataset of test images and labels, or both as tensors or arrays, "
        f"got {type(data).__name__}. Pass (x, y), or a loader that yields them."
    )


def initial_density(initial: Initial, model: ConditionalEBM, data: Data) -> Density | None:
    """The distribution of the initial points of fresh chains; None for the support's reference density.

    One that is not fitted yet is copied, and the copy is fitted to the training images of ``data``. The global random
    state is restored.

    Raises:
        ValueError: It is not fitted, and ``data`` has no training images because it is not a data module.
    """
    density = _chosen(initial, model)
    if not isinstance(density, FittedDensity) or density.fitted:
        return density
    if not isinstance(data, L.LightningDataModule):
        raise ValueError(
            f"'data' should be a data module, got {type(data).__name__}: {type(density).__name__} is fitted to its "
            "training images. Or fit it first, or pass initial='reference'."
        )
    density = copy.deepcopy(density)
    with seeded_globally(0):
        data.prepare_data()
        data.setup("fit")
    batches = in_coordinates(model, lambda: pass_over(data.train_dataloader()), density.passes)
    density.fit(batches, model.num_classes)
    return density


def ood_sources(
    ood: OODChoice, data: Data, support: Support, root: Path | str | None, size: int
) -> tuple[dict[str, OODSet | ImageSource], list[str]]:
    """Out-of-distribution sets by name, and the names of the sets whose images were not found.

    Sets made from the test images are always included. Arguments as for :func:`ebm_lightning.evaluate`.
    """
    made: dict[str, OODSet | ImageSource] = dict(usual_sets(support))
    if isinstance(ood, Mapping):
        return made | dict(ood), []
    names = OOD_PAIRS.get(type(data).__name__, ()) if ood is None else tuple(ood)
    if not names or (ood is None and not holds_images(support)):
        return made, []
    images = ood_image_sets(
        names,
        support,
        getattr(data, "root", "data") if root is None else root,
        size,
        num_levels=getattr(data, "num_levels", 256),
        download=getattr(data, "download", True),
    )
    return made | images, [name for name in names if name not in images]


def feature_network(features: nn.Module | None, models: Mapping[str, ConditionalEBM]) -> FeatureNetwork:
    """``features``, or by default the last hidden layer of the baseline's classifier, or of the model's without one.

    A classifier without a linear layer, such as that of an RBM, has no such features: they are the inputs themselves.
    """
    if features is not None:
        return FeatureNetwork(features, None, type(features).__name__)
    network = models.get("baseline", models["model"])
    classifier = copy.deepcopy(nn.Sequential(network.coordinates, network.classifier))
    if last_linear(classifier) is None:
        return FeatureNetwork(nn.Flatten(), classifier, "inputs")
    return FeatureNetwork(Penultimate(classifier), classifier, "classifier" if "baseline" in models else "model")


def _chosen(initial: Initial, model: ConditionalEBM) -> Density | None:
    if isinstance(initial, Density):
        return initial
    if initial not in ("model", "reference"):
        raise ValueError(f"'initial' should be 'model', 'reference' or a Density, got {initial!r}.")
    return getattr(getattr(model, "chains", None), "initial", None) if initial == "model" else None
