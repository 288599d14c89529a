"""Test which trainers survive temperature 1: ``python recipes/benchmarks/divergence.py``.

The setting makes plain implementations diverge, on scikit-learn's digits: a small SiLU network, Adam at 1e-3, and
chains of 40 Langevin steps of size 0.005 at temperature 1. The noise of these steps is too large for a sharp energy.
Three trainers run it: a hand-written loop, JEM with its defaults, and JEM without its energy penalty but with a
DivergenceGuard.
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
BATCH_SIZE, BUFFER_SIZE, REINIT_PROB, LEARNING_RATE = 64, 2000, 0.05, 1e-3


def main(
    trainers: tuple[Trainer, ...] = ("plain loop", "defaults", "guard"),
    seeds: tuple[int, ...] = tuple(range(10)),
    max_steps: int = 2500,
    width: int = 64,
    precision: Precision = "32-true",
    output: Path = Path("runs/divergence.jsonl"),
) -> None:
    """Train with every trainer and seed, and print one line per run.

    Args:
        trainers: Trainers to run.
        seeds: Seeds of the weights, the data order and the chains.
        max_steps: Optimizer steps, the length of the one-cycle schedule.
        width: Channels of the first two layers; the next two have twice as many.
        precision: Precision of the network's forward and backward passes.
        output: File to which results are appended, one JSON object per run.
    """
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|val_dataloader|trainer.fit).*")
    output.parent.mkdir(parents=True, exist_ok=True)
    print(f"{'trainer':12}{'seed':>6}{'accuracy':>10}{'max |E|':>13}{'rollbacks':>11}{'seconds':>9}")
    for name in trainers:
        for seed in seeds:
            start = time.time()
            run = plain_loop if name == "plain loop" else functools.partial(lightning_run, guarded=name == "guard")
            accuracy, max_energy, rollbacks = run(seed, max_steps, width, precision)
            seconds = time.time() - start
            print(f"{name:12}{seed:6d}{accuracy:10.4f}{max_energy:13.4g}{rollbacks:11d}{seconds:9.0f}", flush=True)
            row = {
                "trainer": name,
                "seed": seed,
                "accuracy": accuracy,
                "max_energy": max_energy,
                "rollbacks": rollbacks,
                "max_steps": max_steps,
                "width": width,
                "precision": precision,
                "seconds": seconds,
            }
            with open(output, "a") as file:
                file.write(json.dumps(row) + "\n")


def network(width: int) -> nn.Sequential:
    """Four convolutions with SiLU for 8x8 images. The second and the fourth halve the resolution."""
    layers: list[nn.Module] = []
    for channels, out, stride in ((1, width, 1), (width, width, 2), (width, 2 * width, 1), (2 * width, 2 * width, 2)):
        layers += [nn.Conv2d(channels, out, 3, stride, 1), nn.SiLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * width, 10))


class MaxEnergy(L.Callback):
    """Records the largest absolute mean energy of data and negatives."""

    def __init__(self) -> None:
        self.value = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        assert isinstance(pl_module, JEM)
        if (step := pl_module.chain_step) is not None:
            energies = (step.energy_pos, step.energy_neg)
            self.value = max([self.value, *(abs(float(e)) for e in energies if e is not None)])


def lightning_run(
    seed: int, max_steps: int, width: int, precision: Precision, guarded: bool
) -> tuple[float, float, int]:
    """Test accuracy, maximum energy and rollbacks of a run with the defaults, or with only the guard."""
    L.seed_everything(seed, verbose=False)
    data, guard, max_energy = Digits(BATCH_SIZE), DivergenceGuard(), MaxEnergy()
    no_penalty: dict[str, Any] = {"energy_l2": 0.0} if guarded else {}
    module = JEM(
        network(width),
        data.num_classes,
        data.support,
        SGLD.langevin(),
        ReplayBuffer(BUFFER_SIZE, REINIT_PROB),
        optimizer=functools.partial(torch.optim.Adam, lr=LEARNING_RATE),
        lr_scheduler=functools.partial(
            torch.optim.lr_scheduler.OneCycleLR, max_lr=LEARNING_RATE, total_steps=max_steps
        ),
        **no_penalty,
    )
    trainer = L.Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        devices=1,
        precision=precision,
        logger=False,
        callbacks=[max_energy, guard] if guarded else [max_energy],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_val_batches=0,
    )
    trainer.fit(module, data)
    (metrics,) = trainer.test(module, data, verbose=False)
    return metrics["test/accuracy"], max_energy.value, guard.rollbacks


def plain_loop(seed: int, max_steps: int, width: int, precision: Precision) -> tuple[float, float, int]:
    """Test accuracy, maximum energy and 0 rollbacks of a hand-written training loop without safeguards."""
    torch.manual_seed(seed)
    data, net, max_energy, step = Digits(BATCH_SIZE), network(width), 0.0, 0
    data.setup()

    def logits_of(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits: Tensor = net(x)
        return logits.float()

    loader = torch.utils.data.DataLoader(data.train, BATCH_SIZE, shuffle=True, drop_last=True, collate_fn=lambda b: b)
    optimizer, buffer = torch.optim.Adam(net.parameters(), LEARNING_RATE), torch.rand(BUFFER_SIZE, 1, 8, 8) * 2 - 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, max_steps)
    while step < max_steps:
        for x, y in loader:
            index = torch.randint(BUFFER_SIZE, (len(x),))
            fresh = torch.rand(len(x), 1, 1, 1) < REINIT_PROB
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
            max_energy, step = max(max_energy, *(abs(float(e)) for e in energies)), step + 1
            if step == max_steps:
                break
    with torch.no_grad():
        correct = [(logits_of(x).argmax(1) == y).float() for x, y in data.test_dataloader()]
    return float(torch.cat(correct).mean()), max_energy, 0


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
