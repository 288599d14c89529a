import math
import re

import pytest
import torch

from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Binary
from tests.conftest import z_score


def test_mass_and_density():
    support = Binary((2, 3))
    assert support.log_mass == pytest.approx(6 * math.log(2))
    x = torch.ones(3, 2, 3)
    x[1, 0, 0], x[2, 1, 2] = 0, 0.5
    assert support.contains(x).tolist() == [True, True, False]
    assert support.log_q(x).tolist() == [0, 0, -math.inf]
    assert Binary((2, 3), probabilities=True).log_q(x).tolist() == [0, 0, 0]


def test_samples_are_fair_coins(seed):
    x = Binary((2,)).sample(20_000, generator=make_generator(seed, "coins"))
    assert set(x.unique().tolist()) == {0, 1}
    assert z_score(x[:, 0], 0.5) < 5
    assert z_score(x[:, 0] * x[:, 1], 0.25) < 5


@pytest.mark.parametrize(
    ("x", "probabilities", "message"),
    [
        (torch.tensor([[0.2]]), False, "'x' should be 0 or 1, got values in [0.2, 0.2]. These look like gray pixels"),
        (torch.tensor([[7.0]]), False, "Scale the data to [0, 1]"),
        (torch.tensor([[-0.2]]), True, "'x' should be in [0, 1], got values in [-0.2, -0.2]"),
    ],
)
def test_bad_data(x, probabilities, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Binary((1,), probabilities).check(x)


@pytest.mark.parametrize("move", [Binary((1,)).reflect, Binary((1,)).clamp, Binary((1,)).bounce])
def test_points_cannot_be_moved_continuously(move):
    with pytest.raises(ValueError, match="'sampler' should be BlockGibbs on Binary"):
        move(torch.zeros(2, 1))
