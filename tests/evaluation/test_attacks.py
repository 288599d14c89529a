"""PGD against the closed forms of a linear classifier.

Mutants that these kill: descent instead of ascent, a gradient of the batch mean under L2 without normalization, no
projection, projection around the last iterate, a clamp before the projection, no clamp, and a cross-entropy in float32
whose gradient is 0 where the classifier is confident.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_lightning import PGD, Box
from ebm_lightning.evaluation.attacks import margin
from ebm_lightning.networks import MLP
from ebm_lightning.rng import make_generator
from tests.helpers import weights

BOX = Box(-1, 1, (6,))


def linear(scale: float = 1.0) -> nn.Linear:
    net = nn.Linear(6, 2)
    with torch.no_grad():
        net.weight.normal_().mul_(scale)
    return net


def batch(n: int = 64) -> tuple[Tensor, Tensor]:
    return BOX.sample(n), torch.randint(2, (n,))


def margin_gradient(net: nn.Linear, y: Tensor) -> Tensor:
    """The gradient of the margin: w of the other class minus w of y."""
    return net.weight[1 - y] - net.weight[y]


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_linf_on_a_linear_classifier_reaches_the_corner_inside_the_box(seed, scale):
    net, (x, y) = linear(scale), batch()
    attacked = PGD(0.3, steps=10)(net, x, y, support=BOX, generator=make_generator(seed))
    with torch.no_grad():
        expected = BOX.clamp(x + 0.3 * margin_gradient(net, y).sign())
    assert torch.allclose(attacked, expected, atol=1e-6)
    assert not torch.allclose(attacked, x + 0.3 * margin_gradient(net, y).sign()), "some corners are outside the box"


def test_l2_on_a_linear_classifier_follows_the_weights(seed):
    net, (x, y) = linear(), batch()
    # A step as long as the radius halves the angle to the optimum.
    attacked = PGD(0.3, "l2", steps=15, step_size=0.3)(net, x, y, generator=make_generator(seed))
    with torch.no_grad():
        expected = x + 0.3 * F.normalize(margin_gradient(net, y), dim=1)
        best, reached = margin(net(expected), y), margin(net(attacked), y)
    assert (reached <= best + 1e-5).all(), "no point of the ball is worse"
    assert (best - reached).max() < 1e-4
    assert torch.allclose(attacked, expected, atol=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [0.1, 3.0])
def test_attacks_stay_in_the_ball_and_in_the_box(seed, norm, eps):
    x, y = batch()
    attacked = PGD(eps, norm, steps=5)(MLP(6, 2, (8,)), x, y, support=BOX, generator=make_generator(seed))
    length = (attacked - x).abs().amax(1) if norm == "linf" else (attacked - x).norm(dim=1)
    assert (length <= eps * (1 + 1e-5)).all()
    assert BOX.contains(attacked).all()


def test_random_starts_fill_the_ball(seed):
    """In a ball of D dimensions, (|x| / eps)^D is uniform; in a cube, every component is."""
    x = torch.zeros(20_000, 6)
    start = PGD(2.0, "l2")._start(x, make_generator(seed))
    radius = start.norm(dim=1) / 2
    assert abs(float(radius.pow(6).mean()) - 0.5) < 5 * (1 / 12 / 20_000) ** 0.5
    cube = PGD(2.0)._start(x, make_generator(seed))
    assert abs(float(cube.mean())) < 5 * 2 / (3 * 120_000) ** 0.5
    assert 1.99 < float(cube.abs().max()) <= 2


def test_margin_is_cross_entropy_before_its_softplus(seed):
    logits, y = torch.randn(50, 4), torch.randint(4, (50,))
    assert torch.allclose(F.softplus(margin(logits, y)), F.cross_entropy(logits, y, reduction="none"), atol=1e-6)


def test_the_margin_never_falls_and_images_do_not_depend_on_their_batch(seed):
    net, (x, y) = MLP(6, 2, (8,)), batch(8)
    attack = PGD(0.2, steps=3)
    together = attack(net, x, y, generator=make_generator(seed))
    assert (margin(net(together), y) >= margin(net(x), y)).all()
    first = attack(net, x[:1], y[:1], generator=make_generator(seed))
    assert torch.allclose(first, together[:1], atol=1e-6)


def test_state_is_restored_also_in_inference_mode(seed):
    net, (x, y) = nn.Sequential(MLP(6, 2, (8,)), nn.Dropout()), batch()
    before, state = weights(net), torch.get_rng_state()
    kept = x.clone()
    with torch.inference_mode():
        inside = PGD(0.1, steps=3)(net, x.clone(), y.clone(), generator=make_generator(seed))
    assert torch.equal(inside, PGD(0.1, steps=3)(net, x, y, generator=make_generator(seed)))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights(net), before)
    assert torch.equal(x, kept)
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 0.0}, "'eps' should be positive, got 0.0"),
        ({"eps": 1.0, "steps": 0}, "'steps' should be at least 1, got 0"),
        ({"eps": 1.0, "norm": "l1"}, "'norm' should be 'linf' or 'l2', got 'l1'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PGD(**arguments)
