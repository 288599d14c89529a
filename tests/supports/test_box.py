import math
import re

import pytest
import torch

from ebm_lightning.energies import JointEnergy
from ebm_lightning.networks import MLP
from ebm_lightning.partition import Normal, quadrature
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Box
from tests.conftest import z_score

IMAGES = Box(-1, 1, (3, 8, 8))


def test_mass_and_density():
    box = Box(-2, 3, (4,))
    assert box.log_mass == pytest.approx(4 * math.log(5))
    x = torch.tensor([[-2.0, 0, 1, 3], [0, 0, 0, 3.001]])
    assert box.log_q(x).tolist() == [0, -math.inf]


@pytest.mark.parametrize("bad", [-1.0001, 1.0001, math.inf, -math.inf, math.nan])
def test_one_pixel_outside_puts_the_image_outside(bad):
    """Kills: a check of one wall only, extremes over the batch, a NaN that passes."""
    x = torch.ones(3, *IMAGES.shape)
    x[0, 0, 0, 0], x[1, 2, 7, 7] = -1.0, bad
    assert IMAGES.contains(x).tolist() == [True, False, True]
    assert not IMAGES.log_q(x.requires_grad_()).requires_grad


def test_samples_are_uniform(seed):
    x = Box(-2, 3, (1,)).sample(20_000, generator=make_generator(seed, "uniform"))
    assert z_score(x, 0.5) < 5
    assert z_score(x.square(), (27 + 8) / 15) < 5


@pytest.mark.parametrize(
    ("x", "folded"), [(0.2, 0.2), (1.3, 0.7), (-1.3, -0.7), (3.4, -0.6), (-2.9, 0.9), (5.5, 0.5), (1.0, 1.0)]
)
def test_reflection_of_single_points(x, folded):
    box = Box(-1, 1, (1,))
    assert box.reflect(torch.tensor([[x]], dtype=torch.float64)).item() == pytest.approx(folded)


def test_rounding_does_not_reflect_points_out_of_the_box(seed):
    box = Box(-0.1, 0.7, (1,))
    x = 10 * torch.randn(100_000, 1)
    assert box.contains(box.reflect(x)).all()


@pytest.mark.parametrize("reach", [0.9, 1.9, 30.0, 1e5])
@pytest.mark.parametrize("box", [Box(-1, 1, (2,)), Box(-0.3, 0.4, (2,))])
def test_each_wall_reflects_points_and_flips_momenta(box, reach, seed):
    """Kills: a sign from one wall only, a reflection that is right within one width of the box only."""
    x = (torch.rand(1000, 2, dtype=torch.float64) - 0.5) * reach * (box.high - box.low)
    start, width = x.clone(), box.high - box.low
    inside, sign = box.bounce(x)
    assert torch.allclose(inside, box.high - ((x - box.low).remainder(2 * width) - width).abs(), atol=1e-9)
    assert torch.equal(sign, 1 - 2 * ((x - box.low) / width).floor().remainder(2))
    assert torch.equal(x, start), "the argument is not modified"
    slope = torch.where(box.reflect(x + 1e-7) > inside, 1.0, -1.0).double()
    assert torch.equal(sign, slope)


def test_bounce_flips_the_sign_at_every_wall():
    x, sign = Box(-1, 1, (1,)).bounce(torch.tensor([[0.5], [1.5], [-1.5], [3.5], [5.5]]))
    assert x.flatten().tolist() == [0.5, 0.5, -0.5, -0.5, 0.5]
    assert sign.flatten().tolist() == [1, -1, -1, 1, -1]


