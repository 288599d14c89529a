import math

import pytest
import torch
from torch import nn

from ebm_lightning.energies import GaussianEnergy, JointEnergy, MixtureLogits, check_energies
from ebm_lightning.networks import MLP, ConvNet
from ebm_lightning.partition import quadrature
from ebm_lightning.samplers import value_and_gradient
from ebm_lightning.supports import Box, Euclidean, Gaussian

BOX = Box(-1, 1, (2,))


@pytest.fixture
def energy(seed) -> JointEnergy:
    return JointEnergy(MLP(2, 5, (16,)), BOX)


@pytest.mark.parametrize("n", [1, 7])
def test_the_conditional_is_the_softmax(energy, n):
    x = BOX.sample(n)
    log_p = torch.stack([energy(x) - energy(x, torch.full((n,), y)) for y in range(5)], 1)
    assert energy(x).shape == energy(x, torch.zeros(n, dtype=torch.long)).shape == (n,)
    torch.testing.assert_close(log_p, energy.classifier(x).log_softmax(1))


def test_marginal_sums_the_joint(energy):
    x = BOX.sample(7)
    joint = torch.stack([energy(x, torch.full((7,), y)) for y in range(5)], 1)
    torch.testing.assert_close(energy(x), -(-joint).logsumexp(1))


def test_a_function_of_x_added_to_the_logits_keeps_the_conditional(energy):
    x, y = BOX.sample(7), torch.arange(7) % 5
    h = x.prod(1, keepdim=True).exp()
    shifted = energy.from_logits(energy.logits(x) + h, x), energy.from_logits(energy.logits(x) + h, x, y)
    torch.testing.assert_close(shifted[0], energy(x) - h[:, 0])
    torch.testing.assert_close(shifted[1] - shifted[0], energy(x, y) - energy(x))


def test_energy_outside_the_box_is_infinite(energy):
    assert energy(torch.tensor([[0.0, 1.01]])).item() == math.inf


def test_a_gaussian_reference_adds_its_log_density(seed):
    net, x = MLP(2, 3), torch.randn(4, 2)
    with_reference = JointEnergy(net, Gaussian(0.0, 1.0, (2,)))(x)
    log_q = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    torch.testing.assert_close(with_reference, JointEnergy(net, Euclidean())(x) - log_q)


def test_temperature_divides_the_logits(seed):
    net, x = MLP(2, 3), BOX.sample(4)
    torch.testing.assert_close(JointEnergy(net, BOX, 2.0)(x), -(net(x) / 2).logsumexp(1))
    with pytest.raises(ValueError, match="'temperature' should be positive"):
        JointEnergy(net, BOX, 0.0)


@pytest.mark.parametrize("y", [torch.tensor([3]), torch.tensor(3)])
def test_one_label_is_the_label_of_all(energy, y):
    """Kills: a gather with one row, which gives all x the energy of the first."""
    x = BOX.sample(7)
    assert torch.equal(energy(x, y), energy(x, torch.full((7,), 3)))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(3, dtype=torch.long), r"'y' should have shape \(7,\), .*got \(3,\). Repeat or select"),
        (torch.zeros(14, dtype=torch.long), r"got \(14,\)"),
        (torch.zeros(0, dtype=torch.long), r"got \(0,\)"),
        (torch.zeros(7, 1, dtype=torch.long), r"got \(7, 1\)"),
        (torch.eye(7, dtype=torch.long), r"got \(7, 7\).*one-hot labels into classes by .argmax\(1\)"),
        (3, r"'y' should be a tensor of labels, got 3. Use torch.tensor\(\[3\]\)"),
    ],
)
def test_labels_that_do_not_match_are_refused(energy, y, message):
    with pytest.raises(ValueError, match=message):
        energy(BOX.sample(7), y)


@pytest.mark.parametrize("returned", [torch.zeros(5, 1), torch.zeros(()), torch.zeros(5, 3), torch.zeros(4), 0.0])
def test_an_energy_is_one_number_for_each_x(returned):
    with pytest.raises(ValueError, match="'energy' should return"):
        check_energies(returned, torch.zeros(5, 2))
    with pytest.raises(ValueError, match="'energy' should return"):
        value_and_gradient(
            lambda x: returned + 0 * x.sum() if isinstance(returned, torch.Tensor) else 0.0, torch.zeros(5, 2)
        )


@pytest.mark.parametrize("net", [nn.Identity(), nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, -1)))])
def test_the_classifier_has_to_return_one_row_of_logits_for_each_x(net):
    with pytest.raises(ValueError, match=r"'classifier' should map .* to logits \(3, K\)"):
        JointEnergy(net, Euclidean())(torch.zeros(3, 2, 2))


def test_mixture_logits_are_normalized():
    means = torch.tensor([[-1.0, 0.5], [2.0, -1.0], [0.0, 2.0]])
    weights = torch.tensor([0.2, 0.5, 0.3])
    energy = JointEnergy(MixtureLogits(means, 0.7, weights), box := Box(-8, 8, (2,)))
    assert quadrature(energy, box) == pytest.approx(0, abs=1e-5)
    for y, weight in enumerate(weights):
        log_z_y = quadrature(lambda x, y=y: energy(x, torch.full((len(x),), y)), box)
        assert log_z_y == pytest.approx(math.log(weight), abs=1e-5)


def test_log_z_of_the_gaussian_energy():
    energy = GaussianEnergy(torch.tensor([0.5, -0.5]), torch.tensor([0.4, 1.1]))
    assert quadrature(energy, Box(-8, 8, (2,))) == pytest.approx(energy.log_z, abs=1e-5)


def test_head_and_logsumexp_are_in_float32_under_autocast(seed):
    """Kills: logits near 300 in bfloat16, which make energies multiples of 2."""
    net, x = ConvNet((1, 8, 8), 10, 8), torch.randn(64, 1, 8, 8).clamp(-1, 1)
    with torch.no_grad():
        net.layers[-1].bias += 300
    energy = JointEnergy(net, Box(-1, 1, (1, 8, 8)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded, hooks = energy(x), len(net.layers[-1]._forward_hooks)
    assert rounded.dtype == torch.float32
    assert hooks == 0
    with torch.no_grad():
        assert (rounded - energy(x)).abs().max() < 0.1
