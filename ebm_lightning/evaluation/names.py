"""What a model is called in tables, pictures and warnings."""

from collections.abc import Mapping
from typing import Any

WEIGHTS = ("generative_weight", "joint_weight", "class_conditional_weight")


def model_name(module: Any) -> str:
    """The class of a module, such as "JEM"; "classifier" for one that is trained on p(y|x) only.

    Arguments:
        module: A ConditionalEBM or a JEM.
    """
    generative = any(getattr(module, weight, 0.0) for weight in WEIGHTS)
    return type(module).__name__ if generative else "classifier"


def model_names(models: Mapping[str, Any]) -> dict[str, str]:
    """A different name for each model, by its key. Equal ones get the key in parentheses: "JEM (baseline)".

    Arguments:
        models: The models by key, such as "model" and "baseline".
    """
    names = {key: model_name(module) for key, module in models.items()}
    counts = list(names.values())
    return {key: f"{name} ({key})" if counts.count(name) > 1 else name for key, name in names.items()}
