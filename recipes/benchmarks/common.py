"""Interleaved timing, quartiles and Markdown tables for the benchmarks.

Benchmarks run as scripts and import this file by ``from common import ...``: Python puts a script's folder on the path.
"""

import functools
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import nn
from tqdm import tqdm

from ebm_lightning.networks import WideResNet

CPU = torch.device("cpu")
T = TypeVar("T")
Clock = Literal["wall", "cpu"]


class Network(NamedTuple):
    """A network to time: how to build it, the shape of one input, and the batch size."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch_size: int


WIDE_RESNETS = {
    "b": Network(functools.partial(WideResNet, 3, 10, 10, (64, 64, 64)), (3, 32, 32), 16),
    "d": Network(functools.partial(WideResNet, 3, 10, 10, (64, 128, 256)), (3, 32, 32), 16),
}


class Seconds(NamedTuple):
    """Duration of a job: wall time, and CPU time summed over the threads of this process."""

    wall: float
    cpu: float


class Quartiles(NamedTuple):
    """Lower quartile, median and upper quartile. ``f"{q:.2f}"`` formats them as ``median [low, high]``."""

    low: float
    median: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def check_targets(targets: Iterable[str], known: Collection[str]) -> None:
    """Raise a ValueError if there is no target of some name. On a command line, names with a comma need quotes."""
    unknown = [name for name in targets if name not in known]
    if unknown:
        raise ValueError(
            f"'targets' should be among {', '.join(map(repr, known))}, got {', '.join(map(repr, unknown))}. Quote "
            "names with a comma."
        )


def default_device() -> torch.device:
    """The GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def timed(job: Callable[[], T], device: torch.device = CPU) -> tuple[Seconds, T]:
    """Run ``job`` once and return its duration and its result. Waits for the GPU if ``device`` is one."""
    wall, cpu = _clocks(device)
    result = job()
    wall_after, cpu_after = _clocks(device)
    return Seconds(wall_after - wall, cpu_after - cpu), result


def interleave(
    jobs: Mapping[str, Callable[[], object]], rounds: int, device: torch.device = CPU, label: str | None = None
) -> dict[str, list[Seconds]]:
    """Time every job once per round, in random order, after one untimed warm-up round.

    Interleaving makes other load on the machine slow all jobs alike, so compare times within a round.

    Arguments:
        jobs: The contenders.
        rounds: Number of timed rounds.
        device: Where the jobs run.
        label: Text of a progress bar; no bar by default.

    Returns:
        The durations of each job, one per round.
    """
    durations: dict[str, list[Seconds]] = {name: [] for name in jobs}
    order = random.Random(0)
    for turn in tqdm(range(rounds + 1), label, disable=label is None):
        for name in order.sample(list(jobs), len(jobs)):
            duration, _ = timed(jobs[name], device)
            if turn:
                durations[name].append(duration)
    return durations


def by_clock(durations: Mapping[str, list[Seconds]], clock: Clock) -> dict[str, list[float]]:
    """The seconds of each job by one of the two clocks, one per round."""
    return {name: [getattr(duration, clock) for duration in each] for name, each in durations.items()}


def quartiles(values: Iterable[float]) -> Quartiles:
    """Quartiles of ``values``; a single value is returned three times."""
    values = list(values)
    return Quartiles(*(statistics.quantiles(values, n=4) if len(values) > 1 else values * 3))


def ratio_quartiles(numerators: Iterable[float], denominators: Iterable[float]) -> Quartiles:
    """Quartiles of the ratios within each round."""
    return quartiles(a / b for a, b in zip(numerators, denominators, strict=True))


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print("\n| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")


def write_json(path: Path, figures: Any) -> None:
    """Write ``figures`` to ``path``, replacing what was there and creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1))


def environment(device: torch.device = CPU) -> dict[str, Any]:
    """What timings depend on: versions, device and threads."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "torch": torch.__version__,
        "device": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def _clocks(device: torch.device) -> Seconds:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return Seconds(time.perf_counter(), time.process_time())
