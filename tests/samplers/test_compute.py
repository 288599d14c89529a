"""Modes of computing chains: the same chains except for rounding, and an unchanged module.

Mutants that these tests kill: a head in bfloat16; weights that are not restored, or under another name; labels that do
not reach a compiled graph or a chunk; a body in float32; a compiler error that stops the run.
"""

import functools
import warnings

import pytest
import torch
from torch import Tensor, nn

from ebm_lightning import HMC, JEM, PYLD, SGLD, Box, Compute, JointEnergy, ReplayBuffer, Sampler
from ebm_lightning.networks import MLP, ConvNet, WideResNet
from ebm_lightning.resume.hparams import describe, rebuild
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import value_and_gradient
from ebm_lightning.samplers.compute import made_for_bf16
from tests.conftest import gaussian_z
from tests.helpers import batches, trainer

BOX = Box(-1, 1, (3, 8, 8))
CPU = torch.device("cpu")
BF16, LAST, CHUNKS = Compute("bf16"), Compute(channels_last=True), Compute(chunk_size=4)


@pytest.fixture
def energy(seed) -> JointEnergy:
    net = WideResNet(3, 4, 10, (8, 8, 16)).to(memory_format=torch.contiguous_format)
    return JointEnergy(net, BOX)


def chains(sampler: Sampler, energy: object, compute: Compute | None, seed: int) -> Tensor:
    start = BOX.sample(6, generator=make_generator(seed, "start"))
    return sampler(energy, start, support=BOX, generator=make_generator(seed, "noise"), compute=compute)


