"""Densities of 8x8 digits after the same seconds of one thread: this library, ebmkit and torchebm.

``python recipes/benchmarks/density.py`` trains the same network on the same images with each of five settings per
library, and chooses by the bits per dimension of validation images. The chosen models are judged on test images by one
annealing at two lengths: a density is known only if its bits do not move when annealing gets longer. ``pip install
ebmkit==0.16.0 torchebm==0.8.9`` first; a library that is not installed is left out. Results are in ``--output``:
density.md, density.json, density.png.
"""

import functools
import importlib
import importlib.util
import itertools
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from contenders import torchebm_model
from jsonargparse import auto_cli
from torch import Tensor, nn
from tqdm import tqdm

from ebm_lightning import JEM, MALA, Adaptation, Box, JointEnergy, LogZ, Quantiles, ReplayBuffer, ais
from ebm_lightning.data import Digits
from ebm_lightning.evaluation.optional import import_optional
from ebm_lightning.networks import MLP
from ebm_lightning.supports import Support

D = 64
BATCH, CHAINS, MCMC_STEPS = 128, 4000, 10
BOX = Box(-1, 1, (D,))
Energy = Callable[[Tensor], Tensor]


class Model(NamedTuple):
    """A trained model: E(x) of images and p(y|x), and the energy that is annealed, with its support."""

    energy: Energy
    logits: Energy
    annealed: Energy
    support: Support


def network() -> MLP:
    return MLP(D, 10, (256, 256))


