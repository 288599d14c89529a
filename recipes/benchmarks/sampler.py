"""How fast chains move: this library in each of its modes beside the loops that people use, in one process.

``python recipes/benchmarks/sampler.py`` prints a Markdown table for each network and writes ``sampler.json``.
Contenders take turns in shuffled order, so that a busy machine slows all of them; ratios are taken within a round, of
wall time or, where other processes share the machine, of CPU time (``--ratios cpu``, with ``OMP_NUM_THREADS=1``, since
threads that wait for one another burn it). Before that, each proves that it computes the reference's chains, from equal
starts with equal noise.
"""

import functools
import importlib
import importlib.util
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

from ebm_lightning import SGLD, Box, Compute, JointEnergy
from ebm_lightning.memory import keep_freed_memory
from ebm_lightning.networks import WideResNet

STEP, NOISE, STEPS = 1.0, 0.01, 20  # JEM's
FP32_BOUND, BF16_BOUND = 1e-4, 0.5  # in units of x; as a share of the largest way that gradients move a pixel
Chain = Callable[[Tensor], Tensor]
Row = dict[str, float | str]


def small() -> nn.Module:
    """Three convolutions of width 32 on 1 x 28 x 28."""
    act = functools.partial(nn.LeakyReLU, 0.2)
    convs = [nn.Conv2d(1, 32, 3, 1, 1), act(), nn.Conv2d(32, 32, 3, 2, 1), act(), nn.Conv2d(32, 32, 3, 2, 1), act()]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(32 * 7 * 7, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "a": (small, (1, 28, 28), 64),
    "b": (functools.partial(WideResNet, 3, 10, 10, (64, 64, 64)), (3, 32, 32), 16),
    "c": (WideResNet, (3, 32, 32), 64),  # WRN-28-10, on a GPU only
    "d": (functools.partial(WideResNet, 3, 10, 10, (64, 128, 256)), (3, 32, 32), 16),
}


def main(
    networks: tuple[str, ...] = ("a", "b", "d"),
    rounds: int = 10,
    contenders: tuple[str, ...] = (),
    keep_memory: bool = False,
    ratios: Literal["wall", "cpu"] = "wall",
    output: Path = Path("sampler.json"),
) -> dict[str, dict[str, Row]]:
    """Prove, time, and print one table for each network.

    Args:
        networks: Among a (three convolutions, 1x28x28, batch 64), b and d (ten-layer WideResNets of widths 64 and
            64/128/256, 3x32x32, batch 16) and, on a GPU, c (WRN-28-10, batch 64).
        rounds: Turns of every contender.
        contenders: Names of those to run besides the reference and JEM's loop; all of them if empty.
        keep_memory: Have glibc keep freed memory first, for all contenders.
        ratios: The clock whose ratios are printed; on a GPU always wall.
        output: Where the figures go, as JSON.
    """
    if keep_memory:
        keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results: dict[str, dict[str, Row]] = {}
    for name in networks:
        if name == "c" and device.type == "cpu":
            print("(c) is skipped: WRN-28-10 needs a GPU.")
            continue
        results[name] = benchmark(name, rounds, contenders, device, ratios)
        output.write_text(json.dumps({"setting": setting(device, keep_memory, rounds), "networks": results}, indent=1))
    return results


def benchmark(
    name: str, rounds: int, chosen: tuple[str, ...], device: torch.device, ratios: Literal["wall", "cpu"]
) -> dict[str, Row]:
    make, shape, batch = NETWORKS[name]
    torch.manual_seed(0)
    # As people have it; the library's modes lay weights out by themselves.
    net = make().to(device).to(memory_format=torch.contiguous_format).train()
    x = (torch.rand(batch, *shape, device=device) - 0.5) * 1.2  # so far from walls that none is met
    chains = {k: c for k, c in all_contenders(net, shape).items() if not chosen or k in (*chosen, LIMIT, JEM_LOOP)}
    print(f"\n({name}) batch {batch} of {'x'.join(map(str, shape))}, {STEPS} steps, {rounds} rounds, {device}")
    proofs = prove(chains, net, x)
    seconds = take_turns(chains, x, rounds)
    clock = 1 if ratios == "cpu" and device.type == "cpu" else 0
    rows = {k: row(seconds, k, clock, batch, proofs) for k in chains}
    print_table(rows)
    return rows


# The contenders: each moves chains by STEPS steps. All see the same network, its weights learning, in train mode.

LIMIT, JEM_LOOP = "fp32 limit: frozen weights, in place", "official JEM loop"


