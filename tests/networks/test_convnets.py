"""Small convolutional networks.

Mutants that these tests kill: thresholds, or slopes, that pixels share; a network of thresholds that does not see the
value itself, or without tanh; a last layer that does not begin at 0; thresholds that are not quantiles.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from ebm_lightning.networks import ConvNet, StridedConvNet, ThresholdConvNet
from ebm_lightning.resume.hparams import describe, rebuild


def test_a_strided_network_halves_the_resolution_twice_and_reloads():
    net = StridedConvNet((1, 28, 28), 10, width=4)
    x = torch.randn(3, 1, 28, 28)
    assert net.layers[:8](x).shape == (3, 16, 7, 7)
    again = rebuild(describe(net), torch.nn.Module, "classifier")
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), net(x))
    with pytest.raises(ValueError, match=r"divisible by 4, got \(1, 30, 28\)"):
        StridedConvNet((1, 30, 28), 10)


def test_a_strided_network_is_cheaper_than_a_conv_net():
    costs: list[int] = []
    for kind in (StridedConvNet, ConvNet):
        net, counter = kind((1, 28, 28), 10), FlopCounterMode(display=False)
        with counter:
            net(torch.randn(1, 1, 28, 28))
        costs.append(counter.get_total_flops())
    assert costs[0] < 0.85 * costs[1]


def random_threshold_net() -> ThresholdConvNet:
    torch.manual_seed(0)
    net = ThresholdConvNet((2, 4, 6), 3, width=5, hidden=7, thresholds=4)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return net


def test_the_features_are_soft_thresholds_of_each_pixel():
    """tanh(a_j (u - b_j)) by loops, each pixel with its own a and b, after the value itself."""
    net, u = random_threshold_net(), torch.randn(3, 2, 4, 6)
    features = [u]
    for j in range(4):
        feature = torch.empty_like(u)
        for c, h, w in torch.cartesian_prod(*map(torch.arange, (2, 4, 6))).tolist():
            a, b = net.slopes[j, c, h, w], net.threshold[j, c, h, w]
            feature[:, c, h, w] = torch.tanh(a * (u[:, c, h, w] - b)).detach()
        features.append(feature)
    convolution, _, _, hidden, _ = net.layers
    h = F.silu(F.conv2d(torch.cat(features, 1), convolution.weight, convolution.bias, stride=2, padding=1))
    expected = net.head(F.silu(hidden(h.flatten(1))))
    torch.testing.assert_close(net(u), expected)


def test_a_threshold_network_begins_at_logits_of_0_and_can_leave_them():
    net, u = ThresholdConvNet((1, 4, 4), 3, 8, 8), torch.randn(5, 1, 4, 4)
    assert torch.equal(net(u), torch.zeros(5, 3))
    torch.nn.functional.cross_entropy(net(u), torch.arange(5) % 3).backward()
    assert net.head.weight.grad.abs().sum() > 0
    normal = torch.distributions.Normal(0.0, 1.0)
    assert torch.allclose(normal.cdf(net.threshold[:, 0, 0, 0]), (torch.arange(6) + 0.5) / 6)
    assert (net.slopes == 3).all()


def test_a_threshold_network_is_rebuilt_from_its_description():
    net, u = random_threshold_net(), torch.randn(3, 2, 4, 6)
    again = rebuild(describe(net), torch.nn.Module, "classifier")
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(u), net(u))
    assert describe(again) == describe(net)
    with pytest.raises(ValueError, match=r"'shape' should have an even height and width, got \(1, 3, 4\)"):
        ThresholdConvNet((1, 3, 4), 3)
