"""Models from Lightning checkpoints."""

import copy
import importlib
import importlib.util
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ebm_lightning.modules import JEM, ConditionalEBM


def load_model(path: Path | str, classifier: nn.Module | None = None) -> ConditionalEBM:
    """The model of a Lightning checkpoint, of the class that was saved, on the CPU and in eval mode.

    A class of your own has to be imported before. If it is not, a warning says so, and the model is a
    :class:`~ebm_lightning.JEM` or :class:`~ebm_lightning.ConditionalEBM` with the saved weights: energies and
    predictions are those of the saved model unless the class overrides them.

    Arguments:
        path: A checkpoint of a ConditionalEBM, or of a subclass such as JEM.
        classifier: Network with the architecture of the checkpoint. Needed only if the checkpoint cannot rebuild it,
            because it is not one of this library's networks. It is copied.

    Raises:
        ValueError: The file is no checkpoint, or of another kind of module, or ``classifier`` is needed.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"'path' should be a checkpoint of a JEM or a ConditionalEBM, got {path}, which holds something else."
        ) from error
    kind = _class_of(checkpoint, path)
    given: dict[str, Any] = {} if classifier is None else {"classifier": copy.deepcopy(classifier)}
    return kind.load_from_checkpoint(path, map_location="cpu", weights_only=True, **given).eval()


def _class_of(checkpoint: dict[str, Any], path: Path | str) -> type[ConditionalEBM]:
    """The class that was saved. Only a module of this library is imported, so that a checkpoint cannot run code."""
    saved = str(checkpoint.get("class_path", ""))
    module, _, name = saved.rpartition(".")
    if module.split(".")[0] == "ebm_lightning" and importlib.util.find_spec(module):
        importlib.import_module(module)
    kind = getattr(sys.modules.get(module), name, None)
    if isinstance(kind, type) and issubclass(kind, ConditionalEBM):
        return kind
    if kind is not None or not saved or "num_classes" not in checkpoint.get("hyper_parameters", {}):
        raise ValueError(f"'path' should be a checkpoint of a JEM or a ConditionalEBM, got {path}.")
    base = JEM if "sampler" in checkpoint["hyper_parameters"] or _has_chains(checkpoint) else ConditionalEBM
    warnings.warn(
        f"'{path}' is of the class {saved}, which is not imported: it is loaded as {base.__name__}. Import the class "
        "first, or call its 'load_from_checkpoint', if it overrides the energy or takes other arguments.",
        stacklevel=3,
    )
    return base


def _has_chains(checkpoint: dict[str, Any]) -> bool:
    return any(state.get("chains") for state in checkpoint.get("ranks") or [])
