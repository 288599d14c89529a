"""What annealing costs: beside the sampler it is made of, on two processes, and along its length.

``OMP_NUM_THREADS=1 python recipes/benchmarks/ais.py`` prints a Markdown table for each part and leaves ``ais.json`` and
``ais_cost.png`` in its folder. What is compared takes turns, so that a busy machine slows both; ratios are taken within
a turn, of wall time. A chain-step is one evaluation of one chain's energy and gradient.
"""

import functools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from jsonargparse import auto_cli
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from ebm_lightning import GHMC, HMC, AISLogZ, Box, Compute, ConditionalEBM, JointEnergy, LogZ
from ebm_lightning.networks import ConvNet
from ebm_lightning.partition import Reference
from ebm_lightning.partition.ais import make_plan
from ebm_lightning.partition.islands import island_sizes, run_islands
from ebm_lightning.partition.plan import Plan
from ebm_lightning.report import results_folder
from ebm_lightning.streams import make_generator

CPU, DIGITS = torch.device("cpu"), Box(-1, 1, (1, 8, 8))
Part = Literal["throughput", "ranks", "cost"]
Row = dict[str, Any]


def digits_net() -> nn.Module:
    """The network of ``recipes/digits.py``."""
    return ConvNet((1, 8, 8), 10, 24)


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    chains: int  # of one island, so those that are evaluated together
    kernel: HMC
    compute: Compute = Compute()


CASES = {
    "digits, GHMC": Case(digits_net, (1, 8, 8), 100, GHMC()),
    "digits, HMC": Case(digits_net, (1, 8, 8), 100, HMC()),
    "1x28x28, GHMC": Case(functools.partial(ConvNet, (1, 28, 28), 10), (1, 28, 28), 64, GHMC()),
    "1x28x28, GHMC, chunks of 16": Case(
        functools.partial(ConvNet, (1, 28, 28), 10), (1, 28, 28), 64, GHMC(), Compute("fp32", True, chunk_size=16)
    ),
}


def main(
    parts: tuple[Part, ...] = ("throughput", "ranks", "cost"),
    rounds: int = 10,
    evaluations: int = 60,
    rank_rounds: int = 5,
    rank_chains: int = 1000,
    shortest: int = 2000,
    growth: tuple[int, ...] = (1, 3, 10, 30, 100),
    output: Path | None = None,
) -> dict[str, Any]:
    """Measure the parts asked for.

    Args:
        parts: Annealing beside the plain sampler; one process beside two with twice the chains; cost along chains and
            temperatures.
        rounds: Turns of annealing and sampler.
        evaluations: Of the gradient for each chain in a turn, of one process and two as well.
        rank_rounds: Turns of one process and two.
        rank_chains: Chains of each process.
        shortest: Chains x temperatures of the shortest run, at least 80.
        growth: How many times as long the runs are, increasing.
        output: Folder of the results, new or empty; by default the next free runs/ais-N.
    """
    folder = results_folder(output, "ais")
    figures: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    measures: dict[Part, Callable[[], Any]] = {
        "throughput": lambda: throughput(rounds, evaluations),
        "ranks": lambda: ranks(rank_rounds, rank_chains, evaluations),
        "cost": lambda: cost(shortest, growth, folder),
    }
    for part in parts:
        figures[part] = measures[part]()
        (folder / "ais.json").write_text(json.dumps(figures, indent=1))
    return figures


# Annealing beside the sampler.


def throughput(rounds: int, evaluations: int) -> dict[str, Row]:
    rows = {name: beside_the_sampler(name, case, rounds, evaluations) for name, case in CASES.items()}
    print("\n| | chains at once | annealing, chain-steps/s | sampler, chain-steps/s | ratio [quartiles] | pilot, s |")
    print("|---|---|---|---|---|---|")
    for name, r in rows.items():
        print(
            f"| {name} | {r['chains']} | {r['annealing']:.0f} | {r['sampler']:.0f} "
            f"| {r['ratio'][1]:.3f} [{r['ratio'][0]:.3f}, {r['ratio'][2]:.3f}] | {r['pilot']:.2f} |"
        )
    return rows


