"""What a gradient evaluation of the chains buys: ``OMP_NUM_THREADS=1 python recipes/benchmarks/gradients.py``.

JEM++ makes chains cheaper in two ways: PYLD goes back through the first block alone for most of its steps, and chains
start at a Gaussian for each class in place of noise. Here both are held against SGLD, and against SGLD with the longer
step that PYLD amounts to, on scikit-learn's digits: equal optimiser steps, K steps of the sampler for each, at
temperature 1, where bits per dimension are those of the density that chains aim at. Quality is that on validation
images. Prints a Markdown table, draws it, and goes on where it stopped if it is started again.
"""

import dataclasses
import functools
import itertools
import json
import logging
import math
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import EMAWeightAveraging
from matplotlib.figure import Figure
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ebm_lightning import JEM, PYLD, SGLD, AISLogZ, ClassGaussians, JointEnergy, OODDetection, ReplayBuffer, Sampler
from ebm_lightning.data import Digits
from ebm_lightning.memory import keep_freed_memory
from ebm_lightning.networks import ConvNet
from ebm_lightning.ood import OOD_SETS

INNER = 5  # PYLD's steps for each pass through the network, JEM++'s number
UNIFORM = math.log2(Digits.num_levels)  # bits per dimension of uniform noise
LONG = f"SGLD of {INNER} times the step"
KERNELS = ("SGLD", LONG, "PYLD")
COLOURS = dict(zip(KERNELS, ("tab:blue", "tab:green", "tab:orange"), strict=True))
CONTENDERS = tuple(f"{kernel} from {start}" for start in ("noise", "class Gaussians") for kernel in KERNELS)
SHOWN = ("bits", "bits_std_err", "reliable", "auroc", "accuracy", "seconds")
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all runs share.

    Attributes:
        iterations: Optimiser steps, the length of the one-cycle schedule.
        width: Channels of the network's first layer.
        batch_size: Images in a batch, and chains moved in a step.
        learning_rate: Peak of Adam's schedule.
        step_size: Of SGLD and of PYLD's inner steps, in squared units of x per unit of energy; the noise follows.
        energy_l2: Weight of the squared energies.
        buffer_size: Persistent chains.
        reinit_prob: Probability that a chain starts anew.
        ais_temperatures: Steps of the annealing.
        ais_chains: Its chains.
    """

    iterations: int = 400
    width: int = 8
    batch_size: int = 64
    learning_rate: float = 1e-3
    step_size: float = 1e-3
    energy_l2: float = 0.01
    buffer_size: int = 500
    reinit_prob: float = 0.05
    ais_temperatures: int = 200
    ais_chains: int = 300


def main(
    contenders: tuple[str, ...] = CONTENDERS,
    steps: tuple[int, ...] = (1, 2, 5, 10, 20),
    seeds: tuple[int, ...] = (0, 1, 2),
    setting: Setting = Setting(),
    output: Path = Path("runs/gradients"),
) -> list[Row]:
    """Train and measure what is not in the folder yet, print the table and draw it.

    Args:
        contenders: Kernels, and where chains start.
        steps: Of the sampler for each optimiser step: for SGLD, its gradient evaluations.
        seeds: Of weights, data order and chains.
        setting: What all runs share.
        output: Folder of gradients.json, with all figures, gradients.png and the models; a run that it holds is not
            run again, and all that it holds is printed and drawn.

    Raises:
        ValueError: A contender is unknown, or the folder holds runs of another setting.
    """
    if unknown := set(contenders) - set(CONTENDERS):
        raise ValueError(f"'contenders' should be among {', '.join(CONTENDERS)}, got {', '.join(unknown)}.")
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|val_dataloader|trainer.fit|unreliable).*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    keep_freed_memory()
    output.mkdir(parents=True, exist_ok=True)
    file = output / "gradients.json"
    found = known(file, setting)
    jobs = [job for job in itertools.product(seeds, steps, contenders) if job not in found]
    share = shares(setting)
    for seed, k, name in tqdm(jobs, "runs"):
        row = {"seed": seed, "steps": k, "contender": name, **run(name, k, seed, setting, output)}
        found[seed, k, name] = row
        text = {"setting": dataclasses.asdict(setting), "share": share, "runs": list(found.values())}
        file.write_text(json.dumps(text, indent=1))
        tqdm.write(f"{name:44}K {k:<4d}seed {seed}" + "".join(f"  {n} {row[n]:.4g}" for n in SHOWN))
    rows = list(found.values())
    print_table(rows, share)
    picture(rows, setting, share).savefig(output / "gradients.png", dpi=110)
    return rows


def known(file: Path, setting: Setting) -> dict[tuple[int, int, str], Row]:
    """The runs that are there already.

    Raises:
        ValueError: They have another setting.
    """
    if not file.exists():
        return {}
    held = json.loads(file.read_text())
    if held["setting"] != dataclasses.asdict(setting):
        raise ValueError(f"'output' should hold runs of this setting, got {held['setting']}. Name another folder.")
    return {(r["seed"], r["steps"], r["contender"]): r for r in held["runs"]}


def sampler(kernel: str, steps: int, step_size: float) -> Sampler:
    """At temperature 1, without clamps."""
    pyld = PYLD(step_size, None, steps, INNER, temperature=1.0, max_gradient=None, boundary="reflect", first="0")
    return {"SGLD": SGLD.langevin(step_size, steps=steps), LONG: pyld.as_sgld, "PYLD": pyld}[kernel]


def network(width: int) -> nn.Sequential:
    """A ConvNet in two blocks, the first of which bends: a convolution and its SiLU."""
    layers = ConvNet(Digits.support.shape, Digits.num_classes, width).layers
    return nn.Sequential(layers[:2], layers[2:])


def run(contender: str, steps: int, seed: int, setting: Setting, output: Path) -> Row:
    """Train, and measure on validation images with the averaged weights."""
    L.seed_everything(seed, verbose=False)
    data = Digits(setting.batch_size)
    rate, total = setting.learning_rate, setting.iterations
    kernel, start = contender.split(" from ")
    module = JEM(
        network(setting.width),
        data.num_classes,
        data.support,
        sampler(kernel, steps, setting.step_size),
        ReplayBuffer(setting.buffer_size, setting.reinit_prob, None if start == "noise" else ClassGaussians()),
        energy_l2=setting.energy_l2,
        optimizer=functools.partial(torch.optim.Adam, lr=rate),
        lr_scheduler=functools.partial(
            torch.optim.lr_scheduler.OneCycleLR, max_lr=rate, total_steps=total, pct_start=0.05
        ),
    )
    folder = output / f"{contender.replace(' ', '-')}-{steps}-{seed}"
    trainer = L.Trainer(
        max_steps=total,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[
            EMAWeightAveraging(decay=0.99),
            OODDetection(stages=("val",)),
            AISLogZ(0, setting.ais_temperatures, setting.ais_chains, num_levels=data.num_levels, directory=folder),
        ],
        gradient_clip_val=1.0,
        check_val_every_n_epoch=total,  # not while it trains
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    began = time.process_time()
    trainer.fit(module, data)
    seconds = time.process_time() - began
    trainer.save_checkpoint(folder / "model.ckpt")
    (figures,) = trainer.validate(module, data, verbose=False)
    return {
        "bits": figures["ais/bits_per_dim"],
        "bits_std_err": figures["ais/bits_per_dim_std_err"],
        "reliable": figures["ais/reliable"],
        "auroc": statistics.mean(figures[f"ood/{name}/auroc"] for name in OOD_SETS),
        "accuracy": figures["val/accuracy"],
        "seconds": seconds,
        "figures": dict(figures),
    }


def shares(setting: Setting, rounds: int = 15) -> dict[str, float]:
    """What a pass through the first block costs, in passes through the network: in FLOPs and in CPU time."""
    torch.manual_seed(0)
    box, steps = Digits.support, 20
    net, x = network(setting.width), box.sample(setting.batch_size)
    energy = JointEnergy(net, box)
    kernels = [sampler(kernel, steps, setting.step_size) for kernel in ("SGLD", "PYLD")]

    def share(plain: float, inner: float) -> float:
        return (inner / plain - 1) * steps / (steps * (INNER - 1) + 1)  # one more looks whether the first is alone

    def flops(module: nn.Module) -> float:
        """Of the pass forward; the gradient in x costs as much again in each layer."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(x)
        return counter.get_total_flops()

    def seconds(kernel: Sampler) -> float:
        start = time.process_time()
        kernel(energy, x, support=box)
        return time.process_time() - start

    turns = [[seconds(kernel) for kernel in kernels] for _ in range(rounds + 1)][1:]  # the first warms up
    return {"flops": flops(net[0]) / flops(net), "time": statistics.median(share(*t) for t in turns)}


