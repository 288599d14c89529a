"""Reference networks: a WideResNet counted by hand; what a spectral norm promises, in runs and checkpoints."""

import pytest
import torch

from ebm_lightning import JEM
from ebm_lightning.modules.hparams import describe, rebuild
from ebm_lightning.networks import MLP, ConvNet, SpectrallyNormalised, StridedConvNet, WideResNet
from ebm_lightning.samplers import quiet, value_and_gradient
from tests.helpers import BOX, batches, jem, trainer, weights


def steepest(net: torch.nn.Module) -> float:
    energy = jem(net).energy
    with quiet(energy):
        return float(value_and_gradient(energy, BOX.sample(500))[1].norm(dim=1).max())


def test_a_normalised_network_has_no_steep_energy():
    """SiLU's slope is at most 1.1, so two layers of norm 1 and a logsumexp have one of at most 1.1."""
    net = MLP(4, 3, (8,))
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(20)
    assert steepest(net) > 10
    normalised = SpectrallyNormalised(net)
    for _ in range(50):  # the power iteration moves in training mode
        normalised.train()(torch.zeros(1, 4))
    assert steepest(normalised.eval()) < 1.1


def test_it_trains_and_its_checkpoint_loads(tmp_path):
    module, t = jem(SpectrallyNormalised(MLP(4, 3, (8,)))), trainer(tmp_path)
    before = weights(module)
    t.fit(module, batches())
    assert not torch.equal(weights(module), before)
    t.save_checkpoint(tmp_path / "m.ckpt")
    again, x = JEM.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True), BOX.sample(5)
    assert torch.equal(again.eval()(x), module.eval()(x))


def by_hand(channels: int, classes: int, depth: int, widths: tuple[int, ...], batch_norm: bool) -> int:
    """Weights and biases: k*k*n*m + m for a convolution; 2m for a batch norm."""
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
def test_a_wide_resnet_has_the_weights_counted_by_hand(channels, depth, widths, norm):
    net = WideResNet(channels, 7, depth, widths, norm=norm)
    assert sum(p.numel() for p in net.parameters()) == by_hand(channels, 7, depth, widths, norm == "batch")


def test_the_default_is_wrn_28_10():
    with torch.device("meta"):
        count = sum(p.numel() for p in WideResNet().parameters())
    assert count == by_hand(3, 10, 28, (160, 320, 640), batch_norm=False) == 36_471_338


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
@pytest.mark.parametrize(("n", "shape"), [(1, (3, 28, 28)), (2, (3, 32, 32)), (5, (3, 8, 8))])
def test_a_row_does_not_depend_on_its_batch(n, shape, activation):
    net, x = WideResNet(depth=10, widths=(4, 6, 8), activation=activation, dropout=0.5).eval(), torch.randn(n, *shape)
    logits = net(x)
    assert logits.shape == (n, 10)
    torch.testing.assert_close(logits, torch.cat([net(row[None]) for row in x]), atol=1e-5, rtol=1e-5)


def test_a_wide_resnet_runs_channels_last_and_is_described_whole():
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
def test_what_a_wide_resnet_cannot_be_is_named(arguments):
    with pytest.raises(ValueError, match=f"'{next(iter(arguments))}' should"):
        WideResNet(**arguments)


def test_a_strided_network_halves_twice_and_reloads():
    net = StridedConvNet((1, 28, 28), 10, width=4)
    x = torch.randn(3, 1, 28, 28)
    assert net.layers[:8](x).shape == (3, 16, 7, 7)
    again = rebuild(describe(net), torch.nn.Module, "classifier")
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), net(x))
    with pytest.raises(ValueError, match=r"divisible by 4, got \(1, 30, 28\)"):
        StridedConvNet((1, 30, 28), 10)


def test_a_strided_network_is_the_cheaper_one():
    from torch.utils.flop_counter import FlopCounterMode

    costs: list[int] = []
    for kind in (StridedConvNet, ConvNet):
        net, counter = kind((1, 28, 28), 10), FlopCounterMode(display=False)
        with counter:
            net(torch.randn(1, 1, 28, 28))
        costs.append(counter.get_total_flops())
    assert costs[0] < 0.85 * costs[1]
