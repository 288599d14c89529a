import math
import re

import pytest
import torch

from ebm_lightning.streams import make_generator
from ebm_lightning.supports import Box, Euclidean, Gaussian, Support
from tests.conftest import gaussian_z, z_score

IMAGES = Box(-1, 1, (3, 8, 8))


def test_box_mass_and_density():
    box = Box(-2, 3, (4,))
    assert box.log_mass == pytest.approx(4 * math.log(5))
    x = torch.tensor([[-2.0, 0, 1, 3], [0, 0, 0, 3.001]])
    assert box.log_q(x).tolist() == [0, -math.inf]


@pytest.mark.parametrize("bad", [-1.0001, 1.0001, math.inf, -math.inf, math.nan])
def test_one_bad_pixel_puts_an_image_outside(bad):
    """Kills: one wall alone, extremes over the batch, a NaN that passes."""
    x = torch.ones(3, *IMAGES.shape)
    x[0, 0, 0, 0], x[1, 2, 7, 7] = -1.0, bad
    assert IMAGES.contains(x).tolist() == [True, False, True]
    assert not IMAGES.log_q(x.requires_grad_()).requires_grad


def test_box_sample_is_uniform(seed):
    x = Box(-2, 3, (1,)).sample(20_000, generator=make_generator(seed, "uniform"))
    assert z_score(x, 0.5) < 5
    assert z_score(x.square(), (27 + 8) / 15) < 5


@pytest.mark.parametrize(
    ("x", "folded"), [(0.2, 0.2), (1.3, 0.7), (-1.3, -0.7), (3.4, -0.6), (-2.9, 0.9), (5.5, 0.5), (1.0, 1.0)]
)
def test_reflect_folds_as_mirrors_do(x, folded):
    box = Box(-1, 1, (1,))
    assert box.reflect(torch.tensor([[x]], dtype=torch.float64)).item() == pytest.approx(folded)


def test_reflect_never_leaves_the_box_by_rounding(seed):
    box = Box(-0.1, 0.7, (1,))
    x = 10 * torch.randn(100_000, 1)
    assert box.contains(box.reflect(x)).all()


@pytest.mark.parametrize("reach", [0.9, 1.9, 30.0, 1e5])
@pytest.mark.parametrize("box", [Box(-1, 1, (2,)), Box(-0.3, 0.4, (2,))])
def test_reflection_is_that_of_the_remainder_and_turns_momenta_at_each_wall(box, reach, seed):
    """Kills: a sign from one wall alone, a fold that serves one box's width on either side."""
    x = (torch.rand(1000, 2, dtype=torch.float64) - 0.5) * reach * (box.high - box.low)
    start, width = x.clone(), box.high - box.low
    inside, sign = box.bounce(x)
    assert torch.allclose(inside, box.high - ((x - box.low).remainder(2 * width) - width).abs(), atol=1e-9)
    assert torch.equal(sign, 1 - 2 * ((x - box.low) / width).floor().remainder(2))
    assert torch.equal(x, start), "the argument is left as it was"
    assert torch.equal(sign, torch.where(box.reflect(x + 1e-7) > inside, 1.0, -1.0).double()), "the slope of the fold"


def test_clamp_moves_to_the_wall():
    assert IMAGES.clamp(torch.tensor([-3.0, 0.5, 3.0])).tolist() == [-1, 0.5, 1]


def test_gaussian_density_is_torch_s(seed):
    mean, std = torch.randn(2, 3), torch.rand(2, 3) + 0.5
    x = torch.randn(5, 2, 3)
    expected = torch.distributions.Normal(mean, std).log_prob(x).sum((1, 2))
    torch.testing.assert_close(Gaussian(mean, std, (2, 3)).log_q(x), expected)


def test_gaussian_sample(seed):
    x = Gaussian(1.0, [2.0], (1,)).sample(50_000, generator=make_generator(seed, "gaussian"))
    assert gaussian_z(x[:, 0], 1.0, 4.0) < 5


def test_euclidean_has_infinite_mass_and_no_draws():
    assert Euclidean((2,)).log_mass == math.inf
    with pytest.raises(ValueError, match="'support' should have finite mass"):
        Euclidean((2,)).sample(3)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(2, 3, 8, 8) * 255, "'x' should be in the box [-1, 1], got"),
        (torch.rand(2, 3, 8, 8) * 255, "8-bit pixels: use x / 255 * 2 - 1"),
        (torch.linspace(-2.1, 2.6, 384).view(2, 3, 8, 8), "first layer of the classifier"),
        (torch.full((2, 3, 8, 8), -7.0), "widen the box"),
        (torch.full((2, 3, 8, 8), math.nan), "'x' should be finite, got 384"),
        (torch.full((2, 3, 8, 8), math.inf), "'x' should be finite"),
        (torch.zeros(2, 1, 8, 8), "'x' should have shape (N, 3, 8, 8), got (2, 1, 8, 8)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "'x' should be a floating point tensor, got torch.uint8"),
    ],
)
def test_box_says_what_is_wrong_with_data(x, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        IMAGES.check(x)


def test_box_in_unit_pixels_names_the_shift():
    with pytest.raises(ValueError, match=re.escape("use x * 0.5 + 0.25")):
        Box(0.25, 0.75, (1,)).check(torch.tensor([[0.0], [1.0]]))


@pytest.mark.parametrize("support", [IMAGES, Gaussian(0.0, 1.0, (3, 8, 8)), Euclidean(), Euclidean((3, 8, 8))])
def test_good_data_pass(support: Support):
    support.check(torch.rand(2, 3, 8, 8) * 2 - 1)


def test_bad_supports():
    with pytest.raises(ValueError, match="'low' should be finite and below 'high'"):
        Box(1, -1, (2,))
    with pytest.raises(ValueError, match="'std' should be positive"):
        Gaussian(0.0, 0.0, (2,))
