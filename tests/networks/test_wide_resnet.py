"""Wide residual networks: parameter counts, memory layout and descriptions."""

import pytest
import torch

from ebm_lightning.networks import WideResNet
from ebm_lightning.resume.hparams import describe, rebuild


def parameter_count(channels: int, classes: int, depth: int, widths: tuple[int, ...], batch_norm: bool) -> int:
    """Weights and biases: k*k*n*m + m for a convolution, 2m for a batch norm."""
    n, total = 16, 9 * channels * 16 + 16
    for stage, m in enumerate(widths):
        blocks = (depth - 4) // 6
        total += 9 * n * m + m + (2 * blocks - 1) * (9 * m * m + m)
        total += n * m + m if n != m or stage else 0
        total += 2 * (n + m) + (blocks - 1) * 4 * m if batch_norm else 0
        n = m
    return total + (2 * n if batch_norm else 0) + n * classes + classes


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize(
    ("channels", "depth", "widths"), [(1, 10, (8, 8, 8)), (3, 16, (4, 8, 16)), (3, 10, (16, 8, 4))]
)
def test_the_number_of_parameters_of_a_wide_resnet(channels, depth, widths, norm):
    net = WideResNet(channels, 7, depth, widths, norm=norm)
    assert sum(p.numel() for p in net.parameters()) == parameter_count(channels, 7, depth, widths, norm == "batch")


def test_the_default_is_wrn_28_10():
    with torch.device("meta"):
        count = sum(p.numel() for p in WideResNet().parameters())
    assert count == parameter_count(3, 10, 28, (160, 320, 640), batch_norm=False) == 36_471_338


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
@pytest.mark.parametrize(("n", "shape"), [(1, (3, 28, 28)), (2, (3, 32, 32)), (5, (3, 8, 8))])
def test_a_row_does_not_depend_on_its_batch(n, shape, activation):
    net, x = WideResNet(depth=10, widths=(4, 6, 8), activation=activation, dropout=0.5).eval(), torch.randn(n, *shape)
    logits = net(x)
    assert logits.shape == (n, 10)
    torch.testing.assert_close(logits, torch.cat([net(row[None]) for row in x]), atol=1e-5, rtol=1e-5)


def test_a_wide_resnet_is_channels_last_and_is_rebuilt_from_its_description():
    net = WideResNet(depth=10, widths=[4, 6, 8], norm="batch", activation="silu", dropout=0.1)
    features = net.layers(torch.randn(2, 3, 16, 16))
    assert features.shape == (2, 8, 4, 4)
    assert features.is_contiguous(memory_format=torch.channels_last)
    again = rebuild(describe(net), torch.nn.Module, "classifier")
    again.load_state_dict(net.state_dict())
    assert describe(again) == describe(net)


@pytest.mark.parametrize(
    "arguments", [{"depth": 12}, {"depth": 4}, {"widths": (8, 8)}, {"norm": "layer"}, {"activation": "relu"}]
)
def test_bad_arguments_of_a_wide_resnet(arguments):
    with pytest.raises(ValueError, match=f"'{next(iter(arguments))}' should"):
        WideResNet(**arguments)
