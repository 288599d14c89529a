import math

import pytest
import torch
from torch import nn

from ebm_lightning.energies import JointEnergy
from ebm_lightning.partition import Normal, quadrature
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Box, Euclidean
from tests.conftest import gaussian_z

MEAN, STD = 0.5, 0.8
SUPPORT = Euclidean((1,), Normal(torch.tensor([MEAN]), torch.tensor([STD])))


def test_infinite_mass_has_no_density_or_samples():
    assert Euclidean((2,)).log_mass == math.inf
    for action in (lambda: Euclidean((2,)).sample(3), lambda: Euclidean((2,)).log_prob(torch.zeros(3, 2))):
        with pytest.raises(ValueError, match="'support' should have finite mass"):
            action()
    x, sign = Euclidean().bounce(torch.full((1, 1), 7.0))
    assert (x, sign) == (7, 1)


def test_the_reference_is_q(seed):
    x = 3 * torch.randn(7, 1)
    expected = torch.distributions.Normal(MEAN, STD).log_prob(x[:, 0])
    torch.testing.assert_close(SUPPORT.log_q(x), expected)
    torch.testing.assert_close(SUPPORT.log_prob(x), expected.double(), atol=1e-5, rtol=1e-5)
    assert SUPPORT.log_mass == 0
    assert not SUPPORT.constant


def test_samples_follow_the_reference(seed):
    x = SUPPORT.sample(40_000, generator=make_generator(seed, "reference"))
    assert gaussian_z(x[:, 0], MEAN, STD**2) < 5


def test_log_z_of_a_joint_energy_with_a_reference():
    """Of logits a x + b, log Z_y = a mean + b + a^2 std^2 / 2. Kills: q left out, q counted twice."""
    net = nn.Linear(1, 2)
    net.weight.data, net.bias.data = torch.tensor([[1.5], [-0.7]]), torch.tensor([0.2, -0.4])
    energy, line = JointEnergy(net, SUPPORT), Box(-12, 12, (1,))
    a, b = net.weight.detach().double()[:, 0], net.bias.detach().double()
    expected = a * MEAN + b + a.square() * STD**2 / 2
    assert quadrature(energy, line) == pytest.approx(float(expected.logsumexp(0)), abs=1e-5)
    for y in range(2):
        log_z_y = quadrature(lambda x, y=y: energy(x, torch.full((len(x),), y)), line)
        assert log_z_y == pytest.approx(float(expected[y]), abs=1e-5)


def test_a_truncated_reference_is_rejected():
    box = Box(-1, 1, (1,))
    with pytest.raises(ValueError, match=r"'reference' should be a density on R\^D, got Normal with box=Box"):
        Euclidean((1,), Normal(torch.zeros(1), torch.ones(1), box))
