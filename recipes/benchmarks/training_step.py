"""Compare the cost of a JEM training step with its parts: K sampler steps and a training step of the classifier.

``OMP_NUM_THREADS=1 python recipes/benchmarks/training_step.py`` prints a Markdown table and writes
``training_step.json``. The three jobs are timed in turns. Peak memory counts tensors: weights, gradients, Adam's
moments and everything that a step allocates.
"""

import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import (
    WIDE_RESNETS,
    Network,
    by_clock,
    default_device,
    interleave,
    print_table,
    ratio_quartiles,
    write_json,
)
from jsonargparse import auto_cli
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ebm_lightning import JEM, SGLD, Box, Compute, ConditionalEBM, ReplayBuffer
from ebm_lightning.networks import ConvNet

NETWORKS = {"small": Network(functools.partial(ConvNet, (1, 28, 28), 10), (1, 28, 28), 64), **WIDE_RESNETS}
Job = Callable[[], object]
Row = dict[str, Any]


def main(
    networks: tuple[str, ...] = ("small", "b", "d"),
    rounds: int = 10,
    sampler_steps: int = 20,
    auto: bool = False,
    output: Path = Path("training_step.json"),
) -> dict[str, Row]:
    """Measure time and memory of the training steps, and print the table.

    Args:
        networks: Networks to run: small (ConvNet on 1x28x28, batch 64), b and d (ten-layer WideResNets on 3x32x32,
            batch 16).
        rounds: Timed runs of each job.
        sampler_steps: K, the Langevin steps per batch.
        auto: Run the chains with ``Compute.auto()`` instead of float32.
        output: File for the results, in JSON.
    """
    compute = Compute.auto() if auto else None
    rows = {name: benchmark(NETWORKS[name], rounds, sampler_steps, compute) for name in networks}
    write_json(output, rows)
    times = ("JEM, ms", "K sampler steps, ms", "classifier, ms")
    header = ("", *times, "JEM / (sampler + classifier) [quartiles]", "peak memory, ratio")
    cells = []
    for name, r in rows.items():
        milliseconds = [f"{r[job]:.1f}" for job in ("jem", "sampler", "classifier")]
        cells.append([name, *milliseconds, f"{r['time_ratio']:.3f}", f"{r['memory_ratio']:.3f}"])
    print_table(header, cells)
    return rows


def benchmark(network: Network, rounds: int, sampler_steps: int, compute: Compute | None) -> Row:
    make, shape, batch_size = network
    device = default_device()
    torch.manual_seed(0)
    x, y = (torch.rand(batch_size, *shape, device=device) - 0.5), torch.arange(batch_size, device=device) % 10
    box, sampler = Box(-1, 1, shape), SGLD.jem(sampler_steps)
    classifier = ready(ConditionalEBM(make(), 10, box), device)
    jem = JEM(make(), 10, box, sampler, ReplayBuffer(4 * batch_size), compute=compute, seed=0)
    ready(jem, device).start_chains()
    jobs: dict[str, Job] = {
        "jem": training_step(jem, x, y),
        "sampler": lambda: run_sampler(jem, x, compute),
        "classifier": training_step(classifier, x, y),
    }
    seconds = by_clock(interleave(jobs, rounds, device), "wall" if device.type == "cuda" else "cpu")
    parts = [s + c for s, c in zip(seconds["sampler"], seconds["classifier"], strict=True)]
    memory = {k: peak_memory(jobs[k], m) for k, m in (("jem", jem), ("classifier", classifier))}
    return {
        **{k: 1e3 * statistics.median(v) for k, v in seconds.items()},
        "time_ratio": ratio_quartiles(seconds["jem"], parts),
        "memory_ratio": memory["jem"] / memory["classifier"],
        **{f"{k}_mebibytes": v / 2**20 for k, v in memory.items()},
    }


def ready(module: Any, device: torch.device) -> Any:
    module.log = module.log_dict = lambda *args, **kwargs: None  # no trainer to log to
    return module.to(device).train()


def training_step(module: ConditionalEBM, x: Tensor, y: Tensor) -> Job:
    """A function that does what Lightning does with a batch: loss, backward pass, optimizer step."""
    optimizer = torch.optim.Adam(module.parameters(), 1e-6)  # a learning rate that leaves the energies unchanged

    def step() -> None:
        optimizer.zero_grad()
        module.training_step((x, y), 0).backward()
        optimizer.step()

    return step


def run_sampler(module: JEM, x: Tensor, compute: Compute | None) -> None:
    module.sampler.run(module.energy, x, support=module.support, generator=module.generator, compute=compute)


def peak_memory(job: Job, module: JEM | ConditionalEBM) -> float:
    """Bytes of the weights and Adam's moments, plus the peak of what a step allocates on top of them."""
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    for p in module.parameters():
        p.grad = None
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        job()
        return float(torch.cuda.max_memory_allocated())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        job()
    current = peak = 0
    results = profiled.profiler.kineto_results
    for event in sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return 3.0 * weights + peak


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
