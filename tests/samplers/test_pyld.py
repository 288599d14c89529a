"""PYLD against SGLD, against a reference implementation with autograd, and against the law of its discretization.

Mutants that these tests kill: p of the first step for all steps; p with the wrong sign; no inner steps; inner steps
without log q, or with a flat log q; noise in every inner step; a clamp on the sum of the inner steps instead of each; a
layer that is not called with x; every layer treated as linear; p that is still scaled, or rounded, in float16.
"""

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ebm_lightning.energies import GaussianEnergy, JointEnergy
from ebm_lightning.networks import MLP, ConvNet
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import PYLD, SGLD
from ebm_lightning.supports import Box, Euclidean, Gaussian
from tests.conftest import gaussian_z
from tests.helpers import jem

IMAGES = Box(-1, 1, (1, 6, 6))
EVERYWHERE = Euclidean()


class Counting(JointEnergy):
    calls = 0

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        self.calls += 1
        return super().forward(x, y)


class Steep(nn.Module):
    """Makes gradients above and below 1, so that the clamp acts on some of them."""

    def forward(self, x: Tensor) -> Tensor:
        return 30 * x


def convolutions(support: Box | Gaussian | Euclidean = IMAGES) -> Counting:
    return Counting(nn.Sequential(ConvNet((1, 6, 6), 3, 4), Steep()), support)


def nonlinear_first_block() -> nn.Sequential:
    """A network with a nonlinear first block."""
    block = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 8), nn.Tanh())
    return nn.Sequential(block, nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 4), Steep())


@pytest.mark.parametrize("support", [IMAGES, Gaussian(0.1, 0.5, (1, 6, 6))], ids=["box", "gaussian"])
@pytest.mark.parametrize("boundary", ["clamp", "reflect"])
def test_with_one_inner_step_it_is_sgld(support, boundary, seed):
    energy, x = convolutions(support), support.sample(5)
    for noise_std in (0.0, 0.1):
        settings = {"noise_std": noise_std, "steps": 4, "max_gradient": 1.0, "boundary": boundary}
        a, b = (
            kernel(energy, x, support=support, generator=make_generator(seed))
            for kernel in (PYLD(0.2, inner_steps=1, **settings), SGLD(0.2, **settings))
        )
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", [None, "0.layers.0"])
def test_inner_steps_of_a_linear_first_layer_are_one_long_step_of_sgld(name, seed):
    """JEM++ is SGLD with step 1: a clamp on the gradient of each inner step is a clamp on the gradient."""
    energy, x = convolutions(), IMAGES.sample(6)
    kernel = PYLD(0.2, 0.0, 4, 5, first=name)
    long = SGLD(1.0, 0.0, 4, max_gradient=1.0, boundary="clamp")
    assert kernel.as_sgld == long
    assert torch.allclose(kernel(energy, x, support=IMAGES), long(energy, x, support=IMAGES), atol=1e-5)
    noisy = PYLD(0.02, 0.1, 4, 5, max_gradient=0.3)
    a, b = (k(energy, x, generator=make_generator(seed)) for k in (noisy, noisy.as_sgld))
    assert torch.allclose(a, b, atol=1e-5), "also with noise, without walls"


def test_the_shortcut_for_linear_layers_does_not_change_the_chain(seed):
    """A parametrized layer does not use the shortcut: its inner steps differentiate <h(x), p>."""
    net = MLP(3, 4, (8,))
    net.layers[0] = nn.Identity()
    shortcut = PYLD(0.05, 0.0, 3, 4, first="layers.1")
    x = torch.randn(5, 3)
    expected = shortcut(JointEnergy(net, EVERYWHERE), x)
    spectral_norm(net.layers[1])
    net.eval()  # the power iteration does not run in eval mode
    weight = net.layers[1].weight.detach().clone()
    layer = nn.Linear(3, 8)
    layer.weight.data, layer.bias.data = weight, net.layers[1].bias.detach()
    without_shortcut = shortcut(JointEnergy(net, EVERYWHERE), x)
    net.layers[1] = layer
    assert torch.allclose(without_shortcut, shortcut(JointEnergy(net, EVERYWHERE), x), atol=1e-6)
    assert not torch.equal(without_shortcut, expected)


