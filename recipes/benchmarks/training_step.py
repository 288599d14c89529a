"""What a training step of JEM costs, beside its parts: K sampler steps and the classifier's own training step.

``OMP_NUM_THREADS=1 python recipes/benchmarks/training_step.py`` prints a Markdown table and writes
``training_step.json``. The three take turns; peak memory is that of tensors: weights, gradients, Adam's moments and all
that a step makes.
"""

import functools
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ebm_lightning import JEM, SGLD, Box, Compute, ConditionalEBM, ReplayBuffer
from ebm_lightning.networks import ConvNet, WideResNet

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "small": (functools.partial(ConvNet, (1, 28, 28), 10), (1, 28, 28), 64),
    "b": (functools.partial(WideResNet, 3, 10, 10, (64, 64, 64)), (3, 32, 32), 16),
    "d": (functools.partial(WideResNet, 3, 10, 10, (64, 128, 256)), (3, 32, 32), 16),
}
Job = Callable[[], None]
Row = dict[str, float]


def main(
    networks: tuple[str, ...] = ("small", "b", "d"),
    rounds: int = 10,
    steps: int = 20,
    auto: bool = False,
    output: Path = Path("training_step.json"),
) -> dict[str, Row]:
    """Time and weigh the steps, and print the table.

    Args:
        networks: Among small (ConvNet on 1x28x28, batch 64), b and d (ten-layer WideResNets, 3x32x32, batch 16).
        rounds: Turns of each step.
        steps: K, the sampler's steps.
        auto: Run chains as ``Compute.auto()`` has it, not in float32.
        output: Where the figures go, as JSON.
    """
    rows = {name: benchmark(name, rounds, steps, Compute.auto() if auto else None) for name in networks}
    output.write_text(json.dumps(rows, indent=1))
    print("| | JEM, ms | K sampler steps, ms | classifier, ms | JEM / (sampler + classifier) | peak memory, ratio |")
    print("|---|---|---|---|---|---|")
    for name, r in rows.items():
        print(
            f"| {name} | {r['jem']:.1f} | {r['sampler']:.1f} | {r['classifier']:.1f} | {r['time_ratio']:.3f} "
            f"[{r['time_low']:.3f}, {r['time_high']:.3f}] | {r['memory_ratio']:.3f} |"
        )
    return rows


def benchmark(name: str, rounds: int, steps: int, compute: Compute | None) -> Row:
    make, shape, batch = NETWORKS[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    x, y = (torch.rand(batch, *shape, device=device) - 0.5), torch.arange(batch, device=device) % 10
    box, sampler = Box(-1, 1, shape), SGLD.jem(steps)
    classifier = ready(ConditionalEBM(make(), 10, box), device)
    jem = JEM(make(), 10, box, sampler, ReplayBuffer(4 * batch), compute=compute, seed=0)
    ready(jem, device).start_chains()
    jobs = {
        "jem": training_step(jem, x, y),
        "sampler": lambda: move(jem, x, compute),
        "classifier": training_step(classifier, x, y),
    }
    seconds = take_turns(jobs, rounds, device)
    both = [j / (s + c) for j, s, c in zip(*seconds.values(), strict=True)]
    low, middle, high = statistics.quantiles(both, n=4)
    memory = {k: peak_memory(jobs[k], m) for k, m in (("jem", jem), ("classifier", classifier))}
    return {
        **{k: 1e3 * statistics.median(v) for k, v in seconds.items()},
        "time_ratio": middle,
        "time_low": low,
        "time_high": high,
        "memory_ratio": memory["jem"] / memory["classifier"],
        **{f"{k}_mebibytes": v / 2**20 for k, v in memory.items()},
    }


def ready(module: Any, device: torch.device) -> Any:
    module.log = module.log_dict = lambda *args, **kwargs: None  # no trainer listens
    return module.to(device).train()


def training_step(module: ConditionalEBM, x: Tensor, y: Tensor) -> Job:
    """What Lightning does with a batch: loss, backward pass, optimiser."""
    optimizer = torch.optim.Adam(module.parameters(), 1e-6)  # so small that energies stay as they are

    def step() -> None:
        optimizer.zero_grad()
        module.training_step((x, y), 0).backward()
        optimizer.step()

    return step


def move(module: JEM, x: Tensor, compute: Compute | None) -> None:
    module.sampler.run(module.energy, x, support=module.support, generator=module.generator, compute=compute)


def take_turns(jobs: dict[str, Job], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each job in each round: CPU time, on a GPU wall time."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    order = random.Random(0)
    for turn in range(rounds + 1):
        for name in order.sample(list(jobs), len(jobs)):
            start = clock(device)
            jobs[name]()
            if turn:  # the first warms up
                seconds[name].append(clock(device) - start)
    return seconds


def clock(device: torch.device) -> float:
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory(job: Job, module: JEM | ConditionalEBM) -> float:
    """Bytes of the weights and of Adam's moments, and the most that a step has beyond them at any time."""
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    for p in module.parameters():
        p.grad = None
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        job()
        return float(torch.cuda.max_memory_allocated())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        job()
    now = most = 0
    results = profiled.profiler.kineto_results
    for event in sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return 3.0 * weights + most


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
