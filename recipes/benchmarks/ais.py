"""Cost of annealing: relative to the plain sampler, on two processes, and as a function of the length of the run.

``OMP_NUM_THREADS=1 python recipes/benchmarks/ais.py`` prints a Markdown table for each part and writes ``ais.json`` and
``ais_cost.png`` to its folder. What is compared runs interleaved, and ratios of wall time are taken within a round. A
chain-step is one evaluation of the energy and gradient of one chain.
"""

import functools
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from common import CPU, by_clock, environment, interleave, print_table, ratio_quartiles, timed, write_json
from jsonargparse import auto_cli
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from ebm_lightning import GHMC, HMC, Box, Compute, JointEnergy
from ebm_lightning.evaluation.report import results_folder
from ebm_lightning.networks import ConvNet
from ebm_lightning.partition.ais import anneal
from ebm_lightning.partition.annealing_path import Annealing, AnnealingPath
from ebm_lightning.partition.islands import Island
from ebm_lightning.partition.pilot import tune_path
from ebm_lightning.partition.smc import OneProcess, island_sizes, run_islands
from ebm_lightning.rng import make_generator

Part = Literal["throughput", "ranks", "cost"]
Row = dict[str, Any]
digits_net = functools.partial(ConvNet, (1, 8, 8), 10, 24)  # the network of recipes/digits.py
mnist_net = functools.partial(ConvNet, (1, 28, 28), 10)


class Case(NamedTuple):
    """A network and a kernel to time."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    num_chains: int  # of one island, which are evaluated together
    kernel: HMC
    compute: Compute = Compute()


CASES = {
    "digits, GHMC": Case(digits_net, (1, 8, 8), 100, GHMC()),
    "digits, HMC": Case(digits_net, (1, 8, 8), 100, HMC()),
    "1x28x28, GHMC": Case(mnist_net, (1, 28, 28), 64, GHMC()),
    "1x28x28, GHMC, chunks of 16": Case(mnist_net, (1, 28, 28), 64, GHMC(), Compute("fp32", True, chunk_size=16)),
}


def main(
    parts: tuple[Part, ...] = ("throughput", "ranks", "cost"),
    rounds: int = 10,
    evaluations: int = 60,
    rank_rounds: int = 5,
    num_chains: int = 1000,
    shortest: int = 2000,
    growth: tuple[int, ...] = (1, 3, 10, 30, 100),
    output: Path | None = None,
) -> dict[str, Any]:
    """Run the selected parts.

    Args:
        parts: "throughput" compares annealing with the plain sampler, "ranks" one process with two that have twice
            the chains, and "cost" runs of different lengths.
        rounds: Rounds of "throughput".
        evaluations: Gradient evaluations per chain and round of "throughput"; temperatures of "ranks".
        rank_rounds: Rounds of "ranks".
        num_chains: Chains per process of "ranks".
        shortest: Chains times temperatures of the shortest run of "cost", at least 80.
        growth: Lengths of the runs of "cost" relative to the shortest, increasing.
        output: Folder for results, new or empty; by default the next free runs/ais-N.
    """
    folder = results_folder(output, "ais")
    results: dict[str, Any] = environment()
    measures: dict[Part, Callable[[], Any]] = {
        "throughput": lambda: throughput(rounds, evaluations),
        "ranks": lambda: ranks(rank_rounds, num_chains, evaluations),
        "cost": lambda: cost(shortest, growth, folder),
    }
    for part in parts:
        results[part] = measures[part]()
        write_json(folder / "ais.json", results)
    return results


def uniform_annealing(make: Callable[[], nn.Module], shape: tuple[int, ...], kernel: HMC) -> Annealing:
    """Annealing of an untrained network from uniform noise."""
    torch.manual_seed(0)
    box = Box(-1, 1, shape)
    return Annealing(JointEnergy(make(), box), box, box, kernel)


def run(annealing: Annealing, path: AnnealingPath, sizes: list[int]) -> None:
    def island(number: int, n: int, progress_iter: Iterator[int]) -> Island:
        return anneal(annealing, path, n, make_generator(0, "island", number), True, progress_iter)

    run_islands(island, sizes, len(path.steps), OneProcess())


# Annealing compared with the plain sampler.


def throughput(rounds: int, evaluations: int) -> dict[str, Row]:
    rows = {name: compare_with_sampler(name, case, rounds, evaluations) for name, case in CASES.items()}
    speeds = ("annealing", "sampler")
    print_table(
        ("", "chains at once", *(f"{job}, chain-steps/s" for job in speeds), "ratio [quartiles]", "pilot, s"),
        [
            (name, r["num_chains"], *(f"{r[job]:.0f}" for job in speeds), f"{r['ratio']:.3f}", f"{r['pilot']:.2f}")
            for name, r in rows.items()
        ],
    )
    return rows


def compare_with_sampler(name: str, case: Case, rounds: int, evaluations: int) -> Row:
    annealing = uniform_annealing(case.make, case.shape, case.kernel)
    temperatures = evaluations // case.kernel.leapfrogs
    pilot, path = timed(lambda: tune_path(annealing, temperatures, "adaptive", 0, CPU))
    kernel = replace(case.kernel, steps=temperatures, step_size=float(path.steps.sizes[-1].mean()))
    energy, support = annealing.energy, annealing.support
    initial = support.sample(case.num_chains, generator=make_generator(0, "start"))

    def anneal_once() -> None:
        assert isinstance(energy, JointEnergy)
        with case.compute.applied(energy, CPU):
            run(annealing, path, [case.num_chains])

    def sample_once() -> None:
        kernel(energy, initial, support=support, generator=make_generator(0, "chains"), compute=case.compute)

    durations = interleave({"annealing": anneal_once, "sampler": sample_once}, rounds, label=name)
    seconds = by_clock(durations, "wall")
    steps = case.num_chains * (1 + kernel.steps * kernel.leapfrogs)
    speeds = {job: steps / statistics.median(values) for job, values in seconds.items()}
    ratio = ratio_quartiles(seconds["sampler"], seconds["annealing"])
    return {**speeds, "ratio": ratio, "num_chains": case.num_chains, "pilot": pilot.wall}


# One process compared with two.


def ranks(rounds: int, num_chains: int, temperatures: int) -> Row:
    """Seconds of ``AISLogZ`` with ``num_chains`` on one process and twice as many on two, in islands of one size."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for turn in tqdm(range(rounds), "one process and two"):
        for processes in (1, 2) if turn % 2 else (2, 1):
            seconds[processes].append(seconds_on(processes, num_chains, temperatures))
    efficiency = ratio_quartiles(*seconds.values())
    one, two = (f"{statistics.median(values):.2f}" for values in seconds.values())
    print_table(
        ("chains, one process and two", "one, s", "two, s", "weak-scaling efficiency [quartiles]"),
        [(f"{num_chains} and {2 * num_chains}", one, two, f"{efficiency:.3f}")],
    )
    return {"efficiency": efficiency, "seconds": seconds, "num_chains": num_chains, "temperatures": temperatures}


