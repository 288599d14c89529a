"""What a classifier may return, and labels of an energy: taken where the meaning is clear, else an error."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

TWO_LOGITS = (
    "A binary classifier with one logit z per x has p(y=1|x) = sigmoid(z): give it two, torch.cat([-z, z], 1) / 2, "
    "which have the same p(y|x), and num_classes=2."
)


def call_classifier(classifier: nn.Module, x: Tensor) -> Tensor:
    """The logits (N, K) of ``x``, in the precision of the classifier's weights.

    Taken are a tensor, and the entry or attribute ``logits`` of a dictionary or object, as of Hugging Face models.

    Raises:
        ValueError: The classifier returns something else, or changes ``x`` in place. The message says how to fix it.
    """
    if torch.compiler.is_compiling():
        return logits_of(classifier(x), classifier, x)
    x = _in_precision_of(classifier, x)
    version = None if x.is_inference() else x._version
    try:
        output = classifier(x)
    except RuntimeError as error:
        if "leaf Variable that requires grad" in str(error):
            raise changes_input(classifier) from error
        raise
    if version is not None and x._version != version:
        raise changes_input(classifier)
    return logits_of(output, classifier, x)


def logits_of(output: Any, classifier: nn.Module, x: Tensor) -> Tensor:
    """The logits in what a classifier returned for ``x``.

    Raises:
        ValueError: There are none of shape (N, K).
    """
    logits = output.get("logits") if isinstance(output, Mapping) else output
    if not isinstance(logits, Tensor | tuple | list):
        logits = getattr(output, "logits", None)
    wanted = f"'classifier' should map {tuple(x.shape)} to logits ({len(x)}, K)"
    if not isinstance(logits, Tensor):
        raise ValueError(f"{wanted}, got {_described(output)} from {type(classifier).__name__}. {_remedy(output)}")
    if not logits.is_floating_point():
        raise ValueError(f"{wanted} of floating point, got {logits.dtype}. Return logits, not classes.")
    if logits.shape == (len(x),):
        raise ValueError(f"{wanted}, got one logit for each x, {tuple(logits.shape)}. {TWO_LOGITS}")
    if logits.ndim != 2 or len(logits) != len(x):
        raise ValueError(f"{wanted}, got {tuple(logits.shape)}. Flatten or pool its output.")
    return logits


def labels_for(y: Tensor, n: int, num_classes: int) -> Tensor:
    """One label for each of ``n`` rows, int64, shape (n,). A single label is repeated.

    Raises:
        ValueError: ``y`` has another shape, or is not of integers, or (on the CPU) not below ``num_classes``.
    """
    if not isinstance(y, Tensor):
        raise ValueError(f"'y' should be a tensor of labels, got {y!r}. Use torch.tensor([{y}]) for one label of all.")
    if y.ndim > 1 or y.numel() not in (1, n):
        raise ValueError(
            f"'y' should have shape ({n},), one label for each x, or (1,), one label for all, got {tuple(y.shape)}. "
            "Repeat or select its entries; turn one-hot labels into classes by .argmax(1)."
        )
    if y.is_floating_point() or y.is_complex():
        raise ValueError(f"'y' should be integer labels, got {y.dtype}. Call .long() on class indices.")
    if y.device.type == "cpu" and not torch.compiler.is_compiling() and y.numel():
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= num_classes:
            raise ValueError(f"'y' should be labels from 0 to {num_classes - 1}, got {low} to {high}. Renumber them.")
    return y.long().expand(n)


def changes_input(classifier: nn.Module) -> ValueError:
    """The error for a classifier that works on its input in place."""
    return ValueError(
        f"'classifier' should not change its input, which an operation in place of {type(classifier).__name__} did: "
        "the batch and the chains would change. Set inplace=False in its first layers (ReLU, Normalize), or write "
        "x = x - mean instead of x -= mean."
    )


def half_precision(classifier: nn.Module) -> bool:
    """Whether the weights are stored in bfloat16 or float16."""
    return not torch.compiler.is_compiling() and _dtype(classifier) in (torch.bfloat16, torch.float16)


def _dtype(classifier: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in classifier.parameters() if p.is_floating_point()), None)


def _in_precision_of(classifier: nn.Module, x: Tensor) -> Tensor:
    """``x`` in the precision of the weights, such as float64 data for a float32 network. Autocast converts the rest."""
    dtype = _dtype(classifier)
    if dtype is None or dtype == x.dtype:
        return x
    if torch.is_autocast_enabled(x.device.type):
        return x.float() if x.dtype == torch.float64 else x
    return x.to(dtype)


def _described(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with {', '.join(map(str, output)) or 'no entries'}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)}"
    return "None" if output is None else f"a {type(output).__name__}"


def _remedy(output: Any) -> str:
    if isinstance(output, tuple) and hasattr(output, "aux_logits"):
        return "Build it with aux_logits=False: auxiliary heads, which it has in training only, are not supported."
    if isinstance(output, tuple) and hasattr(output, "logits"):
        return "Build it with aux_logits=False, or wrap it in a module that returns its '.logits'."
    if isinstance(output, tuple | list):
        return "Wrap it in a module whose forward returns the logits alone, such as net(x)[0]."
    if output is None:
        return "Its forward returns nothing: add 'return logits'."
    return "Wrap it in a module whose forward returns the logits, or name them 'logits'."
