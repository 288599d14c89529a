"""Measure what PYLD and informative initialization gain per gradient evaluation, on scikit-learn's digits.

``OMP_NUM_THREADS=1 python recipes/benchmarks/gradients.py``. JEM++ makes chains cheaper in two ways: most steps of PYLD
backpropagate only through the first block, and chains start from class Gaussians instead of noise. This benchmark
compares both with SGLD, and with SGLD at the longer step to which PYLD reduces for a linear first layer. Every run has
the same number of optimizer steps and K sampler steps for each of them. Temperature is 1, so bits per dimension are
those of the density that the chains target. Quality is measured on validation images. The script prints a Markdown
table, plots it, and resumes where it stopped when it is started again.
"""

import dataclasses
import functools
import itertools
import json
import logging
import statistics
import warnings
from pathlib import Path

import lightning as L
import torch
from common import by_clock, interleave, timed, write_json
from gradients_report import (
    CONTENDERS,
    INNER,
    LONG,
    Row,
    by_contender,
    inner_passes,
    plot_quality,
    print_summary,
)
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ebm_lightning import JEM, PYLD, SGLD, AISLogZ, ClassGaussians, JointEnergy, OODDetection, ReplayBuffer, Sampler
from ebm_lightning.data import Digits
from ebm_lightning.evaluation.ood_sets import OOD_SETS
from ebm_lightning.networks import ConvNet
from ebm_lightning.samplers.memory import keep_freed_memory

SHOWN = ("bits", "bits_std_err", "reliable", "auroc", "accuracy", "seconds")


@dataclasses.dataclass(frozen=True)
class Setting:
    """Settings that all runs have in common.

    Attributes:
        max_steps: Optimizer steps, the length of the one-cycle schedule.
        width: Channels of the network's first layer.
        batch_size: Images per batch; each training step also moves this many chains.
        learning_rate: Maximum learning rate of Adam's schedule.
        step_size: Step size of SGLD and of PYLD's inner steps, in squared units of x per unit of energy. The noise
            follows from it.
        energy_l2: Weight of the squared energies.
        buffer_size: Number of persistent chains.
        reinit_prob: Probability that a chain is reinitialized.
        ais_temperatures: Temperatures of the annealing that estimates log Z.
        ais_num_chains: Chains of the annealing.
    """

    max_steps: int = 400
    width: int = 8
    batch_size: int = 64
    learning_rate: float = 1e-3
    step_size: float = 1e-3
    energy_l2: float = 0.01
    buffer_size: int = 500
    reinit_prob: float = 0.05
    ais_temperatures: int = 200
    ais_num_chains: int = 300


def main(
    contenders: tuple[str, ...] = CONTENDERS,
    sampler_steps: tuple[int, ...] = (1, 2, 5, 10, 20),
    seeds: tuple[int, ...] = (0, 1, 2),
    setting: Setting = Setting(),
    output: Path = Path("runs/gradients"),
) -> list[Row]:
    """Do the runs that the folder does not contain yet, print the table and plot it.

    Args:
        contenders: Kernels and initial distributions, by name.
        sampler_steps: Values of K, the sampler's steps per optimizer step. SGLD evaluates one gradient per step.
        seeds: Seeds of the weights, the data order and the chains.
        setting: Settings that all runs have in common.
        output: Folder for gradients.json, gradients.png and the models. Runs that it already contains are not
            repeated; the table and the figure show all of them.

    Raises:
        ValueError: A contender is unknown, or the folder contains runs with another setting.
    """
    if unknown := set(contenders) - set(CONTENDERS):
        raise ValueError(f"'contenders' should be among {', '.join(CONTENDERS)}, got {', '.join(unknown)}.")
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|val_dataloader|trainer.fit|unreliable).*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    keep_freed_memory()
    output.mkdir(parents=True, exist_ok=True)
    file = output / "gradients.json"
    runs = load_runs(file, setting)
    jobs = [job for job in itertools.product(seeds, sampler_steps, contenders) if job not in runs]
    cost = first_block_cost(setting)
    for seed, k, name in tqdm(jobs, "runs"):
        row = {"seed": seed, "sampler_steps": k, "contender": name, **run(name, k, seed, setting, output)}
        runs[seed, k, name] = row
        results = {"setting": dataclasses.asdict(setting), "first_block_cost": cost, "runs": list(runs.values())}
        write_json(file, results)
        tqdm.write(f"{name:44}K {k:<4d}seed {seed}" + "".join(f"  {n} {row[n]:.4g}" for n in SHOWN))
    groups = by_contender(runs.values())
    print_summary(groups, cost)
    plot_quality(groups, setting.max_steps, cost).savefig(output / "gradients.png", dpi=110)
    return list(runs.values())


