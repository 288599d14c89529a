import pytest
import torch
from torch import nn

from ebm_lightning import Box, Euclidean, JointEnergy
from ebm_lightning.energies import MixtureLogits
from ebm_lightning.features import Penultimate
from ebm_lightning.networks import MLP, ConvNet
from ebm_lightning.scores import approximate_mass


def test_approximate_mass_of_a_gaussian(seed):
    """log p = -|x - mu|^2 / 2 s^2, so minus the norm of its gradient is -|x - mu| / s^2."""
    mean, x = torch.randn(1, 5), torch.randn(40, 5)
    energy = JointEnergy(MixtureLogits(mean, std=0.5), Euclidean())
    assert torch.allclose(approximate_mass(energy, x), -(x - mean).norm(dim=1) / 0.25, rtol=1e-5)


def test_approximate_mass_in_inference_mode_leaves_no_trace(seed):
    net = nn.Sequential(ConvNet((1, 8, 8), 3, 4), nn.Dropout())
    energy, x = JointEnergy(net, Box(-1, 1, (1, 8, 8))), torch.rand(6, 1, 8, 8)
    state, outside = torch.get_rng_state(), approximate_mass(energy, x)
    with torch.inference_mode():
        inside = approximate_mass(energy, x.clone())
    assert torch.equal(inside, outside)
    assert torch.allclose(approximate_mass(energy, x[:1]), outside[:1], rtol=1e-4), "of its image alone"
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_penultimate_features_are_what_the_last_layer_sees(seed):
    net, x = MLP(4, 3, (8, 5)), torch.rand(7, 4)
    features = Penultimate(net)(x)
    assert features.shape == (7, 5)
    assert torch.allclose(net.layers[-1](features), net(x))
    assert not net.layers[-1]._forward_pre_hooks
    with pytest.raises(ValueError, match="'classifier' should have a linear layer, got Flatten"):
        Penultimate(nn.Flatten())