def limit(net: nn.Module, x: Tensor, noise_first: bool = False) -> Tensor:
    net.eval().requires_grad_(False)
    x = x.clone()
    for _ in range(STEPS):
        if noise_first:
            x.add_(torch.randn_like(x), alpha=NOISE)
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(net(leaf).logsumexp(1).sum(), leaf)
        x.add_(gradient, alpha=STEP)
        if not noise_first:
            x.add_(torch.randn_like(x), alpha=NOISE)
    net.train().requires_grad_(True)
    return x


def official_jem(net: nn.Module, x: Tensor) -> Tensor:
    """The loop of Grathwohl et al. 2020: live weights, eval mode, the graph kept."""
    net.eval()
    x_k = x.clone().requires_grad_()
    for _ in range(STEPS):
        f_prime = torch.autograd.grad(net(x_k).logsumexp(1).sum(), [x_k], retain_graph=True)[0]
        x_k.data += STEP * f_prime + NOISE * torch.randn_like(x_k)
    net.train()
    return x_k.detach()


def uva(net: nn.Module, x: Tensor) -> Tensor:
    """The loop of the UvA deep learning tutorial 8: frozen weights, noise first, two clamps, .backward()."""
    net.eval()
    for p in net.parameters():
        p.requires_grad = False
    x = x.clone().requires_grad_()
    noise = torch.randn(x.shape, device=x.device)
    for _ in range(STEPS):
        noise.normal_(0, NOISE)
        x.data.add_(noise.data)
        x.data.clamp_(min=-1.0, max=1.0)
        (-net(x).logsumexp(1)).sum().backward()
        assert x.grad is not None
        x.grad.data.clamp_(-1e3, 1e3)  # the tutorial's 0.03 would be another chain
        x.data.add_(-STEP * x.grad.data)
        x.grad.detach_()
        x.grad.zero_()
        x.data.clamp_(min=-1.0, max=1.0)
    for p in net.parameters():
        p.requires_grad = True
    net.train()
    return x.detach()


def naive(net: nn.Module, x: Tensor) -> Tensor:
    """Weights learn all the while, and their gradients are computed and thrown away."""
    for _ in range(STEPS):
        x = x.detach().requires_grad_()
        net.zero_grad()
        (-net(x).logsumexp(1)).sum().backward()
        assert x.grad is not None
        x = x - STEP * x.grad + NOISE * torch.randn_like(x)
    return x.detach()


def forward_only(net: nn.Module, x: Tensor) -> Tensor:
    """The floor: no gradient, so no chain."""
    with torch.no_grad():
        for _ in range(STEPS):
            net(x).logsumexp(1).sum()
    return x


def ours(net: nn.Module, shape: tuple[int, ...], compute: Compute) -> Chain:
    energy, sampler = JointEnergy(net, Box(-1, 1, shape)), SGLD(STEP, NOISE, STEPS)
    return lambda x: sampler(energy, x, support=energy.support, compute=compute)


def torchebm(net: nn.Module) -> Chain:
    samplers, core = importlib.import_module("torchebm.samplers"), importlib.import_module("torchebm.core")
    torch.set_float32_matmul_precision("highest")  # importing it lowers this for the whole process

    def forward(self: Any, x: Tensor) -> Tensor:
        return -net(x).logsumexp(1)

    model = type("Classifier", (core.BaseModel,), {"forward": forward})()
    model.net = net
    sampler = samplers.LangevinDynamics(model, step_size=STEP, noise_scale=NOISE / (2 * STEP) ** 0.5)
    return lambda x: sampler.sample(x=x, n_steps=STEPS).detach()


def ebmkit(net: nn.Module) -> Chain:
    ebm = importlib.import_module("ebm")
    energy, sampler = ebm.ClassifierEnergy(net), ebm.LangevinDynamics(STEP, STEPS, noise_scale=NOISE)
    return lambda x: sampler.sample(energy, x).detach()


MODES = {
    "ours, fp32": Compute("fp32"),
    "ours, fp32 channels-last": Compute("fp32", channels_last=True),
    "ours, fp32 channels-last, chunks of 16": Compute("fp32", channels_last=True, chunk_size=16),
    "ours, fp32 channels-last, chunks of 8": Compute("fp32", channels_last=True, chunk_size=8),
    "ours, fp32 compiled": Compute("fp32", compile=True),
    "ours, fp32 compiled channels-last": Compute("fp32", channels_last=True, compile=True),
    "ours, bf16": Compute("bf16"),
    "ours, bf16 channels-last": Compute("bf16", channels_last=True),
    "ours, bf16 channels-last, chunks of 32": Compute("bf16", channels_last=True, chunk_size=32),
    "ours, bf16 compiled channels-last": Compute("bf16", channels_last=True, compile=True),
    "ours, bf16 compiled channels-last, chunks of 32": Compute("bf16", channels_last=True, compile=True, chunk_size=32),
}


