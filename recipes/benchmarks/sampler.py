"""Compare the speed of this library's chains with other samplers and hand-written loops, in one process.

``python recipes/benchmarks/sampler.py`` prints a Markdown table for each network and writes ``sampler.json``. First,
every contender has to reproduce the reference's chains from the same initial points and noise. Then the contenders are
timed in shuffled order, and ratios are taken within a round. By default these are ratios of wall time. If other
processes use the machine, take CPU time instead (``--ratios cpu``), with ``OMP_NUM_THREADS=1`` because threads that
wait for each other also use CPU time.
"""

import functools
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from common import (
    WIDE_RESNETS,
    Clock,
    Network,
    Seconds,
    by_clock,
    default_device,
    environment,
    interleave,
    print_table,
    ratio_quartiles,
    write_json,
)
from contenders import FLOOR, JEM_LOOP, LIMIT, NOISE_STD, STEPS, UVA_LOOP, Chain, all_contenders, limit
from jsonargparse import auto_cli
from torch import Tensor, nn

from ebm_lightning.networks import WideResNet
from ebm_lightning.samplers.memory import keep_freed_memory

FP32_BOUND = 1e-4  # largest accepted distance from the reference, in units of x
BF16_BOUND = 0.5  # the same in bfloat16, relative to the largest distance that gradients move a pixel
Row = dict[str, Any]


def small() -> nn.Module:
    """Three convolutions of width 32 for inputs of shape (1, 28, 28)."""
    act = functools.partial(nn.LeakyReLU, 0.2)
    convs = [nn.Conv2d(1, 32, 3, 1, 1), act(), nn.Conv2d(32, 32, 3, 2, 1), act(), nn.Conv2d(32, 32, 3, 2, 1), act()]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(32 * 7 * 7, 10))


NETWORKS = WIDE_RESNETS | {
    "a": Network(small, (1, 28, 28), 64),
    "c": Network(WideResNet, (3, 32, 32), 64),  # WRN-28-10, GPU only
}


def main(
    networks: tuple[str, ...] = ("a", "b", "d"),
    rounds: int = 10,
    contenders: tuple[str, ...] = (),
    keep_memory: bool = False,
    ratios: Clock = "wall",
    output: Path = Path("sampler.json"),
) -> dict[str, dict[str, Row]]:
    """Check and time all contenders, and print one table for each network.

    Args:
        networks: Networks to run: a (three convolutions, 1x28x28, batch 64), b and d (ten-layer WideResNets of widths
            64 and 64/128/256, 3x32x32, batch 16) and, only on a GPU, c (WRN-28-10, batch 64).
        rounds: Timed runs of every contender.
        contenders: Names of contenders to run in addition to the reference and JEM's loop. Default: all.
        keep_memory: Tell glibc to keep freed memory, for all contenders.
        ratios: Clock of the printed ratios. On a GPU it is always wall.
        output: File for the results, in JSON.
    """
    if keep_memory:
        keep_freed_memory()
    device = default_device()
    clock: Clock = "wall" if device.type == "cuda" else ratios
    results: dict[str, dict[str, Row]] = {}
    setting = environment(device) | {"keep_memory": keep_memory, "rounds": rounds}
    for name in networks:
        if name == "c" and device.type == "cpu":
            print("(c) is skipped: WRN-28-10 needs a GPU.")
            continue
        results[name] = benchmark(name, rounds, contenders, device, clock)
        write_json(output, {"setting": setting, "networks": results})
    return results


def benchmark(name: str, rounds: int, chosen: tuple[str, ...], device: torch.device, clock: Clock) -> dict[str, Row]:
    make, shape, batch_size = NETWORKS[name]
    torch.manual_seed(0)
    # In PyTorch's default memory format; the library's channels-last modes convert it.
    net = make().to(device).to(memory_format=torch.contiguous_format).train()
    x = (torch.rand(batch_size, *shape, device=device) - 0.5) * 1.2  # chains do not reach the walls
    chains = {k: c for k, c in all_contenders(net, shape).items() if not chosen or k in (*chosen, LIMIT, JEM_LOOP)}
    print(f"\n({name}) batch {batch_size} of {'x'.join(map(str, shape))}, {STEPS} steps, {rounds} rounds, {device}")
    distances = check_chains(chains, net, x)
    durations = interleave({k: functools.partial(chain, x) for k, chain in chains.items()}, rounds, device)
    rows = {k: summary(durations, k, clock, batch_size) | {"distance": distances.get(k)} for k in chains}
    print_rows(rows)
    return rows


def check_chains(chains: Mapping[str, Chain], net: nn.Module, x: Tensor) -> dict[str, float]:
    """The largest distance of each contender's chains from the reference's, in units of x.

    Raises:
        RuntimeError: A contender computes different chains.
    """
    reference, noise_only = seeded(functools.partial(limit, net), x), seeded(add_noise, x)
    uva_reference = seeded(functools.partial(limit, net, noise_first=True), x, skip=True)
    moved = float((reference - noise_only).abs().max())
    distances = {}
    for name, chain in chains.items():
        if name == FLOOR:
            continue
        target = uva_reference if name == UVA_LOOP else reference
        distances[name] = float((seeded(chain, x) - target).abs().max())
        bound = BF16_BOUND * moved if "bf16" in name else FP32_BOUND
        if not distances[name] <= bound:
            raise RuntimeError(f"{name} computes different chains: distance {distances[name]:.2g}, bound {bound:.2g}.")
    print(
        f"Same chains: |x - reference| after {STEPS} steps is at most {FP32_BOUND:g}, and in bf16 {BF16_BOUND:g} times "
        f"{moved:.2g}, the largest distance that gradients move a pixel."
    )
    return distances


def seeded(chain: Chain, x: Tensor, skip: bool = False) -> Tensor:
    """Run ``chain`` from a fixed seed. ``skip`` first discards the noise that the UvA loop draws and does not use."""
    torch.manual_seed(1)
    if skip:
        torch.randn(x.shape, device=x.device)
    return chain(x)


def add_noise(x: Tensor) -> Tensor:
    for _ in range(STEPS):
        x = x + NOISE_STD * torch.randn_like(x)
    return x


def summary(durations: Mapping[str, list[Seconds]], name: str, clock: Clock, batch_size: int) -> Row:
    """Times of one contender, its speed relative to JEM's loop and its cost relative to the reference."""
    seconds = by_clock(durations, clock)
    wall, cpu = (statistics.median(by_clock(durations, c)[name]) for c in ("wall", "cpu"))
    return {
        "gain": ratio_quartiles(seconds[JEM_LOOP], seconds[name]),
        "cost": ratio_quartiles(seconds[name], seconds[LIMIT]).median,
        "ms_per_step": 1e3 * wall / STEPS,
        "cpu_ms_per_step": 1e3 * cpu / STEPS,
        "chain_steps_per_second": batch_size * STEPS / (cpu if clock == "cpu" else wall),
    }


def print_rows(rows: Mapping[str, Row]) -> None:
    ratios = ("speed relative to JEM's loop [quartiles]", "cost / fp32 limit")
    header = ("", *ratios, "ms per step", "CPU ms", "chain-steps/s", "distance")
    cells = []
    for name, r in rows.items():
        distance = "no chain" if r["distance"] is None else f"{r['distance']:.1e}"
        times = [f"{r[column]:.2f}" for column in ("gain", "cost", "ms_per_step", "cpu_ms_per_step")]
        cells.append([name, *times, f"{r['chain_steps_per_second']:.0f}", distance])
    print_table(header, cells)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
