"""The samplers that ``sampler.py`` compares: this library, other packages, and loops as people write them.

Each contender is a function that moves chains by ``STEPS`` steps. All of them get the same network in train mode, with
trainable weights.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ebm_lightning import SGLD, Box, Compute, JointEnergy

STEP_SIZE, NOISE_STD, STEPS = 1.0, 0.01, 20  # those of the published JEM
LIMIT, JEM_LOOP = "fp32 limit: frozen weights, in place", "official JEM loop"
UVA_LOOP, FLOOR = "UvA loop", "forward only"
Chain = Callable[[Tensor], Tensor]


def limit(net: nn.Module, x: Tensor, noise_first: bool = False) -> Tensor:
    """The reference: frozen weights in eval mode, in-place updates."""
    net.eval().requires_grad_(False)
    x = x.clone()
    for _ in range(STEPS):
        if noise_first:
            x.add_(torch.randn_like(x), alpha=NOISE_STD)
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(net(leaf).logsumexp(1).sum(), leaf)
        x.add_(gradient, alpha=STEP_SIZE)
        if not noise_first:
            x.add_(torch.randn_like(x), alpha=NOISE_STD)
    net.train().requires_grad_(True)
    return x


def official_jem(net: nn.Module, x: Tensor) -> Tensor:
    """The loop of Grathwohl et al. 2020: trainable weights, eval mode, the graph is retained."""
    net.eval()
    x_k = x.clone().requires_grad_()
    for _ in range(STEPS):
        f_prime = torch.autograd.grad(net(x_k).logsumexp(1).sum(), [x_k], retain_graph=True)[0]
        x_k.data += STEP_SIZE * f_prime + NOISE_STD * torch.randn_like(x_k)
    net.train()
    return x_k.detach()


def uva(net: nn.Module, x: Tensor) -> Tensor:
    """The loop of the UvA deep learning tutorial 8: frozen weights, noise first, two clamps, ``.backward()``."""
    net.eval()
    for p in net.parameters():
        p.requires_grad = False
    x = x.clone().requires_grad_()
    noise = torch.randn(x.shape, device=x.device)
    for _ in range(STEPS):
        noise.normal_(0, NOISE_STD)
        x.data.add_(noise.data)
        x.data.clamp_(min=-1.0, max=1.0)
        (-net(x).logsumexp(1)).sum().backward()
        assert x.grad is not None
        x.grad.data.clamp_(-1e3, 1e3)  # the tutorial's 0.03 would give different chains
        x.data.add_(-STEP_SIZE * x.grad.data)
        x.grad.detach_()
        x.grad.zero_()
        x.data.clamp_(min=-1.0, max=1.0)
    for p in net.parameters():
        p.requires_grad = True
    net.train()
    return x.detach()


def naive(net: nn.Module, x: Tensor) -> Tensor:
    """Weights stay trainable in train mode: their gradients are computed and discarded."""
    for _ in range(STEPS):
        x = x.detach().requires_grad_()
        net.zero_grad()
        (-net(x).logsumexp(1)).sum().backward()
        assert x.grad is not None
        x = x - STEP_SIZE * x.grad + NOISE_STD * torch.randn_like(x)
    return x.detach()


def forward_only(net: nn.Module, x: Tensor) -> Tensor:
    """A lower bound on the time: forward passes without gradients, so ``x`` does not move."""
    with torch.no_grad():
        for _ in range(STEPS):
            net(x).logsumexp(1).sum()
    return x


def this_library(net: nn.Module, shape: tuple[int, ...], compute: Compute) -> Chain:
    energy, sampler = JointEnergy(net, Box(-1, 1, shape)), SGLD(STEP_SIZE, NOISE_STD, STEPS)
    return lambda x: sampler(energy, x, support=energy.support, compute=compute)


def torchebm_model(net: nn.Module) -> Any:
    """The energy of a classifier, as a model of torchebm."""
    core = importlib.import_module("torchebm.core")
    torch.set_float32_matmul_precision("highest")  # importing torchebm lowers it for the whole process

    def forward(self: Any, x: Tensor) -> Tensor:
        return -net(x).logsumexp(1)

    model = type("Classifier", (core.BaseModel,), {"forward": forward})()
    model.net = net
    return model


def torchebm(net: nn.Module) -> Chain:
    samplers, model = importlib.import_module("torchebm.samplers"), torchebm_model(net)
    sampler = samplers.LangevinDynamics(model, step_size=STEP_SIZE, noise_scale=NOISE_STD / (2 * STEP_SIZE) ** 0.5)
    return lambda x: sampler.sample(x=x, n_steps=STEPS).detach()


def ebmkit(net: nn.Module) -> Chain:
    ebm = importlib.import_module("ebm")
    energy, sampler = ebm.ClassifierEnergy(net), ebm.LangevinDynamics(STEP_SIZE, STEPS, noise_scale=NOISE_STD)
    return lambda x: sampler.sample(energy, x).detach()


MODES = {
    "this library, fp32": Compute("fp32"),
    "this library, fp32 channels-last": Compute("fp32", channels_last=True),
    "this library, fp32 channels-last, chunks of 16": Compute("fp32", channels_last=True, chunk_size=16),
    "this library, fp32 channels-last, chunks of 8": Compute("fp32", channels_last=True, chunk_size=8),
    "this library, fp32 compiled": Compute("fp32", compile=True),
    "this library, fp32 compiled channels-last": Compute("fp32", channels_last=True, compile=True),
    "this library, bf16": Compute("bf16"),
    "this library, bf16 channels-last": Compute("bf16", channels_last=True),
    "this library, bf16 channels-last, chunks of 32": Compute("bf16", channels_last=True, chunk_size=32),
    "this library, bf16 compiled channels-last": Compute("bf16", channels_last=True, compile=True),
    "this library, bf16 compiled channels-last, chunks of 32": Compute(
        "bf16", channels_last=True, compile=True, chunk_size=32
    ),
}


def all_contenders(net: nn.Module, shape: tuple[int, ...]) -> dict[str, Chain]:
    loops = {LIMIT: limit, JEM_LOOP: official_jem, UVA_LOOP: uva, "naive .backward()": naive, FLOOR: forward_only}
    chains: dict[str, Chain] = {name: functools.partial(loop, net) for name, loop in loops.items()}
    for module, make in (("torchebm", torchebm), ("ebm", ebmkit)):
        if importlib.util.find_spec(module) is None:
            print(f"{make.__name__} is skipped: it is not installed.")
        else:
            chains[make.__name__] = make(net)
    return chains | {name: this_library(net, shape, compute) for name, compute in MODES.items()}
