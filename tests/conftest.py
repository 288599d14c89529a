"""What all tests share: one thread, a seed that ``TEST_SEED`` moves, and the measures of a stochastic test."""

import math
import os
import signal

import pytest
import torch
from torch import Tensor

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored in the background


@pytest.fixture
def seed() -> int:
    """Of the test's own randomness: run the suite with ``TEST_SEED=1`` to see that it passes by no luck."""
    value = int(os.environ.get("TEST_SEED", "0"))
    torch.manual_seed(value)
    return value


def z_score(values: Tensor, expected: float) -> float:
    """How many standard errors the mean of independent ``values`` lies from what it should be."""
    values = values.double()
    return float((values.mean() - expected).abs() / (values.std() / math.sqrt(len(values))))


def gaussian_z(x: Tensor, mean: float, variance: float) -> float:
    """The largest z of the moments 1, 2 and 4 of independent draws, shape (N,), against a Gaussian's."""
    centred = x.double() - mean
    return max(
        z_score(centred, 0.0),
        z_score(centred**2, variance),
        z_score(centred**4, 3 * variance**2),
    )
