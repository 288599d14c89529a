"""Models from Lightning checkpoints."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ebm_lightning.modules import JEM, ConditionalEBM

JEM_ARGUMENTS = {"sampler", "chains", "generative_weight", "joint_weight", "class_conditional_weight"}


def load_model(path: Path | str, classifier: nn.Module | None = None) -> ConditionalEBM:
    """The model of a Lightning checkpoint, on the CPU and in eval mode.

    Returns a :class:`~ebm_lightning.JEM` if the checkpoint contains a sampler or chains, and a
    :class:`~ebm_lightning.ConditionalEBM` otherwise. Subclasses such as SADAJEM are loaded as JEM. If your subclass
    overrides the energy or the evaluation, call its ``load_from_checkpoint`` instead.

    Arguments:
        path: A checkpoint of a JEM or a ConditionalEBM.
        classifier: Network with the architecture of the checkpoint. Needed only if the checkpoint cannot rebuild it,
            because it is not one of this library's networks. It is copied.

    Raises:
        ValueError: The checkpoint is of another kind of module, such as an RBM, or ``classifier`` is needed.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    arguments = checkpoint.get("hyper_parameters", {})
    if "num_classes" not in arguments or "num_hidden" in arguments:
        raise ValueError(f"'path' should be a checkpoint of a JEM or a ConditionalEBM, and not of an RBM, got {path}.")
    kind = JEM if JEM_ARGUMENTS & arguments.keys() or _has_chains(checkpoint) else ConditionalEBM
    given: dict[str, Any] = {} if classifier is None else {"classifier": copy.deepcopy(classifier)}
    return kind.load_from_checkpoint(path, map_location="cpu", weights_only=True, **given).eval()


def _has_chains(checkpoint: Mapping[str, Any]) -> bool:
    return any(state.get("chains") for state in checkpoint.get("ranks") or [])