def evaluations(contender: str, steps: int, share: float) -> float:
    """Gradient evaluations of a chain for one optimiser step."""
    inner = steps * (INNER - 1) + 1 if contender.startswith("PYLD") else 0
    return steps + share * inner


def print_table(rows: list[Row], share: dict[str, float]) -> None:
    """Means over the seeds, and their extremes."""
    print("first block's share of a pass:", ", ".join(f"{v:.3f} by {k}" for k, v in share.items()))
    print("| chains | K | gradients, by FLOPs (by time) | CPU s | bits/dim | AUROC | accuracy |\n" + 7 * "|---" + "|")
    for (name, k), same in grouped(rows).items():
        by_flops, by_time = (evaluations(name, k, share[by]) for by in ("flops", "time"))
        cells = [f"{by_flops:.1f}" + (f" ({by_time:.1f})" if by_time > by_flops else "")]
        cells += [f"{statistics.mean(r['seconds'] for r in same):.0f}"]
        cells += [spread([r[what] for r in same]) for what in ("bits", "auroc", "accuracy")]
        print(f"| {name} | {k} | " + " | ".join(cells) + " |")


def grouped(rows: list[Row]) -> dict[tuple[str, int], list[Row]]:
    """The seeds of each contender and K."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for r in sorted(rows, key=lambda r: (CONTENDERS.index(r["contender"]), r["steps"])):
        groups.setdefault((r["contender"], r["steps"]), []).append(r)
    return groups


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def picture(rows: list[Row], setting: Setting, share: dict[str, float]) -> Figure:
    """Quality against gradient evaluations, one line for each contender."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, what in zip(panels, ("bits", "auroc"), strict=True):
        for name in dict.fromkeys(name for name, _ in grouped(rows)):
            same = [seeds for (n, _), seeds in grouped(rows).items() if n == name]
            draw(axes, name, what, same, setting.iterations, share)
        axes.set(xscale="log", xlabel="gradient evaluations of a batch of chains, in all")
        axes.grid(alpha=0.3)
    panels[0].axhline(UNIFORM, color="grey", ls=":", label="uniform noise")
    panels[0].set(ylabel="bits per dimension (hollow: log Z unreliable)", title="Density of digits: lower is better")
    panels[1].set(ylabel="AUROC of log p(x), mean of six sets", title="Foreign images: higher is better")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def draw(axes: Any, name: str, what: str, same: list[list[Row]], iterations: int, share: dict[str, float]) -> None:
    """A point for each K, with bars from the worst seed to the best, and to the right from FLOPs to CPU time."""
    kernel, start = name.split(" from ")
    colour, line, points = COLOURS[kernel], "-" if start == "noise" else "--", []
    for seeds in same:
        values = [r[what] for r in seeds]
        mean, hollow = statistics.mean(values), what == "bits" and not all(r["reliable"] for r in seeds)
        x, late = (iterations * evaluations(name, seeds[0]["steps"], share[by]) for by in ("flops", "time"))
        axes.plot([x, x], [min(values), max(values)], color=colour, lw=3, alpha=0.4)
        axes.plot([x, late], [mean, mean], color=colour, lw=0.8)
        axes.plot(x, mean, "o", color=colour, mfc="white" if hollow else colour, ms=5, zorder=3)
        points.append((x, mean))
    axes.plot(*zip(*points, strict=True), color=colour, ls=line, label=name)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