def test_clamp_moves_to_the_wall():
    assert IMAGES.clamp(torch.tensor([-3.0, 0.5, 3.0])).tolist() == [-1, 0.5, 1]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(2, 3, 8, 8) * 255, "'x' should be in the box [-1, 1], got"),
        (torch.rand(2, 3, 8, 8) * 255, "8-bit pixels: use x / 255 * 2 - 1"),
        (torch.linspace(-2.1, 2.6, 384).view(2, 3, 8, 8), "first layer of the classifier"),
        (torch.full((2, 3, 8, 8), -7.0), "widen the box"),
    ],
)
def test_errors_name_the_scale_of_the_data(x, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        IMAGES.check(x)


def test_the_remedy_for_unit_pixels_has_the_right_shift():
    with pytest.raises(ValueError, match=re.escape("use x * 0.5 + 0.25")):
        Box(0.25, 0.75, (1,)).check(torch.tensor([[0.0], [1.0]]))


def test_walls_in_the_wrong_order():
    with pytest.raises(ValueError, match="'low' should be finite and below 'high'"):
        Box(1, -1, (2,))


# A reference density in place of the uniform one.

MEAN, STD, BOX = 0.4, 0.7, Box(-1, 2, (1,))
NORMAL = torch.distributions.Normal(torch.tensor(MEAN, dtype=torch.float64), STD)
LOG_MASS = (NORMAL.cdf(torch.tensor(2.0)) - NORMAL.cdf(torch.tensor(-1.0))).log()
REFERENCE = Normal(torch.tensor([MEAN]), torch.tensor([STD]), BOX)
TILTED = Box(-1, 2, (1,), REFERENCE)


def grid(n: int = 20_001) -> tuple[torch.Tensor, torch.Tensor]:
    """Points on the box, shape (n, 1), and the truncated normal density there times the weights of Simpson's rule."""
    x = torch.linspace(-1, 2, n, dtype=torch.float64)
    weights = torch.full((n,), 2.0, dtype=torch.float64)
    weights[1::2], weights[0], weights[-1] = 4, 1, 1
    return x[:, None], (NORMAL.log_prob(x) - LOG_MASS).exp() * weights * 3 / (n - 1) / 3


def test_the_reference_is_q():
    """Kills: a normal density that is not normalized on the box, and one that goes on outside."""
    x = torch.tensor([[-1.0], [0.3], [2.0], [2.001]])
    expected = NORMAL.log_prob(x[:, 0].double()) - LOG_MASS
    torch.testing.assert_close(TILTED.log_q(x)[:3], expected[:3].float())
    assert TILTED.log_q(x)[3] == -math.inf
    assert TILTED.log_mass == 0
    assert not TILTED.constant
    torch.testing.assert_close(TILTED.log_prob(x)[:3], expected[:3], atol=1e-6, rtol=1e-6)


def test_samples_follow_the_reference(seed):
    x = TILTED.sample(40_000, generator=make_generator(seed, "reference"))
    assert TILTED.contains(x).all()
    points, q = grid()
    for power in (1, 2, 4):
        assert z_score(x[:, 0].double() ** power, float((points[:, 0] ** power * q).sum())) < 5


def test_log_z_of_a_joint_energy_with_a_reference(seed):
    """Kills: q left out, q counted twice, a mass of the box in place of that of q."""
    net = MLP(1, 3, (8,))
    with torch.no_grad():
        net.layers[-1].weight.mul_(4)
    energy = JointEnergy(net, TILTED)
    points, q = grid()
    with torch.no_grad():
        logits = net(points.float()).double()
    expected = float((logits.logsumexp(1).exp() * q).sum().log())
    by_class = (logits.exp() * q[:, None]).sum(0).log()
    assert quadrature(energy, TILTED) == pytest.approx(expected, abs=1e-5)
    for y in range(3):
        log_z_y = quadrature(lambda x, y=y: energy(x, torch.full((len(x),), y)), TILTED)
        assert log_z_y == pytest.approx(float(by_class[y]), abs=1e-5)


@pytest.mark.parametrize(
    "reference",
    [Normal(REFERENCE.mean, REFERENCE.std), Normal(REFERENCE.mean, REFERENCE.std, Box(-1, 1, (1,))), BOX],
    ids=["not truncated", "other walls", "a support"],
)
def test_a_reference_has_to_be_truncated_to_the_box(reference):
    with pytest.raises(ValueError, match=r"'reference' should be truncated to the box \[-1, 2\], got"):
        Box(-1, 2, (1,), reference)