def seconds_on(processes: int, num_chains: int, temperatures: int) -> float:
    command = [sys.executable, str(Path(__file__).with_name("ais_ranks.py")), f"--processes={processes}"]
    command += [f"--num_chains={num_chains}", f"--temperatures={temperatures}"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The run on {processes} processes ended with {done.returncode}:\n{done.stderr}")
    return float(done.stdout.split()[-1])


# Cost as a function of chains and temperatures.


def cost(shortest: int, growth: tuple[int, ...], folder: Path) -> dict[str, Row]:
    annealing = uniform_annealing(digits_net, (1, 8, 8), GHMC())
    run(annealing, tune_path(annealing, 10, "adaptive", 0, CPU), [100])  # warm-up
    rows: dict[str, Row] = {}
    for name, (points, chunk_size) in series(shortest, growth).items():
        pilots, seconds = zip(*(pilot_and_run(annealing, n, t, chunk_size) for n, t in tqdm(points, name)), strict=True)
        work = [float(n * t) for n, t in points]
        rows[name] = {
            "chain_steps": work,
            "seconds": seconds,
            "pilot_seconds": pilots,
            "slope": log_log_slope(work, seconds),
            "microseconds": [1e6 * s / w for s, w in zip(seconds, work, strict=True)],
        }
    cells = []
    for name, r in rows.items():
        lengths, costs = [f"{w:.3g}" for w in r["chain_steps"]], [f"{c:.1f}" for c in r["microseconds"]]
        pilot = f"{statistics.median(r['pilot_seconds']):.2f}"
        cells.append((name, f"{lengths[0]} to {lengths[-1]}", f"{r['slope']:.3f}", ", ".join(costs), pilot))
    header = ("", "chains x temperatures", "slope", "microseconds per chain-step, shortest run to longest", "pilot, s")
    print_table(header, cells)
    plot_cost(rows).savefig(folder / "ais_cost.png", dpi=120)
    return rows


def series(shortest: int, growth: tuple[int, ...]) -> dict[str, tuple[list[tuple[int, int]], int | None]]:
    """(chains, temperatures) of each run, and the largest number of chains to evaluate together."""
    few, chunk_size, many = shortest // 4, shortest // 40, shortest // 20
    return {
        f"{few} chains, more temperatures": ([(few, 4 * g) for g in growth], chunk_size),
        f"4 temperatures, more chains, {chunk_size} at a time": ([(few * g, 4) for g in growth], chunk_size),
        f"{many} temperatures, more chains, a tenth at a time": ([(20 * g, many) for g in growth], None),
    }


def pilot_and_run(
    annealing: Annealing, num_chains: int, temperatures: int, chunk_size: int | None
) -> tuple[float, float]:
    """Seconds of the pilot, and of the annealing run: the median of three if it is short."""
    pilot, path = timed(lambda: tune_path(annealing, temperatures, "adaptive", 0, CPU))
    job = functools.partial(run, annealing, path, island_sizes(num_chains, chunk_size))
    seconds = [timed(job)[0].wall]
    seconds += [timed(job)[0].wall for _ in range(2) if seconds[0] < 2]
    return pilot.wall, statistics.median(seconds)


def log_log_slope(x: list[float], y: tuple[float, ...]) -> float:
    """Slope of the regression of log y on log x. Linear cost has slope 1."""
    return statistics.linear_regression([math.log(v) for v in x], [math.log(v) for v in y]).slope


def plot_cost(rows: dict[str, Row]) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for (name, r), marker in zip(rows.items(), "os^", strict=True):
        axes.loglog(r["chain_steps"], r["seconds"], marker, fillstyle="none", label=f"{name}: slope {r['slope']:.3f}")
    first = next(iter(rows.values()))
    per_step = statistics.median(first["microseconds"])
    line = [first["chain_steps"][0], first["chain_steps"][-1]]
    label = f"slope 1: {per_step:.0f} µs per chain-step"
    axes.loglog(line, [1e-6 * per_step * w for w in line], color="black", linewidth=0.8, label=label)
    axes.axhline(
        statistics.median(first["pilot_seconds"]), color="grey", linestyle=":", label="the pilot, once per run"
    )
    axes.set(xlabel="chains x temperatures", ylabel="seconds", title="Annealing the network of digits.py, one thread")
    axes.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
