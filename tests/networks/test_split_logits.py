"""SplitLogits: class probabilities and density are separate, and log Z is bounded."""

import pytest
import torch
from torch import nn

from ebm_lightning import Box
from ebm_lightning.energies import JointEnergy
from ebm_lightning.networks import MLP, SplitLogits


def test_the_softmax_and_the_logsumexp_are_separate_outputs(seed):
    network, x = MLP(2, 4), 100 * torch.randn(50, 2)
    logits, output = SplitLogits(network, 3.0)(x), network(x)
    torch.testing.assert_close(logits.softmax(1), output[:, :3].softmax(1))
    torch.testing.assert_close(logits.logsumexp(1), 3 * (output[:, 3] / 3).tanh(), atol=1e-4, rtol=1e-4)


def test_the_density_is_within_a_factor_of_the_reference(seed):
    x = torch.rand(1000, 2) * 2 - 1
    network = nn.Sequential(MLP(2, 4), nn.Linear(4, 4))
    nn.init.normal_(network[1].weight, std=100.0)
    energy = JointEnergy(SplitLogits(network, 2.0), Box(-1, 1, (2,)))
    assert energy(x).abs().max() <= 2 + 1e-4


@pytest.mark.parametrize("bound", [0, -1.0])
def test_a_bound_is_positive(bound):
    with pytest.raises(ValueError, match="'bound' should be"):
        SplitLogits(MLP(2, 4), bound)


def test_under_autocast_logits_are_float32(seed):
    with torch.autocast("cpu", torch.bfloat16):
        assert SplitLogits(MLP(2, 4))(torch.randn(5, 2)).dtype == torch.float32
