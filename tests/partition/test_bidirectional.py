"""Bounds from both sides: contradictions prove that a run is wrong."""

import math

import pytest

from ebm_lightning.partition import LogZ, bracket


def forward(log_z=0.0, lower=-0.1, std_err=0.05, why=""):
    return LogZ(log_z, std_err, lower=lower, why=why)


def backward(upper, std_err=0.05, why=""):
    return LogZ(upper, std_err, upper=upper, why=why)


@pytest.mark.parametrize("upper", [0.0, 0.5, -0.05, -0.25])
def test_bounds_that_agree_are_reliable(upper):
    both = bracket(forward(), backward(upper))
    assert both.reliable
    assert (both.log_z, both.lower, both.upper) == (0.0, -0.1, upper)


@pytest.mark.parametrize("upper", [-0.3, -1.0, -15.0, -math.inf])
def test_bounds_that_contradict_are_never_reliable(upper):
    """Kills: the distance of the bounds without its sign, the lower bound in place of the estimate, errors of one."""
    both = bracket(forward(), backward(upper), gap=100.0)
    assert not both.reliable
    assert "the samples cannot be exact" in both.why
    assert not bracket(forward(std_err=0.0), backward(-0.01, std_err=0.0)).reliable


def test_errors_of_both_runs_count():
    assert bracket(forward(std_err=0.3), backward(-1.0)).reliable
    assert bracket(forward(), backward(-1.0, std_err=0.3)).reliable
    assert not bracket(forward(std_err=0.2), backward(-1.0)).reliable


def test_bounds_that_are_far_apart_are_not_reliable():
    both = bracket(forward(), backward(2.0))
    assert both.why == "The bounds -0.1 and 2 are more than 1 nats apart: raise 'temperatures'."
    assert bracket(forward(), backward(2.0), gap=3).reliable
    with pytest.raises(ValueError, match="'gap' should be 0 or positive, got -1"):
        bracket(forward(), backward(2.0), gap=-1)


def test_the_reasons_of_both_runs_are_kept():
    both = bracket(forward(why="One."), backward(-15.0, why="Two."))
    assert both.why.endswith("One. Two.")
    assert both.why.startswith("The upper bound -15 is below the estimate 0 by more than 4 standard errors")
    assert bracket(forward(why="Same."), backward(0.0, why="Same.")).why == "Same."
    assert bracket(LogZ(math.nan, math.nan, integrable=False, why="Infinite."), backward(0.0)).why == "Infinite."
