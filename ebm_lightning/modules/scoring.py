"""Scores of any data by a model, outside of a trainer, and the threshold of out-of-distribution detection.

Everything runs in eval mode, on the model's device, without autocast and in chunks. The train or eval mode of every
part, batch-norm statistics and global random states are as before afterwards.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ebm_lightning.checks import check_integer, check_number
from ebm_lightning.modules.loaders import Data, as_loader, as_tensor
from ebm_lightning.modules.random_state import isolate_rng
from ebm_lightning.modules.stored_values import StoredValues
from ebm_lightning.samplers import eval_mode


@torch.no_grad()
def over_data(model: Any, data: Data, function: Callable[[Tensor, Tensor | None], Tensor], batch_size: int) -> Tensor:
    """``function`` of all inputs and labels of ``data``, in batches that are joined, in eval mode.

    Arguments:
        model: A ConditionalEBM.
        data: Inputs, or a dataset or loader.
        function: Maps inputs (n, *shape) and labels (n,) or None to (n, ...).
        batch_size: Rows at a time, of inputs and datasets. A loader has its own.

    Raises:
        ValueError: ``data`` are empty, or outside the model's domain.
    """
    with isolate_rng(), eval_mode(model), torch.autocast(model.device.type, enabled=False):
        results = [function(x, y) for x, y in batches_of(model, data, batch_size)]
    if not results:
        raise no_inputs()
    return torch.cat(results)


def batches_of(model: Any, data: Data, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Inputs and labels of ``data``, checked, on the model's device, in float32, or in float64 if the weights are."""
    check_integer("batch_size", batch_size, at_least=1)
    rows = as_tensor(data)  # split without copies, also into one batch of no rows
    for batch in as_loader(data, batch_size) if rows is None else rows.split(batch_size):
        x, y = model.inputs_and_labels(batch)
        if x.is_floating_point():
            x = x.to(model.device, _precision(model))
        model.check_batch(x)
        yield x, None if y is None else y.to(model.device)


def score(model: Any, data: Data, batch_size: int = 250) -> Tensor:
    """-E(x) of each input, shape (N,), in nats: larger for likelier x; log p(x) up to the constant log Z.

    Arguments:
        model: A ConditionalEBM, of which this is a method.
        data: Inputs (N, *shape); or a dataset or loader.
        batch_size: Inputs at a time. A loader has its own.

    Raises:
        ValueError: ``data`` are outside the model's domain.
    """
    return over_data(model, data, lambda x, y: -model.energy(x), batch_size)


def threshold(model: Any, data: Data, keep: float = 0.95, batch_size: int = 250) -> float:
    """The largest score that at least the fraction ``keep`` of ``data`` reach; :func:`is_ood` compares with it.

    The model and its checkpoints keep it. It is void once the weights change.

    Arguments:
        model: A ConditionalEBM, of which this is a method.
        data: Inputs (N, *shape) like those to keep, such as validation data; or a dataset or loader.
        keep: Fraction of the data, in (0, 1].
        batch_size: Inputs at a time.

    Raises:
        ValueError: ``keep`` is outside (0, 1], or ``data`` are empty or outside the model's domain.
    """
    keep = check_number("keep", keep, above=0, at_most=1)
    scores = model.score(data, batch_size).double()
    if not len(scores):
        raise no_inputs()
    kept = max(1, math.ceil(keep * len(scores) - 1e-9))  # 0.95 * 20 is 19, also in floating point
    smallest = float(scores.sort(descending=True).values[kept - 1])
    model.stored_threshold.store(model.energy, [smallest])
    return smallest


def is_ood(model: Any, data: Data, batch_size: int = 250) -> Tensor:
    """Whether the score of each input is below the :func:`threshold`, shape (N,), bool.

    Arguments:
        model: A ConditionalEBM, of which this is a method.
        data: Inputs (N, *shape); or a dataset or loader.
        batch_size: Inputs at a time.

    Raises:
        RuntimeError: No threshold is stored, or the weights have changed since.
    """
    stored: StoredValues = model.stored_threshold
    check_stored(model.energy, stored, "threshold", "threshold(data)", "such as validation data")
    return model.score(data, batch_size).double() < stored.numbers[0]


def check_stored(energy: nn.Module, stored: StoredValues, what: str, method: str, data: str) -> None:
    """Check that a value is stored, for the present weights.

    Raises:
        RuntimeError: It is not. The message names the ``method`` that computes it.
    """
    if not stored.present:
        raise RuntimeError(f"This model has no {what} yet. Call model.{method}, {data}.")
    if not stored.holds_for(energy):
        raise RuntimeError(
            f"The weights of this model have changed since its {what} was computed. Call model.{method} again."
        )


def no_inputs() -> ValueError:
    """The error for data that are empty."""
    return ValueError("'data' should hold inputs, got none. An iterator can be read only once: pass the loader itself.")


def _precision(model: Any) -> torch.dtype:
    weights = next((p.dtype for p in model.energy.parameters() if p.is_floating_point()), torch.float32)
    return torch.promote_types(weights, torch.float32)
