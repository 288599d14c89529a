"""Checks of arguments, so that all of these errors are worded the same way: numbers, shapes and kinds of objects."""

import dataclasses
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


def check_number(
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    optional: bool = False,
    remedy: str = "",
) -> Any:
    """``value`` as a Python number, checked to be within bounds. Scalars of NumPy and torch are converted.

    Arguments:
        name: Name of the argument, for the error message.
        value: Value of the argument.
        at_least, above: Lower bound, inclusive or exclusive.
        at_most, below: Upper bound, inclusive or exclusive.
        optional: Also accept None.
        remedy: A sentence that says how to fix the error, appended to its message.

    Raises:
        ValueError: ``value`` is out of bounds, NaN, or not a number. Booleans and arrays are not numbers.
    """
    value = plain_number(value)
    if value is None and optional:
        return None
    if not _is_a(Real, value):
        raise _error(name, value, "a number", optional, remedy)
    if not (
        value == value  # not NaN
        and (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (at_most is None or value <= at_most)
        and (below is None or value < below)
    ):
        raise _error(name, value, _range(at_least, above, at_most, below), optional, remedy)
    return value


def check_integer(
    name: str,
    value: Any,
    *,
    at_least: int | None = None,
    at_most: int | None = None,
    optional: bool = False,
    remedy: str = "",
) -> Any:
    """``value`` as a Python integer, checked to be within inclusive bounds. Arguments as for :func:`check_number`.

    Raises:
        ValueError: ``value`` is out of bounds or not an integer.
    """
    value = plain_number(value)
    if value is not None and not _is_a(Integral, value):
        whole = isinstance(value, float) and value.is_integer()
        raise _error(name, value, "an integer", optional, remedy or (f"Write {int(value)}." if whole else ""))
    return check_number(name, value, at_least=at_least, at_most=at_most, optional=optional, remedy=remedy)


def check_shape(name: str, value: Any) -> tuple[int, ...]:
    """``value`` as a tuple of Python integers, checked to be the shape of one x.

    Raises:
        ValueError: It is not a sequence of positive integers.
    """
    value = plain_number(value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        sizes = [plain_number(size) for size in value]
        if all(_is_a(Integral, size) and size > 0 for size in sizes):
            return tuple(sizes)
    remedy = f"Write ({value},)." if _is_a(Integral, value) else "Write (3, 32, 32), say."
    raise ValueError(f"'{name}' should be a tuple of positive integers, got {value!r}. {remedy}")


def check_kind(name: str, value: Any, kind: type | tuple[type, ...], *, optional: bool = False) -> Any:
    """``value``, checked to be an instance of ``kind``.

    Arguments:
        name: Name of the argument, for the error message.
        value: Value of the argument.
        kind: Class, or one of several.
        optional: Also accept None.

    Raises:
        ValueError: It is something else, such as the class itself.
    """
    if isinstance(value, kind) or (optional and value is None):
        return value
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = " or ".join(_with_article(k.__name__) for k in kinds) + (" or None" if optional else "")
    remedy, shown = "", f"{_brief(value)} of type {type(value).__name__}"
    if isinstance(value, type):
        remedy = f"Make an instance: {value.__name__}(...)." if issubclass(value, kind) else ""
        shown = f"the class {value.__name__}"
    elif callable(value) or " object at 0x" in repr(value):  # pages, or an address
        shown = _with_article(type(value).__name__)
    raise ValueError(f"'{name}' should be {wanted}, got {shown}. {remedy}".rstrip())


def plain_number(value: Any) -> Any:
    """A scalar of NumPy or torch as a Python number. Anything else is returned unchanged."""
    is_scalar = not isinstance(value, type) and getattr(value, "ndim", None) == 0 and hasattr(value, "item")
    return value.item() if is_scalar else value


def plain_numbers(instance: Any) -> None:
    """Convert the fields of a dataclass by :func:`plain_number`, also of a frozen one."""
    for field in dataclasses.fields(instance):
        if field.init:
            object.__setattr__(instance, field.name, plain_number(getattr(instance, field.name)))


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOUaeiou' else 'a'} {noun}"


def _brief(value: Any, length: int = 60) -> str:
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= length else f"{shown[:length]}..."


def _is_a(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _range(at_least: float | None, above: float | None, at_most: float | None, below: float | None) -> str:
    low, high = above if at_least is None else at_least, below if at_most is None else at_most
    if low is not None and high is not None:
        return f"in {'(' if at_least is None else '['}{low}, {high}{')' if at_most is None else ']'}"
    if low == 0:
        return "positive" if at_least is None else "0 or positive"
    if low is not None:
        return f"above {low}" if at_least is None else f"at least {low}"
    if high is not None:
        return f"below {high}" if at_most is None else f"at most {high}"
    return "a number"


def _error(name: str, value: Any, wanted: str, optional: bool, remedy: str) -> ValueError:
    wanted = f"{wanted.replace(' or ', ', ')} or None" if optional else wanted
    shown = value if isinstance(value, Real) else _brief(value)
    return ValueError(f"'{name}' should be {wanted}, got {shown}. {remedy}".rstrip())
