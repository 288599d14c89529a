"""Checkpoints of a model on a frozen network, with or without the weights of the network."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

NETWORK = "network_features."  # prefix of the network's weights
STATES = {"state_dict", "current_model_state"}  # the latter if weights are averaged


def leave_out_network(checkpoint: dict[str, Any]) -> None:
    """Remove the weights of the network from a checkpoint."""
    for name in STATES & checkpoint.keys():
        checkpoint[name] = {key: value for key, value in checkpoint[name].items() if not key.startswith(NETWORK)}


def fill_in_network(checkpoint: dict[str, Any], state_dict: Mapping[str, Tensor]) -> None:
    """Take the weights of the network that a checkpoint lacks from the state of the model that loads it."""
    own = {key: value for key, value in state_dict.items() if key.startswith(NETWORK)}
    for name in STATES & checkpoint.keys():
        checkpoint[name] = own | dict(checkpoint[name])