def all_contenders(net: nn.Module, shape: tuple[int, ...]) -> dict[str, Chain]:
    loops = {LIMIT: limit, JEM_LOOP: official_jem, "UvA loop": uva, "naive .backward()": naive, FLOOR: forward_only}
    chains: dict[str, Chain] = {name: functools.partial(loop, net) for name, loop in loops.items()}
    for module, make in (("torchebm", torchebm), ("ebm", ebmkit)):
        if importlib.util.find_spec(module) is None:
            print(f"{make.__name__} is skipped: it is not installed.")
        else:
            chains[make.__name__] = make(net)
    return chains | {name: ours(net, shape, compute) for name, compute in MODES.items()}


FLOOR = "forward only"


# Proof, measurement, table.


def prove(chains: dict[str, Chain], net: nn.Module, x: Tensor) -> dict[str, float]:
    """Each contender's largest distance from the reference, in units of x."""
    reference, uva_reference, still = (
        seeded(functools.partial(limit, net), x),
        seeded(functools.partial(limit, net, noise_first=True), x, extra=x.shape),
        seeded(drift_free, x),
    )
    way = float((reference - still).abs().max())
    proofs = {}
    for name, chain in chains.items():
        if name == FLOOR:
            continue
        target = uva_reference if name == "UvA loop" else reference
        proofs[name] = float((seeded(chain, x) - target).abs().max())
        bound = BF16_BOUND * way if "bf16" in name else FP32_BOUND
        if not proofs[name] <= bound:
            raise RuntimeError(
                f"{name} computes another chain: it is {proofs[name]:.2g} away, the bound is {bound:.2g}."
            )
    print(
        f"Same chains: |x - reference| after {STEPS} steps is at most {FP32_BOUND:g}, and in bf16 {BF16_BOUND:g} of "
        f"{way:.2g}, the largest way that gradients move a pixel."
    )
    return proofs


def seeded(chain: Chain, x: Tensor, extra: tuple[int, ...] = ()) -> Tensor:
    torch.manual_seed(1)
    if extra:
        torch.randn(extra, device=x.device)
    return chain(x)


def drift_free(x: Tensor) -> Tensor:
    for _ in range(STEPS):
        x = x + NOISE * torch.randn_like(x)
    return x


Seconds = dict[str, list[tuple[float, float]]]  # of each contender in each round: wall time, CPU time of all threads


def take_turns(chains: dict[str, Chain], x: Tensor, rounds: int) -> Seconds:
    seconds: Seconds = {name: [] for name in chains}
    order = random.Random(0)
    for turn in range(rounds + 1):
        for name in order.sample(list(chains), len(chains)):
            wall, cpu = clocks(x.device)
            chains[name](x)
            wall_after, cpu_after = clocks(x.device)
            if turn:  # the first warms up
                seconds[name].append((wall_after - wall, cpu_after - cpu))
    return seconds


def clocks(device: torch.device) -> tuple[float, float]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def row(seconds: Seconds, name: str, clock: int, batch: int, proofs: dict[str, float]) -> Row:
    mine, limit, jem = ([pair[clock] for pair in seconds[k]] for k in (name, LIMIT, JEM_LOOP))
    cost = [a / b for a, b in zip(mine, limit, strict=True)]
    gain = [b / a for a, b in zip(mine, jem, strict=True)]
    wall, cpu = (statistics.median(pair[k] for pair in seconds[name]) for k in (0, 1))
    quartiles = statistics.quantiles(gain, n=4) if len(gain) > 1 else gain * 3
    return {
        "gain": statistics.median(gain),
        "gain_low": quartiles[0],
        "gain_high": quartiles[2],
        "cost": statistics.median(cost),
        "ms_per_step": 1e3 * wall / STEPS,
        "cpu_ms_per_step": 1e3 * cpu / STEPS,
        "chain_steps_per_second": batch * STEPS / (cpu if clock else wall),
        "distance": proofs.get(name, "no chain"),
    }


def print_table(rows: dict[str, Row]) -> None:
    print("\n| | times JEM's speed [quartiles] | cost / fp32 limit | ms a step | CPU ms | chain-steps/s | distance |")
    print("|---|---|---|---|---|---|---|")
    for name, r in rows.items():
        distance = f"{r['distance']:.1e}" if isinstance(r["distance"], float) else r["distance"]
        print(
            f"| {name} | {r['gain']:.2f} [{r['gain_low']:.2f}, {r['gain_high']:.2f}] | {r['cost']:.2f} "
            f"| {r['ms_per_step']:.2f} | {r['cpu_ms_per_step']:.2f} | {r['chain_steps_per_second']:.0f} | {distance} |"
        )


def setting(device: torch.device, keep_memory: bool, rounds: int) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "torch": torch.__version__,
        "device": name,
        "threads": torch.get_num_threads(),
        "keep_memory": keep_memory,
        "rounds": rounds,
    }


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
