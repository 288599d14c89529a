"""log Z of a model as part of the model: estimated once, stored with its error and verdict, used for log p(x)."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ebm_lightning.modules.batches import Batch, class_indices, with_labels
from ebm_lightning.modules.loaders import Data
from ebm_lightning.modules.random_state import isolate_rng
from ebm_lightning.modules.scoring import batches_of, check_stored, no_inputs, over_data
from ebm_lightning.modules.stored_values import StoredValues
from ebm_lightning.partition import LogZ, ais
from ebm_lightning.samplers import eval_mode
from ebm_lightning.supports import Binary

MIN_DATA, MAX_DATA = 20, 1000  # number of data that are compared with an estimate


def stored_log_z(num_classes: int) -> StoredValues:
    """Room for log Z, its standard error, its effective sample size, and log Z_y."""
    return StoredValues(3 + num_classes)


def store_log_z(model: Any, estimate: LogZ) -> None:
    """Keep an estimate, which was made with the present weights, in the model and its checkpoints."""
    per_class = estimate.per_class
    classes = [math.nan] * model.num_classes if per_class is None else per_class.tolist()
    numbers = [estimate.log_z, estimate.std_err, estimate.ess, *classes]
    model.stored_log_z.store(model.energy, numbers, estimate.why)


def known_log_z(model: Any) -> LogZ:
    """The last estimate of log Z, without its chains.

    Raises:
        RuntimeError: Nothing is stored, or the weights have changed since.
    """
    stored: StoredValues = model.stored_log_z
    remedy = "or add the callback AISLogZ to a test"
    check_stored(model.energy, stored, "log Z", "estimate_log_z(data)", remedy)
    log_z, std_err, ess, *classes = stored.numbers
    per_class = None if math.isnan(classes[0]) else torch.tensor(classes, dtype=torch.float64)
    return LogZ(log_z, std_err, ess, per_class=per_class, why=stored.text)


def log_prob(model: Any, data: Data, batch_size: int = 250) -> Tensor:
    """log p(x) = -E(x) - log Z of each input, shape (N,), float64, in nats. Warns if log Z is not reliable.

    Arguments:
        model: A ConditionalEBM, of which this is a method.
        data: Inputs (N, *shape); or a dataset or loader.
        batch_size: Inputs at a time.

    Raises:
        ValueError: ``data`` are outside the model's domain.
        RuntimeError: log Z is not known for the present weights.
    """
    log_z = known_log_z(model)
    if not log_z.reliable:
        warnings.warn(f"log p(x) is unreliable, as log Z is: {log_z.why}", stacklevel=2)
    return over_data(model, data, lambda x, y: -model.energy(x).double(), batch_size) - log_z.log_z


def estimate_log_z(model: Any, data: Data | None = None, **arguments: Any) -> LogZ:
    """Estimate log Z by annealed importance sampling, for :func:`log_prob`.

    The model and its checkpoints keep the last estimate with its error and verdict; the callback
    :class:`~ebm_lightning.AISLogZ` lets them keep its estimates too. It is void once the weights change.

    Arguments:
        model: A ConditionalEBM, of which this is a method.
        data: Where the model should have its mass, such as validation data; or a dataset or loader, with or without
            labels. The first 1000 are used. Without data the verdict means less.
        arguments: Those of :func:`~ebm_lightning.ais`. Where the reference density has infinite mass, ``proposal`` is
            "data" by default.

    Raises:
        ValueError: As for :func:`~ebm_lightning.ais`.
    """
    u, labels = (None, None) if data is None else evidence(model, _first(model, data))
    settings: dict[str, Any] = {"generator": torch.Generator(model.device)}
    if "generator" not in arguments:
        settings["seed"] = 0
    if model.support.log_mass == math.inf and u is not None:
        settings["proposal"] = "data"
    with eval_mode(model), torch.autocast(model.device.type, enabled=False):
        estimate = ais(model.chain_energy, model.support, data=u, labels=labels, **(settings | arguments))
    store_log_z(model, estimate)
    return estimate


def evidence(model: Any, parts: Sequence[Batch]) -> tuple[Tensor | None, Tensor | None]:
    """Points (N, *shape) in coordinates and their labels (N,), as the data of :func:`~ebm_lightning.ais`, on the CPU.

    Points are None if they are fewer than 20, or gray levels of binary units. Labels are None if some are unknown.

    Arguments:
        model: A ConditionalEBM.
        parts: Inputs and labels, -1 where unknown; the first 1000 are used.
    """
    x, y = (torch.cat(part)[:MAX_DATA] for part in zip(*parts, strict=True))
    gray = isinstance(model.support, Binary) and not ((x == 0) | (x == 1)).all()
    if gray or len(x) < MIN_DATA:
        return None, None
    with torch.no_grad():
        u: Tensor = model.coordinates(x.to(model.device)).cpu()
    return u, None if bool((y < 0).any()) else y.cpu()


def _first(model: Any, data: Data) -> list[Batch]:
    """The first batches of ``data``, with as many inputs as are used."""
    parts: list[Batch] = []
    with isolate_rng():
        for x, y in batches_of(model, data, MAX_DATA):
            model.check_batch(x, y)
            parts.append(with_labels(x, None if y is None else class_indices(y)))
            if sum(len(x) for x, _ in parts) >= MAX_DATA:
                break
    if not parts:
        raise no_inputs()
    return parts
