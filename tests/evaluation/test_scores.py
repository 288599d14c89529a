import math

import pytest
import torch
from torch import nn

from ebm_lightning import Box, Euclidean, JointEnergy
from ebm_lightning.energies import MixtureLogits
from ebm_lightning.evaluation.features import Penultimate
from ebm_lightning.evaluation.scores import approximate_mass, log_density, max_probability, negative_entropy
from ebm_lightning.networks import MLP, ConvNet


def test_approximate_mass_of_a_gaussian(seed):
    """log p = -|x - mu|^2 / 2 s^2, and minus the norm of its gradient is -|x - mu| / s^2."""
    mean, x = torch.randn(1, 5), torch.randn(40, 5)
    energy = JointEnergy(MixtureLogits(mean, std=0.5), Euclidean())
    assert torch.allclose(approximate_mass(energy, x), -(x - mean).norm(dim=1) / 0.25, rtol=1e-5)


def test_scores_of_a_classifier_are_those_of_its_softmax(seed):
    net, x = MLP(4, 3, (8,)), torch.rand(7, 4)
    energy, p = JointEnergy(net, Euclidean()), net(x).softmax(1)
    assert torch.allclose(max_probability(energy, x), p.max(1).values)
    assert torch.allclose(negative_entropy(energy, x), (p * p.log()).sum(1), atol=1e-6)
    assert torch.equal(log_density(energy, x), -energy(x))


def test_approximate_mass_restores_state_also_in_inference_mode(seed):
    net = nn.Sequential(ConvNet((1, 8, 8), 3, 4), nn.Dropout())
    energy, x = JointEnergy(net, Box(-1, 1, (1, 8, 8))), torch.rand(6, 1, 8, 8)
    state, outside = torch.get_rng_state(), approximate_mass(energy, x)
    with torch.inference_mode():
        inside = approximate_mass(energy, x.clone())
    assert torch.equal(inside, outside)
    # It does not depend on the rest of the batch.
    assert torch.allclose(approximate_mass(energy, x[:1]), outside[:1], rtol=1e-4)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_penultimate_features_are_the_input_of_the_last_layer(seed):
    net, x = MLP(4, 3, (8, 5)), torch.rand(7, 4)
    features = Penultimate(net)(x)
    assert features.shape == (7, 5)
    assert torch.allclose(net.layers[-1](features), net(x))
    assert not net.layers[-1]._forward_pre_hooks
    with pytest.raises(ValueError, match="'classifier' should have a linear layer, got Flatten"):
        Penultimate(nn.Flatten())


def test_scores_are_larger_for_likelier_x(seed):
    energy = JointEnergy(MixtureLogits(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), 0.3), Euclidean())
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 3.0]])
    assert log_density(energy, x).diff().max() < 0
    assert max_probability(energy, x)[0] > max_probability(energy, x)[1] == pytest.approx(0.5)
    assert negative_entropy(energy, x)[1] == pytest.approx(-math.log(2))
