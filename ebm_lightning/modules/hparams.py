"""Constructor arguments as plain dictionaries, so that loggers show them and safe checkpoints hold them.

A sampler becomes ``{"class_path": "ebm_lightning.samplers.sgld.SGLD", "init_args": {"step_size": 1.0, ...}}``, the
same words as in a LightningCLI config, and ``rebuild`` makes the object again.
"""

import functools
import importlib.util
import inspect
import sys
import typing
from pathlib import Path
from typing import Any

import torch
from torch import nn


def describe(value: Any) -> Any:
    """``value`` in numbers, strings, lists and dictionaries.

    Objects are described by their constructor's arguments, read from attributes of the same names; classes and
    ``functools.partial`` of classes by their keywords. What cannot be described that way (a foreign network, a
    lambda) is described by name alone, and :func:`rebuild` refuses it.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [describe(v) for v in value]
    if isinstance(value, dict):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, Path | torch.dtype | torch.device):
        return str(value)
    if isinstance(value, type):
        return {"class_path": _path(value), "init_args": {}}
    if isinstance(value, functools.partial):
        return {"class_path": _path(value.func), "init_args": describe(value.keywords) if not value.args else None}
    return {"class_path": _path(type(value)), "init_args": _init_args(value)}


def rebuild(value: Any, kind: type | tuple[type, ...], argument: str, *, partial: bool = False) -> Any:
    """The object that a description stands for; anything that is no description comes back as it is.

    Only subclasses of ``kind`` are built, from this library, from torch, or from modules already imported: a checkpoint
    cannot run code of its own. What an object holds has to be of the class that its constructor names for it, as in
    ``start: Start | None``; networks may hold networks.

    Arguments:
        value: An object, or its description.
        kind: Base class of what may be built, or several.
        argument: Name of the argument, for the error.
        partial: Give a ``functools.partial`` of the class instead of an instance.

    Raises:
        ValueError: The description names no such class, or holds no arguments.
    """
    if not isinstance(value, dict) or "class_path" not in value:
        return value
    module, _, name = str(value["class_path"]).rpartition(".")
    if module.split(".")[0] in ("ebm_lightning", "torch") and importlib.util.find_spec(module):
        importlib.import_module(module)
    cls = getattr(sys.modules.get(module), name, None)
    if value.get("init_args") is None or not (isinstance(cls, type) and issubclass(cls, kind)):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))) or "class named for it"
        raise ValueError(
            f"'{argument}' should be given: {value['class_path']!r} cannot be rebuilt from its description as a "
            f"{wanted}. Pass it, as in 'load_from_checkpoint(path, {argument}=...)'."
        )
    arguments = {
        name: rebuild(inner, _named_kinds(cls, name), argument) if isinstance(inner, dict) else inner
        for name, inner in value["init_args"].items()
    }
    return functools.partial(cls, **arguments) if partial else cls(**arguments)


def _named_kinds(cls: type, argument: str) -> tuple[type, ...]:
    """The classes that the constructor of ``cls`` names for ``argument``."""
    parameter = inspect.signature(cls, eval_str=True).parameters.get(argument)
    annotation = None if parameter is None else parameter.annotation
    named = typing.get_args(annotation) or (annotation,)
    kinds = tuple(a for a in named if isinstance(a, type) and a is not object)
    return (*kinds, nn.Module) if issubclass(cls, nn.Module) else kinds


def _path(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)


def _init_args(value: Any) -> dict[str, Any] | None:
    # A foreign network may keep other things under its arguments' names, so only our own are described.
    if isinstance(value, nn.Module) and not type(value).__module__.startswith("ebm_lightning."):
        return None
    names = inspect.signature(type(value)).parameters
    if not all(hasattr(value, name) for name in names) or inspect.isfunction(value):
        return None
    return {name: describe(getattr(value, name)) for name in names}
