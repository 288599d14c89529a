"""What every support promises: a normalized density, its gradient and samples, and checks of data."""

import math
import re

import pytest
import torch

from ebm_lightning.partition import Normal
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Binary, Box, Euclidean, Gaussian, Support
from ebm_lightning.supports.density import FittedDensity, device_of, one_process
from tests.conftest import z_score

SHAPE = (3, 8, 8)
IMAGES = Box(-1, 1, SHAPE)
PLANE = Normal(torch.tensor([0.3, -0.2]), torch.tensor([0.6, 1.1]))
SQUARE = Box(-1, 2, (2,))
TRUNCATED = Normal(PLANE.mean, PLANE.std, SQUARE)
SUPPORTS = {
    "box": SQUARE,
    "box with reference": Box(-1, 2, (2,), TRUNCATED),
    "gaussian": Gaussian(PLANE.mean.float(), PLANE.std.float(), (2,)),
    "euclidean with reference": Euclidean((2,), PLANE),
    "binary": Binary((2,)),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_a_support_is_the_density_of_its_samples(name, seed):
    """E_q[r / q] is the mass that another density r has on the support. Kills: a density that is not normalized."""
    support = SUPPORTS[name]
    x = support.sample(20_000, generator=make_generator(seed, name))
    assert x.shape == (20_000, 2)
    assert x.dtype == torch.float32
    log_q = support.log_prob(x)
    assert log_q.dtype == torch.float64
    if isinstance(support, Binary):
        assert log_q.tolist() == [pytest.approx(-2 * math.log(2))] * len(x)
        assert z_score(x.sum(1), 1.0) < 5
        return
    inner = Box(-0.5, 1.5, (2,))  # inside of every support here
    ratio = (inner.log_prob(x) - log_q).exp()
    assert z_score(ratio, 1.0) < 5
    assert z_score(ratio * x[:, 0].square(), 1.5**3 / 6 + 0.5**3 / 6) < 5


@pytest.mark.parametrize("name", SUPPORTS)
def test_log_prob_is_log_q_without_the_mass(name):
    support = SUPPORTS[name]
    x = support.sample(7)
    torch.testing.assert_close(support.log_prob(x), support.log_q(x).double() - support.log_mass)
    log_p, gradient = support.log_prob_and_gradient(x)
    torch.testing.assert_close(log_p, support.log_prob(x))
    assert log_p.dtype == torch.float64
    x.requires_grad_()
    total = support.log_prob(x).sum()
    expected = torch.autograd.grad(total, x)[0] if total.requires_grad else torch.zeros(7, 2)
    torch.testing.assert_close(gradient.expand(7, 2), expected, atol=1e-5, rtol=1e-5)
    assert support.constant == (not total.requires_grad)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.full((2, *SHAPE), math.nan), "'x' should be finite, got 384"),
        (torch.full((2, *SHAPE), math.inf), "'x' should be finite"),
        (torch.zeros(2, 1, 8, 8), "'x' should have shape (N, 3, 8, 8), got (2, 1, 8, 8)"),
        (torch.zeros(2, *SHAPE, dtype=torch.uint8), "'x' should be a floating point tensor, got torch.uint8"),
    ],
)
def test_bad_data(x, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        IMAGES.check(x)


@pytest.mark.parametrize("support", [IMAGES, Gaussian(0.0, 1.0, SHAPE), Euclidean(), Euclidean(SHAPE)])
def test_valid_data_pass(support: Support):
    support.check(torch.rand(2, *SHAPE) * 2 - 1)


def test_one_process_and_device_defaults():
    assert one_process(torch.ones(2)).tolist() == [1, 1]
    assert device_of(None, None) is None
    assert device_of(make_generator(0), None) == torch.device("cpu")
    assert device_of(make_generator(0), "meta") == "meta"
    with pytest.raises(TypeError, match="abstract"):
        FittedDensity()
