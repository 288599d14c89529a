"""A JEM's loss from few forward passes and small graphs has the gradient of the loss written out.

Mutants that these tests kill: one pass for two terms with dropout or batch norm in train mode, or if they have
different batches; logits kept for the next batch; a precomputed gradient that ignores the weight of its term; a graph
that is not freed; gradients precomputed in float16, where they underflow.
"""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_lightning import JEM, SGLD, Box, JointEnergy, ReplayBuffer
from ebm_lightning.modules.precompute_gradient import differs_in_training, precompute_gradient
from ebm_lightning.networks import MLP, ConvNet, SpectrallyNormalized, WideResNet
from ebm_lightning.samplers import eval_mode
from tests.helpers import BOX, jem


class FunctionalDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, training=self.training)


class Subclass(MLP):
    """It changes nothing, but this cannot be known from its type."""


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
        (SpectrallyNormalized(MLP(4, 3)), True),
        (nn.TransformerEncoderLayer(4, 2), True),
        (FunctionalDropout(), True),
        (Subclass(4, 3), True),
        (nn.Sequential(nn.Flatten(), Subclass(4, 3)).eval(), False),
        (hooked(), True),
    ],
    ids=lambda v: type(v).__name__,
)
def test_which_networks_differ_in_training(net, differs):
    assert differs_in_training(net) is differs


def mlp() -> nn.Module:
    torch.manual_seed(2)
    return MLP(4, 3, (8,))


def dropout() -> nn.Module:
    return nn.Sequential(mlp(), nn.Dropout(0.5), nn.Linear(3, 3))


def batch_norm() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 3))


def started(net: nn.Module | None = None, **weights: float) -> JEM:
    module = jem(net or mlp(), energy_l2=0.1, **weights)
    module.start_chains()
    return module


def recorded_negatives(module: JEM) -> dict[bool, Tensor]:
    """The negatives that a step samples; key True for those of E(x, y)."""
    record, sample = {}, module.negatives

    def negatives(x: Tensor, y: Tensor | None = None) -> Tensor:
        record[y is not None] = sample(x, y)
        return record[y is not None]

    module.negatives = negatives
    return record