def reference_pyld(
    network: nn.Sequential, q: Gaussian | Euclidean, x: Tensor, y: Tensor | None, kernel: PYLD
) -> Tensor:
    """PYLD without hooks, which calls the first block and the rest of the network separately."""
    block, rest = network[0], network[1:]
    for _ in range(kernel.steps):
        h = block(x).detach().requires_grad_()
        logits = rest(h)
        minus = logits.logsumexp(1) if y is None else logits[torch.arange(len(x)), y]
        p = torch.autograd.grad(-minus.sum(), h)[0]
        for _ in range(kernel.inner_steps):
            x = x.detach().requires_grad_()
            total = (block(x) * p).sum() - q.log_q(x).sum()
            gradient = torch.autograd.grad(total, x)[0].clamp(-1, 1)
            x = (x - kernel.step_size * gradient).detach()
    return x


@pytest.mark.parametrize("q", [EVERYWHERE, Gaussian(0.5, 0.6, (3,))], ids=["flat", "gaussian"])
@pytest.mark.parametrize("labeled", [False, True])
def test_inner_steps_follow_a_nonlinear_first_block(q, labeled, seed):
    network, kernel = nonlinear_first_block(), PYLD(0.1, 0.0, 4, 5, first="0")
    energy, x = JointEnergy(network, q), torch.randn(6, 3)
    y = torch.arange(6) % 4 if labeled else None
    moved = kernel(functools.partial(energy, y=y), x)
    assert torch.allclose(moved, reference_pyld(network, q, x, y, kernel), atol=1e-5)
    assert (moved - kernel.as_sgld(functools.partial(energy, y=y), x)).abs().max() > 0.01
    if isinstance(q, Euclidean):
        linear = PYLD(0.1, 0.0, 4, 5)  # the first layer inside the block
        assert torch.allclose(linear(energy, x), linear.as_sgld(energy, x), atol=1e-4)


def test_inner_steps_follow_the_reference_density(seed):
    """With a linear first layer, only log q(x) is nonlinear in <h(x), p> - log q(x). A long step of SGLD misses it."""
    network, q = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 4)), Gaussian(0.5, 0.6, (3,))
    energy, x, kernel = JointEnergy(network, q), torch.randn(6, 3), PYLD(0.1, 0.0, 4, 5)
    moved = kernel(energy, x)
    assert torch.allclose(moved, reference_pyld(network, q, x, None, kernel), atol=1e-5)
    assert (moved - kernel.as_sgld(energy, x)).abs().max() > 0.01


def test_each_pass_evaluates_the_energy_once(seed):
    for network, inner_steps in ((nonlinear_first_block(), 5), (MLP(3, 4), 1), (MLP(3, 4), 7)):
        energy = Counting(network, EVERYWHERE)
        PYLD(steps=3, inner_steps=inner_steps)(energy, torch.randn(2, 3))
        assert energy.calls == 3


def test_states_of_a_nonlinear_first_block_are_before_each_pass(seed):
    energy, x = JointEnergy(nonlinear_first_block(), EVERYWHERE), torch.randn(4, 3)
    for state in PYLD(steps=3, first="0").trajectory(energy, x):
        x.requires_grad_()
        value = energy(x)
        assert torch.equal(state.energy, value.detach())
        assert torch.equal(state.gradient, torch.autograd.grad(value.sum(), x)[0])
        x = state.x.clone()


class Quadratic(nn.Module):
    def forward(self, u: Tensor) -> Tensor:
        return -0.5 * u.square()


def test_law_on_a_gaussian(seed):
    """x' = x - N eps (x - m) / v + s xi, iterated: the law of N inner steps, noise once."""
    mean, std, chains = 0.5, 0.8, 20_000
    layer = nn.Linear(1, 1)
    layer.weight.data.fill_(1 / std)
    layer.bias.data.fill_(-mean / std)
    energy = JointEnergy(nn.Sequential(layer, Quadratic()), EVERYWHERE)
    kernel = PYLD(0.05, steps=6, inner_steps=4, temperature=0.7, max_gradient=None)
    x = kernel(energy, torch.full((chains, 1), 2.0), generator=make_generator(seed, "law"))
    m, v, contraction = 2.0, 0.0, 1 - 4 * 0.05 / std**2
    for _ in range(6):
        m, v = mean + contraction * (m - mean), contraction**2 * v + 2 * 4 * 0.05 * 0.7
    assert gaussian_z(x[:, 0], m, v) < 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_inner_step_is_sgld_also_under_autocast(dtype, seed):
    """Also, small gradients do not underflow in float16, neither in p nor in the inner steps."""
    network = nonlinear_first_block()
    network[-2].weight.data *= 1e-7
    energy, x = JointEnergy(network[:-1], EVERYWHERE), torch.randn(6, 3)
    kernel = PYLD(1e4, 0.0, 2, 5, first="0", max_gradient=None)
    exact = kernel(energy, x)
    with torch.autocast("cpu", dtype):
        one = PYLD(1e4, 0.0, 2, 1)
        assert torch.equal(one(energy, x), one.as_sgld(energy, x))
        half = kernel(energy, x)
    assert half.dtype == torch.float32
    assert (half - exact).norm() < 0.03 * (exact - x).norm()