@pytest.mark.parametrize("sampler", [SGLD.jem(5), HMC(0.05, 3), PYLD(steps=3)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("compute", [Compute(), Compute("fp32"), LAST, CHUNKS], ids=str)
def test_float32_modes_are_equal_except_for_rounding(sampler, compute, energy, seed):
    plain, other = chains(sampler, energy, None, seed), chains(sampler, energy, compute, seed)
    if compute in (LAST, CHUNKS):
        assert (plain - other).abs().max() < 1e-4
    else:
        assert torch.equal(plain, other)


def test_chunks_keep_each_chain_with_its_label(energy, seed):
    """Kills: labels of the first rows for all chunks, a missing last chunk, a constant that is sliced like labels."""
    y, x, seen = torch.tensor([0, 1, 2, 3, 3, 2]), BOX.sample(6), []
    energy.classifier.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    labeled = functools.partial(energy, y=y)
    whole = SGLD(0.5, 0.0, 2).run(labeled, x)
    chunks = SGLD(0.5, 0.0, 2).run(labeled, x, compute=CHUNKS)
    torch.testing.assert_close(chunks.x, whole.x)
    torch.testing.assert_close(chunks.energy, whole.energy)
    assert seen == [6, 6, 4, 2, 4, 2]


@pytest.mark.parametrize("compute", [BF16, Compute("bf16", channels_last=True)], ids=str)
def test_bf16_equals_autocast_and_differs_from_float32(compute, energy, seed):
    """Autocast rounds the weights in every evaluation, this mode only once."""
    sampler = SGLD(0.5, 0.01, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = chains(sampler, energy, None, seed)
    bf16, plain = chains(sampler, energy, compute, seed), chains(sampler, energy, None, seed)
    tolerance = 0.02 if compute.channels_last else 0.0
    assert (bf16 - autocast).abs().max() <= tolerance
    assert 0 < (bf16 - plain).abs().max() < 0.1
    assert bf16.dtype == torch.float32


def test_the_head_of_a_bf16_body_is_in_float32(energy):
    """Kills: a head in bfloat16, which would round these logits to multiples of 8."""
    x = BOX.sample(4)
    with torch.no_grad():
        energy.head.weight.zero_()
        energy.head.bias.copy_(torch.tensor([1001.0, 1002.0, 1003.0, 1004.0]))
    seen = SGLD(0.1, 0.0, 1).run(energy, x, compute=BF16).energy
    assert torch.allclose(seen, -torch.tensor([1001.0, 1002.0, 1003.0, 1004.0]).logsumexp(0), atol=1e-3)


class Recording(nn.Module):
    """Records the weights that its layer is evaluated with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.tied = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
        self.tied.weight = self.conv.weight
        self.seen: list[tuple[object, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        w = self.conv.weight
        channels_last = w.is_contiguous(memory_format=torch.channels_last)
        self.seen.append((w.dtype, channels_last, w is self.tied.weight, w.requires_grad))
        return self.tied(self.conv(x)).mean((2, 3))


@pytest.mark.parametrize("compute", [BF16, LAST, Compute("bf16", True)], ids=str)
def test_weights_are_copies_during_a_step_and_restored_afterwards(compute):
    net = Recording()
    before = {name: (p, p._version, p.stride(), p.requires_grad) for name, p in net.named_parameters()}
    keys = list(net.state_dict())
    for state in SGLD.jem(2).trajectory(JointEnergy(net, BOX), BOX.sample(2), compute=compute):
        assert state.x.dtype == torch.float32
        for name, p in net.named_parameters():
            original, version, stride, trainable = before[name]
            assert p is original
            assert (p._version, p.stride(), p.requires_grad) == (version, stride, trainable)
    bf16 = compute.precision == "bf16"
    assert net.seen == [(torch.bfloat16 if bf16 else torch.float32, compute.channels_last, True, False)] * 2
    assert list(net.state_dict()) == keys
    with pytest.raises(RuntimeError):
        SGLD.jem(1)(JointEnergy(net, BOX), torch.zeros(2, 99), compute=compute)
    assert net.conv.weight is before["conv.weight"][0]


def test_fp32_overrides_a_surrounding_autocast(energy, seed):
    plain = chains(SGLD.jem(2), energy, None, seed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(chains(SGLD.jem(2), energy, Compute("fp32"), seed), plain)
        assert not torch.equal(chains(SGLD.jem(2), energy, None, seed), plain)


class Half(nn.Module):
    """A quadratic energy."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        nn.init.constant_(self.layer.weight, 1.0)
        nn.init.constant_(self.layer.bias, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.layer(x).float().square().sum(1)


def test_the_law_under_bf16_is_that_of_sgld(seed):
    """x' = (1 - eps) x + s xi, iterated. Kills: positions in bfloat16. The rounding of gradients averages out."""
    sampler = SGLD(0.3, 0.5, 7)
    x = sampler(Half(), torch.full((20_000, 1), 2.0), generator=make_generator(seed, "law"), compute=BF16)
    variance = 0.25 * sum(0.7 ** (2 * k) for k in range(7))
    assert gaussian_z(x[:, 0], 2.0 * 0.7**7, variance) < 5


def test_auto_depends_on_the_device():
    assert Compute.auto().channels_last
    assert Compute.auto().in_bf16(CPU) == made_for_bf16(CPU)
    assert not Compute.auto().in_bf16(torch.device("mps"))
    assert not Compute().in_bf16(CPU)


def test_bad_arguments():
    with pytest.raises(ValueError, match="'precision' should be 'fp32', 'bf16', 'auto' or None, got 'fp16'"):
        Compute("fp16")
    with pytest.raises(ValueError, match="'chunk_size' should be at least 1 or None, got 0"):
        Compute(chunk_size=0)


# Compilation.


@pytest.mark.parametrize("joint", [False, True], ids=["E(x)", "E(x, y)"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_graph_gives_the_same_chains(precision, joint, seed, monkeypatch):
    net = ConvNet((3, 8, 8), 4, 4)
    net(BOX.sample(2))
    energy: object = JointEnergy(net, BOX)
    if joint:
        energy = functools.partial(energy, y=torch.arange(6) % 4)
    graphs = count_graphs(monkeypatch)
    eager = chains(SGLD.jem(3), energy, Compute(precision), seed)
    assert graphs == []
    for _ in range(2):  # the second call reuses the graph
        compiled = chains(SGLD.jem(3), energy, Compute(precision, compile=True), seed)
        assert (compiled - eager).abs().max() < (1e-5 if precision == "fp32" else 0.02)
    assert len(graphs) == 1


def count_graphs(monkeypatch) -> list[object]:
    """Graphs that are compiled from now on. The backend runs them eagerly, which is fast and traces in the same way."""
    from ebm_lightning.samplers import gradient

    graphs: list[object] = []

    def record(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", functools.partial(compile_, backend=record))
    gradient._graph.cache_clear()
    return graphs


@pytest.fixture(autouse=True)
def _clear_graphs():
    yield
    from ebm_lightning.samplers import gradient

    gradient._graph.cache_clear()


class Untraceable(MLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.detach().sum()) < 1e9 else x


def test_chains_run_uncompiled_if_compilation_fails(seed):
    energy = JointEnergy(Untraceable(192, 4, (8,)), BOX)
    plain = chains(SGLD.jem(3), energy, None, seed)
    with pytest.warns(UserWarning, match="'compile' failed for JointEnergy .* Set compile=False"):
        compiled = chains(SGLD.jem(3), energy, Compute(compile=True), seed)
    assert torch.equal(plain, compiled)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chains(SGLD.jem(3), energy, Compute(compile=True), seed)  # warns only once


def test_an_energy_without_a_module_is_not_compiled(seed):
    with pytest.warns(UserWarning, match="'compile' needs a module"):
        x = chains(SGLD.jem(1), lambda x: x.flatten(1).sum(1), Compute(compile=True), seed)
    assert x.shape == (6, *BOX.shape)


# In a JEM.


def test_a_jem_uses_its_compute_for_chains_only(tmp_path):
    seen = []

    class RecordingMLP(MLP):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.layers[1].weight.dtype, torch.is_grad_enabled() and x.requires_grad))
            return super().forward(x)

    module = JEM(RecordingMLP(4, 3, (8,)), 3, Box(-1, 1, (4,)), SGLD(0.1, 0.01, 3), ReplayBuffer(30), compute=BF16)
    trainer(tmp_path).fit(module, batches(8))
    seen = seen[1:]  # without the look at the classifier before the first step
    assert {dtype for dtype, chain in seen if chain} == {torch.bfloat16}
    assert {dtype for dtype, chain in seen if not chain} == {torch.float32}, "the loss has the precision of the trainer"


def test_it_is_rebuilt_from_hyperparameters():
    compute = Compute("bf16", channels_last=True)
    module = JEM(MLP(4, 3, (8,)), 3, Box(-1, 1, (4,)), compute=compute)
    arguments = {"precision": "bf16", "channels_last": True, "compile": False, "chunk_size": None}
    assert module.hparams["compute"]["init_args"] == arguments
    assert rebuild(describe(compute), Compute, "compute") == compute


def test_it_is_built_from_yaml():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_class_arguments(JEM, "model", skip={"optimizer", "lr_scheduler"})
    text = """
model:
  classifier: {class_path: ebm_lightning.networks.MLP, init_args: {in_features: 4, num_classes: 3}}
  num_classes: 3
  support: {class_path: ebm_lightning.Box, init_args: {low: -1, high: 1, shape: [4]}}
  compute: {precision: auto, channels_last: true}
"""
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name before jsonargparse 4.42
    built = build(parser.parse_string(text))
    assert built.model.compute == Compute.auto()


def test_log_z_does_not_depend_on_the_compute_of_a_module(energy):
    """Annealing has no argument ``compute``."""
    import inspect

    from ebm_lightning import AISLogZ, ais

    for callee in (ais, AISLogZ.__init__):
        assert "compute" not in inspect.signature(callee).parameters
    value, _ = value_and_gradient(energy, BOX.sample(2))
    assert value.dtype == torch.float32
