"""Constructor arguments as plain values, which loggers show and checkpoints with ``weights_only=True`` hold.

A sampler becomes ``{"class_path": "ebm_lightning.samplers.sgld.SGLD", "init_args": {"step_size": 1.0, ...}}``, as in a
LightningCLI config, and :func:`rebuild` makes the object from it.
"""

import dataclasses
import functools
import importlib.util
import inspect
import sys
import typing
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

from ebm_lightning.checks import check_kind, plain_number

SHORT = 64  # a tensor of at most this many elements is stored as a list


def describe(value: Any) -> Any:
    """``value`` as plain numbers, strings, lists and dictionaries. Tensors of more than 64 elements stay tensors.

    Objects are described by the arguments of their constructor, read from attributes of the same names; classes and
    ``functools.partial`` of classes by their keywords. Anything else (a network from elsewhere, a lambda) is described
    by its name only, and :func:`rebuild` raises an error for it. NumPy and torch scalars become numbers.
    """
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        return describe(torch.from_numpy(value))
    if isinstance(value, torch.Tensor):
        return value.tolist() if value.numel() <= SHORT else value.detach().cpu()
    if isinstance(value, list | tuple | nn.ModuleList):
        return [describe(v) for v in value]
    if isinstance(value, dict):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, Path | torch.dtype | torch.device):
        return str(value)
    if isinstance(value, type):
        return {"class_path": _path(value), "init_args": {}}
    if isinstance(value, functools.partial):
        return _describe_partial(value)
    return {"class_path": _path(type(value)), "init_args": _init_args(value)}


def _describe_partial(value: functools.partial[Any]) -> dict[str, Any]:
    value = _without_jsonargparse(value)
    return {"class_path": _path(value.func), "init_args": None if value.args else describe(value.keywords)}


def _without_jsonargparse(value: functools.partial[Any]) -> functools.partial[Any]:
    """A partial of a class, if it is one of jsonargparse's, whose positional arguments end with that class.

    Those refer to the command line, and through it to the trainer, so they could not be copied or pickled.
    """
    made_by = getattr(value.func, "__module__", None) or ""
    if made_by.split(".")[0] == "jsonargparse" and value.args and isinstance(value.args[-1], type):
        return functools.partial(value.args[-1], **value.keywords)
    return value


def for_loggers(description: Any) -> Any:
    """A description with tensors replaced by their types and shapes."""
    if isinstance(description, torch.Tensor):
        return f"{description.dtype} of shape {tuple(description.shape)}"
    if isinstance(description, dict):
        return {name: for_loggers(value) for name, value in description.items()}
    return [for_loggers(value) for value in description] if isinstance(description, list) else description


def constructor_arguments(frame: FrameType | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of the constructors that are running.

    Arguments:
        frame: Stack frame of the innermost ``__init__``.

    Returns:
        All arguments of base classes' constructors, and those that the outermost constructor was called with.
    """
    passed_on: dict[str, Any] = {}
    given: dict[str, Any] = {}
    positional: list[str] = []
    this = None
    while frame is not None and frame.f_code.co_name == "__init__":
        names, varargs, varkw, values = inspect.getargvalues(frame)
        if not names or (this is not None and values[names[0]] is not this):
            break
        this, passed_on = values[names[0]], passed_on | given
        given = {name: values[name] for name in names[1:]} | (values[varkw] if varkw else {})
        given |= dict(zip(positional, values[varargs] if varargs else (), strict=False))  # as the base class names them
        positional = names[1 : frame.f_code.co_argcount]
        frame = frame.f_back
    return passed_on, given


def rebuild(value: Any, kind: type | tuple[type, ...], argument: str, *, partial: bool = False) -> Any:
    """The object that a description stands for. Anything else is returned if it is an instance of ``kind`` or None.

    Only subclasses of ``kind`` are built, from this library, from torch, or from modules that are already imported, so
    a checkpoint cannot run other code. A nested object has to match the annotation of its constructor's
    argument, such as ``initial: Density | None``. Networks may contain networks.

    Arguments:
        value: An object, or its description.
        kind: Allowed base class, or a tuple of them.
        argument: Name of the argument, for the error.
        partial: Return a ``functools.partial`` of the class instead of an instance.

    Raises:
        ValueError: The description does not name such a class, or has no arguments.
    """
    if isinstance(value, dict) and dataclasses.is_dataclass(kind) and not _is_description(value):
        return kind(**value)  # how a LightningCLI describes it
    if not _is_description(value):
        return check_factory(argument, value, kind) if partial else check_kind(argument, value, kind, optional=True)
    cls, arguments = _described_class(value, kind, argument)
    return functools.partial(cls, **arguments) if partial else cls(**arguments)


def _is_description(value: Any) -> bool:
    return isinstance(value, dict) and "class_path" in value


def _described_class(value: dict[str, Any], kind: type | tuple[type, ...], argument: str) -> tuple[Any, dict[str, Any]]:
    """The class that a description names, and its arguments."""
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
    arguments = value["init_args"].items()
    return cls, {name: _rebuild_nested(inner, _named_kinds(cls, name), argument) for name, inner in arguments}


def check_factory(argument: str, value: Any, kind: Any) -> Any:
    """``value``, checked to be a callable that makes something of ``kind``. Scalars among its keywords become numbers.

    Raises:
        ValueError: It is not callable, or an object of that kind that exists already.
    """
    if isinstance(value, kind):
        raise ValueError(
            f"'{argument}' should be a class or function that makes one, got an instance of {type(value).__name__}. "
            f"Pass functools.partial({type(value).__name__}, ...), with the arguments after the first."
        )
    if value is not None and not callable(value):
        raise ValueError(
            f"'{argument}' should be a class or function that makes one, got {value!r}. Pass "
            "functools.partial(CLASS, ...), such as functools.partial(torch.optim.Adam, lr=1e-3) for an optimizer."
        )
    if isinstance(value, functools.partial):
        value = _without_jsonargparse(value)
        keywords = {name: plain_number(v) for name, v in value.keywords.items()}
        return functools.partial(value.func, *value.args, **keywords)
    return value


def _rebuild_nested(value: Any, kinds: tuple[type, ...], argument: str) -> Any:
    if isinstance(value, list):
        return [_rebuild_nested(inner, kinds, argument) for inner in value]
    return rebuild(value, kinds, argument) if _is_description(value) else value


def _named_kinds(cls: type, argument: str) -> tuple[type, ...]:
    """The classes in the annotation of ``argument`` in the constructor of ``cls``."""
    parameter = inspect.signature(cls, eval_str=True).parameters.get(argument)
    annotation = None if parameter is None else parameter.annotation
    named = typing.get_args(annotation) or (annotation,)
    kinds = tuple(a for a in named if isinstance(a, type) and a is not object)
    return (*kinds, nn.Module) if issubclass(cls, nn.Module) else kinds


def _path(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)


def _init_args(value: Any) -> dict[str, Any] | None:
    # Other networks may store something else under the names of their arguments, so only this library's are described.
    if isinstance(value, nn.Module) and not type(value).__module__.startswith("ebm_lightning."):
        return None
    names = inspect.signature(type(value)).parameters
    if not all(hasattr(value, name) for name in names) or inspect.isfunction(value):
        return None
    return {name: describe(getattr(value, name)) for name in names}