def test_sampling_works_without_gradients_and_in_float64(seed):
    energy, x = JointEnergy(nonlinear_first_block(), EVERYWHERE), torch.randn(4, 3)
    kernel = PYLD(steps=2, first="0")
    expected = kernel(energy, x)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(kernel(energy, x.clone()), expected)
    assert kernel(energy.double(), x.double()).dtype == torch.float64


def test_hooks_are_removed(seed):
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    energy = JointEnergy(network, EVERYWHERE)
    before = {k: v.clone() for k, v in energy.state_dict().items()}
    PYLD(steps=2)(energy, torch.randn(5, 3))
    assert not any(m._forward_hooks for m in energy.modules())
    assert energy.training
    assert all(torch.equal(v, before[k]) for k, v in energy.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in energy.parameters())


class Prepares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(2 * x - 1)


class Skips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x + self.block(x)))


@pytest.mark.parametrize(
    ("energy", "arguments", "message"),
    [
        (lambda x: x.square().sum(1), {}, "'energy' should be a module or its method for PYLD"),
        (GaussianEnergy(torch.zeros(3), torch.ones(3)), {}, "called with x itself; GaussianEnergy has none"),
        (JointEnergy(Prepares(), EVERYWHERE), {}, "called with x itself; Prepares has none: it changes x first"),
        (JointEnergy(nonlinear_first_block(), EVERYWHERE), {"first": "1"}, "called with x itself; Sequential has none"),
        (
            JointEnergy(MLP(3, 2), EVERYWHERE),
            {"first": "conv"},
            "'first' should name a submodule .* 'conv'. It has layer",
        ),
        (JointEnergy(Skips(), EVERYWHERE), {}, "the only way of x into Skips"),
        (None, {"inner_steps": 0}, "'inner_steps' should be at least 1, got 0"),
        (None, {"step_size": -0.1}, "'step_size' should be positive, got -0.1"),
        (None, {"noise_std": 0.0, "temperature": 1.0}, "'noise_std' and 'temperature' should not both be given"),
        (None, {"boundary": "bounce"}, "'boundary' should be"),
    ],
)
def test_bad_arguments(energy, arguments, message, seed):
    with pytest.raises(ValueError, match=message):
        PYLD(**arguments)(energy, torch.randn(2, 3))


def test_temperature_and_presets():
    assert PYLD.jempp() == PYLD(0.2, 0.0, 10, 5, max_gradient=1.0, boundary="clamp")
    assert PYLD.jempp().implied_temperature == PYLD().implied_temperature == 0
    kernel = PYLD(0.1, temperature=0.5, inner_steps=4)
    assert kernel.noise == pytest.approx((2 * 4 * 0.1 * 0.5) ** 0.5)
    noisy = PYLD(0.1, noise_std=0.2, inner_steps=4)
    assert noisy.implied_temperature == pytest.approx(0.05)
    for short in (kernel.scale_step(0.5), noisy.scale_step(0.5)):
        assert short.step_size == 0.05
    assert noisy.scale_step(0.5).implied_temperature == pytest.approx(0.05)
    assert kernel.scale_step(0.5).implied_temperature == pytest.approx(0.5)


def test_a_module_with_pyld_is_rebuilt_from_its_hyperparameters():
    module = jem(sampler=PYLD.jempp(2, 3))
    assert module.hparams_initial["implied_temperature"] == 0
    assert jem(sampler=module.hparams["sampler"]).sampler == module.sampler
