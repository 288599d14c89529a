"""Range checks for numeric arguments, so that all of these errors are worded the same way."""

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
) -> None:
    """Check that ``value`` is a number within bounds.

    Arguments:
        name: Name of the argument, for the error message.
        value: Value of the argument.
        at_least, above: Lower bound, inclusive or exclusive.
        at_most, below: Upper bound, inclusive or exclusive.
        optional: Also accept None.
        remedy: A sentence that says how to fix the error, appended to its message.

    Raises:
        ValueError: ``value`` is out of bounds, NaN, or not a number. Booleans and tensors are not numbers.
    """
    if value is None and optional:
        return
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


def check_integer(
    name: str,
    value: Any,
    *,
    at_least: int | None = None,
    at_most: int | None = None,
    optional: bool = False,
    remedy: str = "",
) -> None:
    """Check that ``value`` is an integer within inclusive bounds. Arguments as for :func:`check_number`.

    Raises:
        ValueError: ``value`` is out of bounds or not an integer.
    """
    if value is not None and not _is_a(Integral, value):
        raise _error(name, value, "an integer", optional, remedy)
    check_number(name, value, at_least=at_least, at_most=at_most, optional=optional, remedy=remedy)


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
    shown = value if isinstance(value, Real) else repr(value)
    return ValueError(f"'{name}' should be {wanted}, got {shown}. {remedy}".rstrip())