def load_runs(file: Path, setting: Setting) -> dict[tuple[int, int, str], Row]:
    """The runs that ``file`` contains, by seed, K and contender.

    Raises:
        ValueError: They have another setting.
    """
    if not file.exists():
        return {}
    results = json.loads(file.read_text())
    if results["setting"] != dataclasses.asdict(setting):
        raise ValueError(f"'output' should hold runs of this setting, got {results['setting']}. Name another folder.")
    return {(r["seed"], r["sampler_steps"], r["contender"]): r for r in results["runs"]}


def sampler(kernel: str, steps: int, step_size: float) -> Sampler:
    """The kernel at temperature 1, without clamps."""
    pyld = PYLD(step_size, None, steps, INNER, temperature=1.0, max_gradient=None, boundary="reflect", first="0")
    return {"SGLD": SGLD.langevin(step_size, steps=steps), LONG: pyld.as_sgld, "PYLD": pyld}[kernel]


def network(width: int) -> nn.Sequential:
    """A ConvNet in two blocks. The first block is nonlinear: a convolution and its SiLU."""
    layers = ConvNet(Digits.support.shape, Digits.num_classes, width).layers
    return nn.Sequential(layers[:2], layers[2:])


def run(contender: str, steps: int, seed: int, setting: Setting, output: Path) -> Row:
    """Train a model and evaluate its averaged weights on validation images."""
    L.seed_everything(seed, verbose=False)
    data = Digits(setting.batch_size)
    kernel, initial = contender.split(" from ")
    module = JEM(
        network(setting.width),
        data.num_classes,
        data.support,
        sampler(kernel, steps, setting.step_size),
        ReplayBuffer(setting.buffer_size, setting.reinit_prob, None if initial == "noise" else ClassGaussians()),
        energy_l2=setting.energy_l2,
        optimizer=functools.partial(torch.optim.Adam, lr=setting.learning_rate),
        lr_scheduler=functools.partial(
            torch.optim.lr_scheduler.OneCycleLR,
            max_lr=setting.learning_rate,
            total_steps=setting.max_steps,
            pct_start=0.05,
        ),
    )
    folder = output / f"{contender.replace(' ', '-')}-{steps}-{seed}"
    ais = AISLogZ(0, setting.ais_temperatures, setting.ais_num_chains, num_levels=data.num_levels, directory=folder)
    trainer = L.Trainer(
        max_steps=setting.max_steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[EMAWeightAveraging(decay=0.99), OODDetection(stages=("val",)), ais],
        gradient_clip_val=1.0,
        check_val_every_n_epoch=setting.max_steps,  # no validation during training
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    duration, _ = timed(lambda: trainer.fit(module, data))
    trainer.save_checkpoint(folder / "model.ckpt")
    (metrics,) = trainer.validate(module, data, verbose=False)
    return {
        "bits": metrics["ais/bits_per_dim"],
        "bits_std_err": metrics["ais/bits_per_dim_std_err"],
        "reliable": metrics["ais/reliable"],
        "auroc": statistics.mean(metrics[f"ood/{name}/auroc"] for name in OOD_SETS),
        "accuracy": metrics["val/accuracy"],
        "seconds": duration.cpu,
        "metrics": dict(metrics),
    }


def first_block_cost(setting: Setting, rounds: int = 15) -> dict[str, float]:
    """Cost of a pass through the first block relative to a pass through the network, in FLOPs and in CPU time."""
    torch.manual_seed(0)
    box, steps = Digits.support, 20
    net, x = network(setting.width), box.sample(setting.batch_size)
    energy = JointEnergy(net, box)
    jobs = {
        kernel: functools.partial(sampler(kernel, steps, setting.step_size), energy, x, support=box)
        for kernel in ("SGLD", "PYLD")
    }

    def flops(module: nn.Module) -> float:
        """FLOPs of the forward pass; the gradient in x doubles them in every layer."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(x)
        return counter.get_total_flops()

    seconds = by_clock(interleave(jobs, rounds), "cpu")
    extra = [pyld / sgld - 1 for pyld, sgld in zip(seconds["PYLD"], seconds["SGLD"], strict=True)]
    return {"flops": flops(net[0]) / flops(net), "time": statistics.median(extra) * steps / inner_passes(steps)}


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