def total(module: JEM, x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([weight * value for weight, value in module.loss_terms(x, y).values()]).sum()


def written_out(module: JEM, x: Tensor, y: Tensor, negatives: dict[bool, Tensor]) -> Tensor:
    """The loss without shared passes or precomputed gradients."""
    loss, energy = x.new_zeros(()), module.energy
    if module.conditional_weight:
        loss = module.conditional_weight * F.cross_entropy(module(x), y)
    with eval_mode(energy):
        for labeled, x_neg in negatives.items():
            labels = y if labeled else None
            weight = module.class_conditional_weight if labeled else module.generative_weight + module.joint_weight
            squares = energy.logits(x).logsumexp(1).square().mean() + energy.logits(x_neg).logsumexp(1).square().mean()
            loss = loss - weight * energy(x_neg, labels).mean() + module.energy_l2 * squares
        loss = loss + module.generative_weight * energy(x).mean()
        return loss + (module.joint_weight + module.class_conditional_weight) * energy(x, y).mean()


WEIGHTS = [
    {},
    {"joint_weight": 0.5},
    {"class_conditional_weight": 2.0},
    {"generative_weight": 0.0, "joint_weight": 1.0, "conditional_weight": 0.3},
]


def check_step(module: JEM, x: Tensor, y: Tensor, **tolerance: float) -> None:
    """Value, gradient and buffers of a step are those of the loss written out. The gradient is that of 3 L."""
    reference, negatives = copy.deepcopy(module), recorded_negatives(module)
    torch.manual_seed(4)  # of dropout
    loss = total(module, x, y)
    (3 * loss).backward()
    torch.manual_seed(4)
    expected = written_out(reference, x, y, negatives)
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected, **tolerance)
    for p, q in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, **tolerance)
    for a, b in zip(module.buffers(), reference.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("net", [mlp, dropout, batch_norm])
def test_a_step_has_the_gradient_of_the_loss_written_out(net, weights, seed):
    check_step(started(net(), **weights), BOX.sample(6), torch.arange(6) % 3)


@pytest.mark.parametrize("net", [mlp, batch_norm])
def test_without_a_conditional_term_the_network_runs_in_eval_mode(net, seed):
    module = started(net(), conditional_weight=0.0)
    check_step(module, BOX.sample(6), torch.arange(6) % 3)


def test_frozen_batch_norm_trains_in_one_pass(seed):
    net = batch_norm()
    net[1].eval()
    check_step(started(net), BOX.sample(6), torch.arange(6) % 3)
    assert not net[1].training


@pytest.mark.parametrize("net", [mlp, dropout, batch_norm])
def test_a_step_under_float16_has_the_gradient_of_the_loss_written_out(net, seed):
    with torch.autocast("cpu", torch.float16):
        check_step(started(net()), BOX.sample(6), torch.arange(6) % 3, rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    ("net", "modes"),
    [(mlp, [False] * 4 + [True]), (dropout, [True] + [False] * 5), (batch_norm, [True] + [False] * 5)],
)
def test_one_pass_serves_both_terms_unless_modes_differ(net, modes, seed, monkeypatch):
    """Passes in train mode: of the data. In eval mode: three steps of the chains, the negatives, and the data."""
    seen, logits = [], JointEnergy.logits

    def recorded(energy: JointEnergy, x: Tensor) -> Tensor:
        seen.append(energy.classifier.training)
        return logits(energy, x)

    monkeypatch.setattr(JointEnergy, "logits", recorded)
    total(started(net()), BOX.sample(6), torch.arange(6) % 3)
    assert seen == modes


def test_logits_are_not_kept_for_the_next_batch(seed):
    module, y = started(), torch.arange(6) % 3
    for x in (BOX.sample(6), BOX.sample(6)):
        expected = F.cross_entropy(module(x), y)
        assert torch.equal(module.loss_terms(x, y)["clf"][1], expected)


def test_separate_batches_take_separate_passes(seed):
    module, y = started(), torch.arange(6) % 3
    x, x_gen = BOX.sample(6), BOX.sample(3)
    terms = module.loss_terms(x, y, x_gen, y[:3])
    assert torch.equal(terms["clf"][1], F.cross_entropy(module(x), y))
    torch.testing.assert_close(module.chain_step.energy_pos, module.energy(x_gen).mean())


def test_an_overridden_loss_gets_the_logits_in_train_mode(seed):
    class Recording(JEM):
        def conditional_loss(self, logits: Tensor, y: Tensor) -> Tensor:
            self.logits = logits
            return super().conditional_loss(logits, y)

    x, y = BOX.sample(6), torch.arange(6) % 3
    for net in (mlp(), dropout()):
        module = Recording(net, 3, BOX, SGLD(0.1, 0.01, 1), ReplayBuffer(30))
        module.start_chains()
        torch.manual_seed(4)
        module.loss_terms(x, y)
        torch.manual_seed(4)
        assert torch.equal(module.logits, module(x))


@pytest.mark.parametrize("extra", [False, True])
def test_an_overridden_phase_may_have_other_parameters(extra, seed):
    class Scaled(JEM):
        def positive_phase(self, logits: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return super().positive_phase(logits, x, y) * self.scale

    module = Scaled(dropout() if extra else mlp(), 3, BOX, SGLD(0.1, 0.01, 1), ReplayBuffer(30), energy_l2=0.0)
    module.scale = nn.Parameter(torch.tensor(2.0))
    module.start_chains()
    x = BOX.sample(6)
    total(module, x, torch.arange(6) % 3).backward()
    with eval_mode(module.energy):
        torch.testing.assert_close(module.scale.grad, module.energy(x).mean())


def test_a_precomputed_gradient_is_replayed_and_its_graph_freed(seed):
    net, x = MLP(4, 3, (8,)), torch.randn(5, 4)
    frozen = net.layers[1].bias.requires_grad_(False)
    unused = nn.Linear(1, 1)
    both = nn.ModuleList([net, unused])
    trained = [p for p in net.parameters() if p.requires_grad]
    exact = torch.autograd.grad(2 * net(x).square().mean(), trained)
    original = net(x).square().mean()
    term = precompute_gradient(original, both)
    assert term.item() == original.item()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        original.backward()
    (2 * term).backward()
    for p, g in zip(trained, exact, strict=True):
        torch.testing.assert_close(p.grad, g)
    assert frozen.grad is None
    assert unused.weight.grad is None, "parameters that a term does not use get no gradient"
    with torch.no_grad():
        assert not precompute_gradient(net(x).mean(), both).requires_grad


def test_under_float16_the_gradient_is_not_precomputed():
    net = MLP(4, 3, (8,))
    with torch.autocast("cpu", dtype=torch.float16):
        term = net(torch.randn(5, 4)).float().mean()
        assert precompute_gradient(term, net) is term
    with torch.autocast("cpu", dtype=torch.bfloat16):
        term = net(torch.randn(5, 4)).float().mean()
        assert precompute_gradient(term, net) is not term


class Activation:
    """A saved tensor, in a set while it is alive."""

    def __init__(self, tensor: Tensor, alive: set[int]) -> None:
        self.tensor, self.alive = tensor, alive
        alive.add(id(self))

    def __del__(self) -> None:
        self.alive.discard(id(self))


@pytest.mark.parametrize(("net", "passes", "precision"), [
    (mlp, 5, None), (dropout, 6, None), (batch_norm, 6, None), (mlp, 5, torch.bfloat16)
])  # fmt: skip
def test_no_pass_of_a_step_starts_while_activations_of_another_are_kept(net, passes, precision, seed, monkeypatch):
    """Three steps of the chains, the negatives, and one or two passes of the data."""
    alive: set[int] = set()
    kept: list[int] = []
    module, logits = started(net()), JointEnergy.logits
    monkeypatch.setattr(JointEnergy, "logits", lambda energy, x: kept.append(len(alive)) or logits(energy, x))

    def pack(tensor: Tensor) -> Activation | Tensor:
        return Activation(tensor, alive) if tensor.shape[:1] == (6,) else tensor  # no weight has 6 rows

    def unpack(saved: Activation | Tensor) -> Tensor:
        return saved.tensor if isinstance(saved, Activation) else saved

    autocast = torch.autocast("cpu", precision) if precision else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack), autocast:
        loss = total(module, BOX.sample(6), torch.arange(6) % 3)
        assert alive, "the last pass keeps its activations"
        loss.backward()
    assert kept == [0] * passes


def test_images_train_in_one_pass(seed, monkeypatch):
    calls, forward = [], ConvNet.forward
    monkeypatch.setattr(ConvNet, "forward", lambda net, x: calls.append(len(x)) or forward(net, x))
    module = JEM(ConvNet((1, 4, 4), 3, 4), 3, Box(-1, 1, (1, 4, 4)), SGLD(0.1, 0.01, 2), ReplayBuffer(30))
    module.start_chains()
    module.loss_terms(module.support.sample(6), torch.arange(6) % 3)
    assert calls == [6] * 4, "two steps, the negatives, and one pass for both terms"
