"""A JEM's loss from fewer forward passes and smaller graphs has the gradient that it had.

Mutants that these tests kill: sharing with dropout or batch norm in train mode; sharing a batch that was not the other
term's; logits kept for the next batch; a settled term whose gradient ignores its weight; a graph that stays.
"""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_lightning import JEM, SGLD, Box, ReplayBuffer
from ebm_lightning.modules.phases import differs_in_training, settled
from ebm_lightning.networks import MLP, ConvNet, SpectrallyNormalised, WideResNet
from tests.helpers import BOX, jem


class ByHand(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.noisy(x)

    def noisy(self, x: Tensor) -> Tensor:
        return F.dropout(x, training=self.training)


class Own(MLP):
    """It changes nothing, but nobody can know."""


def hooked() -> nn.Module:
    net = MLP(4, 3)
    net.layers[1].register_forward_hook(lambda *args: None)
    return net


@pytest.mark.parametrize(
    ("net", "differs"),
    [
        (MLP(4, 3), False),
        (ConvNet((1, 4, 4), 3, 4), False),
        (WideResNet(1, 3, 10, (4, 4, 4)), False),
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.GELU()), False),
        (nn.BatchNorm1d(4).eval(), False),
        (nn.BatchNorm1d(4), True),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)), True),
        (WideResNet(1, 3, 10, (4, 4, 4), norm="batch"), True),
        (SpectrallyNormalised(MLP(4, 3)), True),
        (nn.TransformerEncoderLayer(4, 2), True),
        (ByHand(), True),
        (Own(4, 3), True),
        (nn.Sequential(nn.Flatten(), Own(4, 3)).eval(), False),
        (hooked(), True),
    ],
    ids=lambda v: type(v).__name__,
)
def test_whether_a_network_differs_in_training(net, differs):
    assert differs_in_training(net) is differs


def module(**weights: float) -> JEM:
    made = jem(energy_l2=0.1, **weights)
    made.log = lambda *args, **kwargs: None
    made.start_chains()
    return made


def total(made: JEM, x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([w * value for w, value in made.loss_terms(x, y).values()]).sum()


WEIGHTS = [
    {},
    {"joint_weight": 0.5},
    {"class_conditional_weight": 2.0},
    {"generative_weight": 0.0, "joint_weight": 1.0},
]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_shared_passes_give_the_value_and_gradient_of_separate_ones(weights, seed, monkeypatch):
    x, y = BOX.sample(6), torch.arange(6) % 3
    shared, separate = module(**weights), module(**weights)
    monkeypatch.setattr(separate, "_shared_terms", lambda x, y: {
        "clf": (1.0, separate.conditional_loss(x, y)), "gen": (1.0, separate.generative_loss(x, y))
    })  # fmt: skip
    results = []
    for made in (shared, separate):
        loss = total(made, x, y)
        results.append([loss.detach(), *torch.autograd.grad(3 * loss, list(made.parameters()))])
        assert torch.equal(made.last_move.x, shared.last_move.x)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    assert shared._shared is None
    assert shared._shared_logits is None


def test_the_next_batch_is_another(seed):
    made, y = module(), torch.arange(6) % 3
    for x in (BOX.sample(6), BOX.sample(6)):
        expected = F.cross_entropy(made(x), y)
        assert torch.equal(made.loss_terms(x, y)["clf"][1], expected)


def test_a_loss_of_ones_own_sees_what_it_asks_for(seed):
    class Flipped(JEM):
        def conditional_loss(self, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self(-x), y)

    made = Flipped(MLP(4, 3, (8,)), 3, BOX, SGLD(0.1, 0.01, 1), ReplayBuffer(30))
    made.start_chains()
    x, y = BOX.sample(6), torch.arange(6) % 3
    assert torch.equal(made.loss_terms(x, y)["clf"][1], F.cross_entropy(made(-x), y))


def test_a_settled_term_keeps_its_gradient_and_not_its_graph(seed):
    net, x = MLP(4, 3, (8,)), torch.randn(5, 4)
    frozen = net.layers[1].bias.requires_grad_(False)
    unused = nn.Linear(1, 1)
    both = nn.ModuleList([net, unused])
    exact = torch.autograd.grad(2 * net(x).square().mean(), [p for p in net.parameters() if p.requires_grad])
    term = settled(net(x).square().mean(), both)
    assert term.item() == pytest.approx(net(x).square().mean().item())
    (2 * term).backward()
    for p, g in zip([p for p in net.parameters() if p.requires_grad], exact, strict=True):
        torch.testing.assert_close(p.grad, g)
    assert frozen.grad is None
    assert unused.weight.grad is None, "what a term does not use stays without a gradient"
    with torch.no_grad():
        assert not settled(net(x).mean(), both).requires_grad


def test_under_float16_the_gradient_waits_for_its_scaler():
    net = MLP(4, 3, (8,))
    with torch.autocast("cpu", dtype=torch.float16):
        term = net(torch.randn(5, 4)).float().mean()
        assert settled(term, net) is term


def test_one_graph_at_a_time(seed, monkeypatch):
    """Of a step's activations those of one batch are alive at a time."""
    kept: list[int] = []
    alive: set[int] = set()

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits):
            ctx.token = Token(alive)
            kept.append(len(alive))
            return logits.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    plain = MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda net, x: Watched.apply(plain(net, x)))
    made = jem(MLP(4, 3, (8,)), energy_l2=0.1)
    made.start_chains()
    loss = total(made, BOX.sample(6), torch.arange(6) % 3)
    loss.backward()
    assert kept == [1] * 5, "three steps, the negatives, the data: each pass finds no graph but its own"


class Token:
    def __init__(self, alive: set[int]) -> None:
        self.alive = alive
        alive.add(id(self))

    def __del__(self) -> None:
        self.alive.discard(id(self))


def test_images_train_by_shared_passes(seed, monkeypatch):
    calls, plain = [], ConvNet.forward
    monkeypatch.setattr(ConvNet, "forward", lambda net, x: calls.append(len(x)) or plain(net, x))
    made = JEM(ConvNet((1, 4, 4), 3, 4), 3, Box(-1, 1, (1, 4, 4)), SGLD(0.1, 0.01, 2), ReplayBuffer(30))
    made.start_chains()
    functools.partial(made.loss_terms, made.support.sample(6), torch.arange(6) % 3)()
    assert calls == [6] * 4, "two steps, the negatives, and one pass for data and labels"
