"""Sharpness-aware minimization as separate pieces; whole steps are in test_sadajem.py."""

import pytest
import torch
from torch import nn

from ebm_lightning.modules.sam import frozen_statistics, perturb_weights, restore_weights
from ebm_lightning.networks import MLP


@pytest.mark.parametrize("adaptive", [False, True])
def test_weights_move_uphill_by_rho_and_are_restored_exactly(adaptive, seed):
    net, x = MLP(4, 3, (8,)), torch.randn(16, 4)
    start = [p.detach().clone() for p in net.parameters()]
    before = net(x).square().mean()
    saved = perturb_weights(before, net.parameters(), 0.1, adaptive)
    steps = torch.cat([(p - q).flatten() for p, q in zip(net.parameters(), start, strict=True)])
    scale = torch.cat([q.abs().flatten() for q in start]) if adaptive else torch.ones(())
    assert (steps / scale).norm().item() == pytest.approx(0.1, rel=1e-4)
    assert net(x).square().mean() > before
    restore_weights(saved)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), start, strict=True))
    assert saved == []


def test_frozen_and_unused_weights_do_not_move(seed):
    net, unused = MLP(4, 3, (8,)), nn.Linear(2, 2)
    net.layers[1].requires_grad_(False)
    saved = perturb_weights(net(torch.randn(5, 4)).sum(), [*net.parameters(), *unused.parameters()], 1.0)
    assert {id(p) for p, _ in saved} == {id(p) for p in net.layers[-1].parameters()}


def test_an_interrupt_between_two_weights_restores_them(seed):
    class Interrupting(nn.Parameter):
        def add_(self, *args):
            raise KeyboardInterrupt

    first, second = nn.Parameter(torch.randn(3)), Interrupting(torch.randn(3))
    start = first.detach().clone()
    with pytest.raises(KeyboardInterrupt):
        perturb_weights((first * second).sum(), [first, second], 1.0)
    assert torch.equal(first, start)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_uses_the_batch_but_keeps_its_statistics(momentum, seed):
    x = torch.randn(16, 4)
    layer = nn.BatchNorm1d(4, momentum=momentum)
    layer(torch.randn(16, 4) * 2)
    before = [b.clone() for b in layer.buffers()]
    with frozen_statistics(layer):
        assert torch.equal(layer(x), nn.BatchNorm1d(4)(x))
    assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), before, strict=True))
    assert layer.momentum == momentum