def beside_the_sampler(name: str, case: Case, rounds: int, evaluations: int) -> Row:
    energy = untrained(case.make, case.shape)
    pilot, plan = timed(lambda: path(energy, case.kernel, evaluations // case.kernel.leapfrogs))
    kernel = replace(case.kernel, steps=len(plan.steps), step_size=float(plan.steps[-1].mean()))
    start = energy.support.sample(case.chains, generator=make_generator(0, "start"))

    def annealing() -> None:
        with case.compute.applied(energy, CPU):
            islands(energy, kernel, plan, [case.chains])

    def sampler() -> None:
        generator = make_generator(0, "chains")
        kernel(energy, start, support=energy.support, generator=generator, compute=case.compute)

    seconds = take_turns({"annealing": annealing, "sampler": sampler}, rounds, name)
    steps = case.chains * (1 + kernel.steps * kernel.leapfrogs)
    speeds = {k: steps / statistics.median(v) for k, v in seconds.items()}
    return {
        **speeds,
        "ratio": quartiles([s / a for a, s in zip(*seconds.values(), strict=True)]),
        "chains": case.chains,
        "pilot": pilot,
    }


def untrained(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> JointEnergy:
    torch.manual_seed(0)
    return JointEnergy(make(), Box(-1, 1, shape))


def path(energy: JointEnergy, kernel: HMC, temperatures: int) -> Plan:
    return make_plan(energy, energy.support, Reference(energy.support), kernel, temperatures, "adaptive", 0, CPU)


def islands(energy: JointEnergy, kernel: HMC, plan: Plan, sizes: list[int]) -> None:
    numbered = dict(enumerate(sizes))
    run_islands(energy, energy.support, Reference(energy.support), kernel, plan, numbered, 0, CPU, True)


# One process beside two.


def ranks(rounds: int, chains: int, temperatures: int) -> Row:
    """Seconds of ``AISLogZ`` with ``chains`` on one process, and with twice as many on two, in islands of one size."""
    jobs = {str(n): functools.partial(on_processes, n, chains, temperatures) for n in (1, 2)}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in tqdm(range(rounds), "one process and two"):
        for name in list(jobs) if turn % 2 else reversed(jobs):
            seconds[name].append(jobs[name]())
    efficiency = quartiles([one / two for one, two in zip(*seconds.values(), strict=True)])
    one, two = (statistics.median(s) for s in seconds.values())
    print("\n| chains, one process and two | one, s | two, s | weak-scaling efficiency [quartiles] |")
    print("|---|---|---|---|")
    print(
        f"| {chains} and {2 * chains} | {one:.2f} | {two:.2f} "
        f"| {efficiency[1]:.3f} [{efficiency[0]:.3f}, {efficiency[2]:.3f}] |"
    )
    return {"efficiency": efficiency, "seconds": seconds, "chains_per_process": chains, "temperatures": temperatures}


def on_processes(processes: int, chains: int, temperatures: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        numbers = [str(n) for n in (processes, chains, temperatures)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "rank", *numbers, folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"The run on {processes} processes ended with {done.returncode}:\n{done.stderr}")
        return float((Path(folder) / "seconds").read_text())


class Timed(AISLogZ):
    """Notes the wall time from when all ranks are there to when all have the estimate."""

    seconds = math.nan

    def estimate(self, trainer: L.Trainer, module: ConditionalEBM) -> LogZ:
        asked, self.temperatures = self.temperatures, 2
        super().estimate(trainer, module)  # warms up
        self.temperatures = asked
        trainer.strategy.barrier()
        self.seconds, result = timed(lambda: super(Timed, self).estimate(trainer, module))
        return result


def rank(processes: int, chains: int, temperatures: int, folder: Path) -> None:
    """What a user has in a script: a trainer, a module and the callback."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    callback = Timed(
        temperatures=temperatures, chains=processes * chains, chunk_size=math.ceil(chains / 10), directory=folder
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        logger=False,
        callbacks=[callback],
        enable_progress_bar=False,
        default_root_dir=folder,
    )
    images = TensorDataset(DIGITS.sample(8, generator=make_generator(0, "images")), torch.arange(8))
    trainer.test(ConditionalEBM(digits_net(), 10, DIGITS), DataLoader(images, 4), verbose=False)
    if trainer.is_global_zero:
        (folder / "seconds").write_text(str(callback.seconds))


# Cost along chains and temperatures.


def cost(shortest: int, growth: tuple[int, ...], folder: Path) -> dict[str, Row]:
    energy = untrained(digits_net, (1, 8, 8))
    islands(energy, GHMC(), path(energy, GHMC(), 10), [100])  # warms up
    rows: dict[str, Row] = {}
    for name, (points, chunk_size) in series(shortest, growth).items():
        runs = [seconds_of(energy, n, t, chunk_size) for n, t in tqdm(points, name)]
        work = [float(n * t) for n, t in points]
        per_step = [1e6 * s / w for (_, s), w in zip(runs, work, strict=True)]
        rows[name] = {
            "points": points,
            "chain_steps": work,
            "seconds": [s for _, s in runs],
            "pilot_seconds": [p for p, _ in runs],
            "slope": slope(work, [s for _, s in runs]),
            "microseconds": per_step,
        }
    print("\n| | chains x temperatures | slope | microseconds a chain-step, shortest run to longest | pilot, s |")
    print("|---|---|---|---|---|")
    for name, r in rows.items():
        costs = ", ".join(f"{c:.1f}" for c in r["microseconds"])
        print(
            f"| {name} | {r['chain_steps'][0]:.3g} to {r['chain_steps'][-1]:.3g} | {r['slope']:.3f} | {costs} "
            f"| {statistics.median(r['pilot_seconds']):.2f} |"
        )
    draw(rows, folder / "ais_cost.png")
    return rows


def series(shortest: int, growth: tuple[int, ...]) -> dict[str, tuple[list[tuple[int, int]], int | None]]:
    """(chains, temperatures) of each run, and the most chains that are evaluated together."""
    few, chunk_size, many = shortest // 4, shortest // 40, shortest // 20
    return {
        f"{few} chains, more temperatures": ([(few, 4 * g) for g in growth], chunk_size),
        f"4 temperatures, more chains, {chunk_size} at a time": ([(few * g, 4) for g in growth], chunk_size),
        f"{many} temperatures, more chains, a tenth at a time": ([(20 * g, many) for g in growth], None),
    }


def seconds_of(energy: JointEnergy, chains: int, temperatures: int, chunk_size: int | None) -> tuple[float, float]:
    """Of the pilot and of the annealing, which is the median of three where it is short."""
    pilot, plan = timed(lambda: path(energy, GHMC(), temperatures))
    job = functools.partial(islands, energy, GHMC(), plan, island_sizes(chains, chunk_size))
    seconds = [timed(job)[0]]
    seconds += [timed(job)[0] for _ in range(2) if seconds[0] < 2]
    return pilot, statistics.median(seconds)


def slope(x: list[float], y: list[float]) -> float:
    """Of the line through the logarithms: 1 is linear."""
    return statistics.linear_regression([math.log(v) for v in x], [math.log(v) for v in y]).slope


def draw(rows: dict[str, Row], to: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for (name, r), marker in zip(rows.items(), "os^", strict=True):
        axes.loglog(r["chain_steps"], r["seconds"], marker, fillstyle="none", label=f"{name}: slope {r['slope']:.3f}")
    first = next(iter(rows.values()))
    per_step = statistics.median(first["microseconds"])
    line = [first["chain_steps"][0], first["chain_steps"][-1]]
    label = f"slope 1: {per_step:.0f} µs a chain-step"
    axes.loglog(line, [1e-6 * per_step * w for w in line], color="black", linewidth=0.8, label=label)
    axes.axhline(statistics.median(first["pilot_seconds"]), color="grey", linestyle=":", label="the pilot, once a run")
    axes.set(xlabel="chains x temperatures", ylabel="seconds", title="Annealing the network of digits.py, one thread")
    axes.legend(fontsize=7)
    figure.savefig(to, dpi=120)


# Clocks.


def timed(job: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = job()
    return time.perf_counter() - start, result


def take_turns(jobs: dict[str, Callable[[], None]], rounds: int, name: str) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {job: [] for job in jobs}
    order = random.Random(0)
    for turn in tqdm(range(rounds + 1), name):
        for job in order.sample(list(jobs), len(jobs)):
            spent = timed(jobs[job])[0]
            if turn:  # the first warms up
                seconds[job].append(spent)
    return seconds


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        rank(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    else:
        auto_cli(main, as_positional=False)
