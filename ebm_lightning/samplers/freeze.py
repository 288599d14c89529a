"""Temporarily set the modules behind an energy to eval mode and freeze their parameters."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

MAX_DEPTH = 6  # of functions and containers in one another that are searched for modules
MAX_ENTRIES = 1000  # of a container; larger ones hold data


@contextmanager
def eval_mode(energy: Any) -> Iterator[None]:
    """Set the modules behind ``energy`` to eval mode. Those that were in training mode return to it on exit."""
    trained = [module for module in modules_of(energy) if module.training]
    for module in trained:
        module.training = False
    try:
        yield
    finally:
        for module in trained:
            module.training = True


@contextmanager
def frozen(energy: Any) -> Iterator[None]:
    """Set the modules behind ``energy`` to eval mode and freeze their parameters. Both are restored on exit."""
    trainable = [p for module in modules_of(energy) for p in module.parameters(recurse=False) if p.requires_grad]
    with eval_mode(energy):
        for p in trainable:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in trainable:
                p.requires_grad_(True)


def called_modules(energy: Any) -> list[nn.Module]:
    """All modules of an energy that is a module, a method of one, or a ``functools.partial`` of either; else none."""
    while not isinstance(energy, nn.Module):
        energy = getattr(energy, "func", None) or getattr(energy, "__self__", None)
        if energy is None:
            return []
    return list(energy.modules())


def modules_of(energy: Any) -> list[nn.Module]:
    """All modules that an energy uses, as far as its parts show them, each once.

    These are a module with its submodules; what a method belongs to; the function and the arguments of a
    ``functools.partial``; the enclosed variables, defaults and globals of a function, and the functions that it calls;
    the attributes of another object among these; and the entries of lists, tuples and dictionaries. A global counts if
    its name occurs in the function, so that now and then a module is found that the energy does not use.
    """
    found: dict[int, nn.Module] = {}
    _collect(energy, found, set(), MAX_DEPTH)
    return list(found.values())


def _collect(part: Any, found: dict[int, nn.Module], seen: set[int], depth: int) -> None:
    if id(part) in seen or depth < 0:
        return
    seen.add(id(part))
    if isinstance(part, nn.Module):
        found.update((id(module), module) for module in part.modules())
        return
    for inner in _parts(part):
        if _searched(inner) or not _is_object(part):  # the attributes of objects, but not the attributes of these
            _collect(inner, found, seen, depth - 1)


def _parts(part: Any) -> list[Any]:
    """What a function, container or object consists of."""
    if isinstance(part, functools.partial):
        return [part.func, *part.args, *part.keywords.values()]
    if isinstance(part, MethodType):
        return [part.__self__] if isinstance(part.__self__, nn.Module) else [part.__self__, part.__func__]
    if isinstance(part, FunctionType):
        return _variables(part)
    if isinstance(part, list | tuple | dict):
        values = list(part.values()) if isinstance(part, dict) else list(part)
        return values if len(values) <= MAX_ENTRIES else []
    return _attributes(part) if _is_object(part) else []


def _attributes(instance: Any) -> list[Any]:
    called = [type(instance).__call__] if callable(instance) else []
    return [*getattr(instance, "__dict__", {}).values(), *called]


def _searched(part: Any) -> bool:
    return isinstance(part, nn.Module | functools.partial | MethodType | FunctionType | list | tuple | dict)


def _is_object(part: Any) -> bool:
    return not (_searched(part) or isinstance(part, type | ModuleType | Tensor))


def _variables(function: FunctionType) -> list[Any]:
    """The objects that a function refers to from outside its body."""
    if (function.__module__ or "").partition(".")[0] == "torch":
        return []
    enclosed = [value for cell in function.__closure__ or () if (value := _content(cell)) is not None]
    named = [function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__]
    return [*enclosed, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *named]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _names(code: CodeType) -> list[str]:
    """Names that a function uses, also in functions and comprehensions inside it."""
    return [
        *code.co_names,
        *(name for inner in code.co_consts if isinstance(inner, CodeType) for name in _names(inner)),
    ]