def batches(data: Digits, seconds: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Dequantized training batches, for that many seconds of this process, which has one thread."""
    end, loader = time.process_time() + seconds, data.train_dataloader()
    for _ in itertools.count():
        for x, y in loader:
            if time.process_time() > end:
                return
            yield x.flatten(1), y


def ours(data: Digits, seconds: float, learning_rate: float, conditional_weight: float) -> Model:
    """A JEM at temperature 1 in the quantiles of each pixel, which are fitted within the time."""
    coordinates = Quantiles(BOX, Digits.num_levels)
    model = JEM(
        network(), 10, None, MALA(0.1, MCMC_STEPS), ReplayBuffer(CHAINS, 0.02), coordinates=coordinates, energy_l2=0.0,
        conditional_weight=conditional_weight, adaptation=Adaptation(),
        optimizer=functools.partial(torch.optim.AdamW, lr=learning_rate, weight_decay=0.3),
    )  # fmt: skip
    started = time.process_time()
    x = torch.cat([x for x, _ in data.train_dataloader()]).flatten(1)
    coordinates.fit(x)
    model.start_chains()
    optimizer = model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)
    average = _average(model.classifier)
    for x, y in batches(data, seconds - (time.process_time() - started)):
        loss, _ = model.compute_loss(x, y)
        _update(loss, optimizer, model.classifier, average)
    model.classifier.load_state_dict(average.module.state_dict())
    model.eval()
    return Model(model.energy, model, model.chain_energy, model.support)


def ebmkit(data: Digits, seconds: float, step_size: float, energy_reg: float) -> Model:
    """Its JEMLoss at temperature 1, in [-1, 1]."""
    ebm = importlib.import_module("ebm")
    net = network()
    energy = ebm.ClassifierEnergy(net)
    buffer = ebm.ReplayBuffer(CHAINS, (D,), 0.02, init_fn=lambda shape: torch.rand(shape) * 2 - 1)
    sampler = ebm.LangevinDynamics(step_size, MCMC_STEPS, clamp=(-1.0, 1.0))
    loss_of = ebm.JEMLoss(ebm.ContrastiveDivergence(sampler, buffer, energy_reg=energy_reg))
    return _trained(net, lambda x, y: loss_of(energy, x, y).loss, data, seconds)


def torchebm(data: Digits, seconds: float, step_size: float, energy_reg: float) -> Model:
    """Its persistent contrastive divergence with cross-entropy, at temperature 1."""
    losses, samplers = importlib.import_module("torchebm.losses"), importlib.import_module("torchebm.samplers")
    net = network()
    model = torchebm_model(net)
    divergence = losses.ContrastiveDivergence(
        model=model, sampler=samplers.LangevinDynamics(model, step_size=step_size, noise_scale=1.0), init_steps=0,
        k_steps=MCMC_STEPS, persistent=True, buffer_size=CHAINS, new_sample_ratio=0.02, energy_reg_weight=energy_reg,
    )  # fmt: skip
    return _trained(net, lambda x, y: divergence(x)[0] + F.cross_entropy(net(x), y), data, seconds)


def _trained(net: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor], data: Digits, seconds: float) -> Model:
    optimizer, average = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.3), _average(net)
    for x, y in batches(data, seconds):
        _update(loss_of(x, y), optimizer, net, average)
    energy = JointEnergy(average.module.eval(), BOX)
    return Model(energy, average.module, energy, BOX)


def _average(net: nn.Module) -> torch.optim.swa_utils.AveragedModel:
    return torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))


def _update(
    loss: Tensor, optimizer: torch.optim.Optimizer, net: nn.Module, average: torch.optim.swa_utils.AveragedModel
) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    average.update_parameters(net)


SETTINGS: dict[str, tuple[Callable[..., Model], list[dict[str, float]]]] = {
    "ebm_lightning": (
        ours,
        [
            {"learning_rate": rate, "conditional_weight": weight}
            for rate, weight in ((1e-3, 1.0), (5e-4, 1.0), (2e-3, 1.0), (1e-3, 3.0), (5e-4, 3.0))
        ],
    ),
    "ebmkit": (
        ebmkit,
        [
            {"step_size": step, "energy_reg": reg}
            for step, reg in ((1e-3, 0.01), (3e-3, 0.01), (3e-4, 0.01), (1e-3, 0.001), (1e-3, 0.1))
        ],
    ),
    "torchebm": (
        torchebm,
        [
            {"step_size": step, "energy_reg": reg}
            for step, reg in ((1e-3, 0.01), (3e-3, 0.01), (3e-4, 0.01), (1e-3, 0.001), (1e-3, 0.1))
        ],
    ),
}
PACKAGES = {"ebm_lightning": "ebm_lightning", "ebmkit": "ebm", "torchebm": "torchebm"}


def judged(model: Model, x: Tensor, y: Tensor, temperatures: int, num_chains: int) -> dict[str, Any]:
    """Bits per dimension and accuracy of images, by one annealing."""
    estimate: LogZ = ais(model.annealed, model.support, temperatures=temperatures, num_chains=num_chains, seed=0)
    with torch.no_grad():
        nats = -model.energy(x).double() - estimate.log_z
        accuracy = (model.logits(x).argmax(1) == y).double().mean()
    width = math.log2(2 / Digits.num_levels)  # of a gray level
    return {
        "bits": float(-nats.mean()) / D / math.log(2) - width,
        "log_z": estimate.log_z,
        "std_err": estimate.std_err,
        "reliable": bool(estimate.reliable),
        "accuracy": float(accuracy),
    }


def main(
    output: Path = Path("runs/density"),
    seconds: tuple[float, ...] = (10.0, 20.0, 40.0),
    temperatures: int = 400,
    num_chains: int = 500,
    longer: int = 10,
    settings: int = 5,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Train, choose on validation images, and judge on test images.

    Args:
        output: Folder for the results.
        seconds: Times of training, on one thread. Settings are chosen at the last of them.
        temperatures: Temperatures of the shorter annealing.
        num_chains: Its chains.
        longer: How many times longer the other annealing is.
        settings: How many settings of each library are tried.
        seed: Seed of weights, chains and the order of the data.
    """
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    data = Digits(BATCH)
    data.setup()
    (x_val, y_val), (x, y) = (
        (torch.cat([x for x, _ in loader]).flatten(1), torch.cat([y for _, y in loader]))
        for loader in (data.val_dataloader(), data.test_dataloader())
    )
    rows = []
    for name, (train, grid) in SETTINGS.items():
        if importlib.util.find_spec(PACKAGES[name]) is None:
            print(f"{name} is not installed: left out")
            continue

        def run(options: dict[str, float], budget: float, train: Callable[..., Model] = train) -> Model:
            L.seed_everything(seed, verbose=False)
            return train(data, budget, **options)

        tried = []
        for options in tqdm(grid[:settings], f"{name}: settings", file=sys.stderr):
            found = judged(run(options, seconds[-1]), x_val, y_val, temperatures, num_chains)
            tried.append((found["bits"] if math.isfinite(found["bits"]) else math.inf, options))
        chosen = min(tried, key=lambda pair: pair[0])[1]
        for budget in tqdm(seconds, f"{name}: times", file=sys.stderr):
            model = run(chosen, budget)
            short = judged(model, x, y, temperatures, num_chains)
            long = judged(model, x, y, longer * temperatures, num_chains)
            rows.append({"name": name, "settings": chosen, "seconds": budget, "short": short, "long": long})
    report(rows, output)
    return rows


def report(rows: list[dict[str, Any]], output: Path) -> None:
    """Write the table, the numbers and the picture."""
    lines = [
        "| library, chosen settings | seconds | accuracy | bits/dim | with the longer annealing | log Z reliable |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        options = ", ".join(f"{name} {value:g}" for name, value in row["settings"].items())
        short, long = row["short"], row["long"]
        reliable = " / ".join("yes" if part["reliable"] else "no" for part in (short, long))
        lines.append(
            f"| {row['name']} ({options}) | {row['seconds']:g} | {short['accuracy']:.3f} | {short['bits']:.3f} | "
            f"{long['bits']:.3f} | {reliable} |"
        )
    (output / "density.md").write_text("\n".join(lines) + "\n")
    (output / "density.json").write_text(json.dumps(rows, indent=2))
    print("\n".join(lines))
    plt = import_optional("matplotlib.pyplot", "the picture", "install matplotlib")
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        times = [row["seconds"] for row in mine]
        (line,) = axes.plot(times, [row["long"]["bits"] for row in mine], "o-", label=name)
        axes.plot(times, [row["short"]["bits"] for row in mine], "o--", color=line.get_color(), alpha=0.5)
    axes.set(xlabel="seconds of one thread", ylabel="bits per dimension of test images", xscale="log")
    times = sorted({row["seconds"] for row in rows})
    axes.set_xticks(times, [f"{seconds:g}" for seconds in times])
    axes.minorticks_off()
    axes.legend(title="dashed: the shorter annealing")
    figure.savefig(output / "density.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
