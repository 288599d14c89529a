import math

import numpy as np
import pytest
import torch

from ebm_lightning.checks import check_integer, check_kind, check_number, check_shape


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "message"),
    [
        ({"at_least": 0}, [0, 0.5, np.float32(1), math.inf], [-1e-9, -math.inf], "0 or positive"),
        ({"above": 0}, [1e-9, 3], [0, 0.0, -1], "positive"),
        ({"at_least": 2}, [2, 7], [1.9], "at least 2"),
        ({"above": 2}, [2.1], [2], "above 2"),
        ({"at_most": 0.5}, [0.5, -7], [0.6], "at most 0.5"),
        ({"below": 0.5}, [0.4], [0.5], "below 0.5"),
        ({"at_least": 0, "at_most": 1}, [0, 1], [-0.1, 1.5], "in [0, 1]"),
        ({"at_least": 0, "below": 1}, [0, 0.9], [-0.1, 1], "in [0, 1)"),
        ({"above": 0, "at_most": 1}, [0.1, 1], [0, 1.5], "in (0, 1]"),
        ({"above": 0, "below": 1}, [0.5], [0, 1], "in (0, 1)"),
        ({}, [-7, 0.5, math.inf], [], "a number"),
    ],
)
def test_numbers_have_to_be_in_range(bounds, inside, outside, message):
    """Kills: a bound that is ignored, an exclusive bound that includes its value, and NaN that passes."""
    for value in inside:
        check_number("rho", value, **bounds)
    for value in [*outside, math.nan]:
        with pytest.raises(ValueError) as error:  # noqa: PT011 (compared below)
            check_number("rho", value, **bounds)
        assert str(error.value) == f"'rho' should be {message}, got {value}."


def test_integers_have_to_be_in_range():
    check_integer("steps", 1, at_least=1)
    check_integer("steps", np.int64(3), at_least=1, at_most=3)
    check_integer("steps", -7)
    with pytest.raises(ValueError, match=r"^'steps' should be at least 1, got 0\.$"):
        check_integer("steps", 0, at_least=1)
    with pytest.raises(ValueError, match=r"^'threshold' should be in \[1, 2147483647\], got 2147483648\.$"):
        check_integer("threshold", 2**31, at_least=1, at_most=2**31 - 1)


@pytest.mark.parametrize("value", [True, "1", torch.ones(1), torch.tensor(True), np.ones(2), [1], 1j])
def test_other_types_are_not_numbers(value):
    with pytest.raises(ValueError, match="'rho' should be a number, got"):
        check_number("rho", value, at_least=0)
    with pytest.raises(ValueError, match="'steps' should be an integer, got"):
        check_integer("steps", value)


@pytest.mark.parametrize("value", [2.0, 0.5, np.float64(1), math.nan])
def test_floats_are_not_integers(value):
    with pytest.raises(ValueError, match="'steps' should be an integer, got"):
        check_integer("steps", value, at_least=1)


@pytest.mark.parametrize("scalar", [np.float32, np.float64, np.int64, torch.tensor])
def test_scalars_become_python_numbers(scalar):
    """Kills: a scalar that is checked and kept."""
    assert type(check_number("rho", scalar(3))) in (int, float)
    if scalar not in (np.float32, np.float64):
        assert type(check_integer("steps", scalar(3))) is int


def test_a_whole_float_is_named_as_an_integer():
    with pytest.raises(ValueError, match=r"'size' should be an integer, got 100.0. Write 100\."):
        check_integer("size", 1e2)


@pytest.mark.parametrize(
    ("value", "remedy"), [(64, r"Write \(64,\)"), ("64", ""), ((3, 0.5), ""), ((3, -1), ""), (None, "")]
)
def test_shapes_are_tuples_of_positive_integers(value, remedy):
    with pytest.raises(ValueError, match=rf"'shape' should be a tuple of positive integers, got .*{remedy}"):
        check_shape("shape", value)
    shape = check_shape("shape", [np.int64(3), torch.tensor(2)])
    assert (shape, {type(size) for size in shape}) == ((3, 2), {int})


def test_kinds_are_checked_with_a_remedy_for_classes():
    assert check_kind("net", None, dict, optional=True) is None
    with pytest.raises(ValueError, match=r"^'net' should be a dict, got the class dict. Make an instance: dict\("):
        check_kind("net", dict, dict)
    with pytest.raises(ValueError, match=r"^'net' should be a dict or a list, got 3 of type int\.$"):
        check_kind("net", 3, (dict, list))


def test_none_has_to_be_allowed():
    check_number("limit", None, above=0, optional=True)
    check_integer("limit", None, at_least=1, optional=True)
    for check in (check_number, check_integer):
        with pytest.raises(ValueError, match="'limit' should be a number, got None"):
            check("limit", None, at_least=1)
        with pytest.raises(ValueError, match="'limit' should be at least 1 or None, got 0"):
            check("limit", 0, at_least=1, optional=True)
        with pytest.raises(ValueError, match="'limit' should be 0, positive or None, got -1"):
            check("limit", -1, at_least=0, optional=True)


def test_the_remedy_ends_the_message():
    with pytest.raises(ValueError, match=r"^'samples' should be at least 20, got 3\. Use more images\.$"):
        check_integer("samples", 3, at_least=20, remedy="Use more images.")
    with pytest.raises(ValueError, match=r"^'name' should be a number, got 'x'\. Use more images\.$"):
        check_number("name", "x", remedy="Use more images.")
