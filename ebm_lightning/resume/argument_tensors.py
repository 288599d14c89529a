"""Large tensors among constructor arguments: a checkpoint keeps them apart, and its hyperparameters stay readable."""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ebm_lightning.resume.hparams import for_loggers

KEY = "argument_tensors"
"""Where a checkpoint holds them, by their paths, such as ``support/init_args/mean``."""


def take_out(checkpoint: dict[str, Any]) -> None:
    """Move tensors from the hyperparameters of a checkpoint to :data:`KEY`. Texts with types and shapes remain."""
    hyperparameters = checkpoint.get("hyper_parameters", {})
    tensors = {path: tensor for name, value in hyperparameters.items() for path, tensor in _tensors(value, name)}
    if tensors:
        checkpoint["hyper_parameters"] = for_loggers(hyperparameters)
        checkpoint[KEY] = tensors


def put_back(path: str | Path | IO[bytes], weights_only: bool | None = None) -> dict[str, Any]:
    """The arguments that contained tensors, complete; empty if there are none, or if the file is not local.

    Arguments:
        path: The checkpoint, or the opened file.
        weights_only: As for ``torch.load``.
    """
    if not _has_tensors(path):
        return {}
    checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only)
    _rewind(path)
    tensors = checkpoint[KEY]
    arguments = {name.split("/")[0] for name in tensors}
    return {name: _filled(checkpoint["hyper_parameters"][name], name, tensors) for name in arguments}


def _tensors(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(inner, f"{path}/{key}")


def _filled(value: Any, path: str, tensors: Mapping[str, Tensor]) -> Any:
    """``value`` with the tensors at their paths."""
    if path in tensors:
        return tensors[path]
    if isinstance(value, dict):
        return {key: _filled(inner, f"{path}/{key}", tensors) for key, inner in value.items()}
    return [_filled(v, f"{path}/{i}", tensors) for i, v in enumerate(value)] if isinstance(value, list) else value


def _has_tensors(path: str | Path | IO[bytes]) -> bool:
    """Whether the file names :data:`KEY`, which is quick to see: its values are stored apart from its structure."""
    try:
        with zipfile.ZipFile(path) as archive:
            structure = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            return bool(structure) and KEY.encode() in archive.read(structure[0])
    except (zipfile.BadZipFile, OSError):
        return False
    finally:
        _rewind(path)


def _rewind(path: str | Path | IO[bytes]) -> None:
    if not isinstance(path, str | Path):
        path.seek(0)
