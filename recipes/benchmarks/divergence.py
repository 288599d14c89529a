"""Which trainings survive temperature 1: ``python recipes/benchmarks/divergence.py``.

The case that explodes in plain implementations, on scikit-learn's digits: a small SiLU network, Adam at 1e-3, chains
of 40 Langevin steps of 0.005 at temperature 1, whose noise no sharp energy can follow. Three trainers meet it: a plain
loop as people write it, JEM with its defaults, and JEM without its stabiliser under a DivergenceGuard.
"""

import functools
import json
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor, nn

from ebm_lightning import JEM, SGLD, DivergenceGuard, ReplayBuffer
from ebm_lightning.data import Digits

Trainer = Literal["plain loop", "defaults", "guard"]
Precision = Literal["32-true", "bf16-mixed"]
BATCH, CHAINS, REINIT, RATE = 64, 2000, 0.05, 1e-3


def main(
    trainers: tuple[Trainer, ...] = ("plain loop", "defaults", "guard"),
    seeds: tuple[int, ...] = tuple(range(10)),
    iterations: int = 2500,
    width: int = 64,
    precision: Precision = "32-true",
    output: Path = Path("runs/divergence.jsonl"),
) -> None:
    """Train, and print one line for each run.

    Args:
        trainers: Which of them.
        seeds: Of weights, data order and chains.
        iterations: Optimiser steps, the length of the one-cycle schedule.
        width: Channels of the first two layers; the next two have twice as many.
        precision: Of the network's forward and backward passes.
        output: Results are appended here, one JSON object for each run.
    """
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|val_dataloader|trainer.fit).*")
    output.parent.mkdir(parents=True, exist_ok=True)
    print(f"{'trainer':12}{'seed':>6}{'accuracy':>10}{'largest |E|':>13}{'rollbacks':>11}{'seconds':>9}")
    for name in trainers:
        for seed in seeds:
            start = time.time()
            run = plain_loop if name == "plain loop" else functools.partial(lightning_run, guarded=name == "guard")
            accuracy, largest, rollbacks = run(seed, iterations, width, precision)
            seconds = time.time() - start
            print(f"{name:12}{seed:6d}{accuracy:10.4f}{largest:13.4g}{rollbacks:11d}{seconds:9.0f}", flush=True)
            row = {
                "trainer": name,
                "seed": seed,
                "accuracy": accuracy,
                "largest_energy": largest,
                "rollbacks": rollbacks,
                "iterations": iterations,
                "width": width,
                "precision": precision,
                "seconds": seconds,
            }
            with open(output, "a") as file:
                file.write(json.dumps(row) + "\n")


def network(width: int) -> nn.Sequential:
    """Four convolutions with SiLU, the second and fourth halving the image, for 8x8 pixels."""
    layers: list[nn.Module] = []
    for channels, out, stride in ((1, width, 1), (width, width, 2), (width, 2 * width, 1), (2 * width, 2 * width, 2)):
        layers += [nn.Conv2d(channels, out, 3, stride, 1), nn.SiLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * width, 10))


class Largest(L.Callback):
    """Keeps the largest mean energy of either phase, in absolute value."""

    def __init__(self) -> None:
        self.value = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        assert isinstance(pl_module, JEM)
        for energy in pl_module.last_energies or ():
            self.value = max(self.value, abs(float(energy)))


def lightning_run(
    seed: int, iterations: int, width: int, precision: Precision, guarded: bool
) -> tuple[float, float, int]:
    """Test accuracy, largest energy and rollbacks of a run with the library's defaults, or with the guard alone."""
    L.seed_everything(seed, verbose=False)
    data, guard, largest = Digits(BATCH), DivergenceGuard(), Largest()
    without: dict[str, Any] = {"energy_l2": 0.0} if guarded else {}
    module = JEM(
        network(width),
        data.num_classes,
        data.support,
        SGLD.langevin(),
        ReplayBuffer(CHAINS, REINIT),
        optimizer=functools.partial(torch.optim.Adam, lr=RATE),
        lr_scheduler=functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=RATE, total_steps=iterations),
        **without,
    )
    trainer = L.Trainer(
        max_steps=iterations,
        accelerator="cpu",
        devices=1,
        precision=precision,
        logger=False,
        callbacks=[largest, guard] if guarded else [largest],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_val_batches=0,
    )
    trainer.fit(module, data)
    (metrics,) = trainer.test(module, data, verbose=False)
    return metrics["test/accuracy"], largest.value, guard.rollbacks


def plain_loop(seed: int, iterations: int, width: int, precision: Precision) -> tuple[float, float, int]:
    """The usual script: noise and step of their own, nothing that watches."""
    torch.manual_seed(seed)
    data, net, largest, step = Digits(BATCH), network(width), 0.0, 0
    data.setup()

    def logits_of(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits: Tensor = net(x)
        return logits.float()

    loader = torch.utils.data.DataLoader(data.train, BATCH, shuffle=True, drop_last=True, collate_fn=lambda b: b)
    optimizer, buffer = torch.optim.Adam(net.parameters(), RATE), torch.rand(CHAINS, 1, 8, 8) * 2 - 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, iterations)
    while step < iterations:
        for x, y in loader:
            index = torch.randint(CHAINS, (len(x),))
            fresh = torch.rand(len(x), 1, 1, 1) < REINIT
            x_neg = torch.where(fresh, torch.rand_like(x) * 2 - 1, buffer[index])
            for _ in range(40):
                x_neg.requires_grad_()
                (gradient,) = torch.autograd.grad(logits_of(x_neg).logsumexp(1).sum(), x_neg)
                x_neg = (x_neg + 0.005 * gradient + 0.1 * torch.randn_like(x_neg)).clamp(-1, 1).detach()
            buffer[index] = x_neg
            logits = logits_of(x)
            energies = -logits.logsumexp(1).mean(), -logits_of(x_neg).logsumexp(1).mean()
            loss = F.cross_entropy(logits, y) + energies[0] - energies[1]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            largest, step = max(largest, *(abs(float(e)) for e in energies)), step + 1
            if step == iterations:
                break
    with torch.no_grad():
        right = [(logits_of(x).argmax(1) == y).float() for x, y in data.test_dataloader()]
    return float(torch.cat(right).mean()), largest, 0


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
