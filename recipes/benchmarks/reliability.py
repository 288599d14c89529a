"""What survives: this library beside a plain loop as people write it, on scikit-learn's digits.

Both train the same small joint energy model and are killed, run on two ranks, and harmed in the same ways; a table says
what was left: ``python recipes/benchmarks/reliability.py``.
"""

import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from ebm_lightning import JEM, SGLD, ReplayBuffer
from ebm_lightning.data import Digits
from ebm_lightning.modules.checkpoint_io import is_whole, newest_whole
from ebm_lightning.networks import MLP

STEPS, EVERY, HARMED, CHAINS = 40, 4, 23, 200  # steps; between checkpoints; the one that is harmed; chains on a rank
Harm = Callable[[int, Tensor], None]


def main(kills: int = 5, seed: int = 0) -> dict[str, dict[str, str]]:
    """Run every trial on both, and print the table.

    Args:
        kills: Runs that are killed at a random step and resumed.
        seed: Of the random steps.
    """
    rows: dict[str, dict[str, str]] = {}
    for name in TRAINERS:
        survived = [fault for fault in FAULTS if survives(name, fault)]
        rows[name] = {
            "bit-equal resumes": f"{bit_equal_resumes(name, kills, seed)} of {kills}",
            "distinct chains on 2 ranks": f"{distinct_chains(name)} of {2 * CHAINS}",
            "faults survived": f"{len(survived)} of {len(FAULTS)} ({', '.join(survived) or 'none'})",
        }
    print("| | " + " | ".join(rows) + " |\n|---" + "|---" * len(rows) + "|")
    for trial in rows["ebm_lightning"]:
        print(f"| {trial} | " + " | ".join(row[trial] for row in rows.values()) + " |")
    return rows


# The two trainers. Each goes on from what it finds in the folder, and leaves its end there.


def plain_loop(folder: Path, harm: Harm) -> None:
    """The usual script: a tensor of chains, indices with replacement, weights saved under one name, one seed."""
    torch.manual_seed(0)
    data, net = Digits(64), MLP(64, 10, (32,))
    data.setup()
    loader = torch.utils.data.DataLoader(data.train, 64, shuffle=True, drop_last=True, collate_fn=lambda batch: batch)
    optimizer, buffer = torch.optim.Adam(net.parameters(), 1e-3), torch.rand(CHAINS, 1, 8, 8) * 2 - 1
    path, step = folder / ("last.ckpt" if RANK == "0" else f"last-{RANK}.ckpt"), 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        net.load_state_dict(saved["model"])
        step = saved["step"]
    while step < STEPS:
        for x, y in loader:
            harm(step, x)
            index = torch.randint(CHAINS, (len(x),))
            x_neg = buffer[index]
            for _ in range(5):
                x_neg.requires_grad_()
                (gradient,) = torch.autograd.grad(net(x_neg).logsumexp(1).sum(), x_neg)
                x_neg = (x_neg + 0.1 * gradient + 0.01 * torch.randn_like(x_neg)).detach()
            buffer[index] = x_neg
            loss = F.cross_entropy(net(x), y) + net(x_neg).logsumexp(1).mean() - net(x).logsumexp(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % EVERY == 0:
                torch.save({"model": net.state_dict(), "step": step}, path)
            if step == STEPS:
                break
    end(folder, net, buffer)


def ebm_lightning(folder: Path, harm: Harm) -> None:
    """The same with JEM, Lightning's ModelCheckpoint and ``ckpt_path="last"``."""

    class Harms(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, i: int) -> None:
            harm(trainer.global_step, batch[0])

    L.seed_everything(0, verbose=False)
    data, ranks = Digits(64), int(os.environ.get("WORLD_SIZE", "1"))
    buffer = ReplayBuffer(CHAINS, 0.0)
    module = JEM(MLP(64, 10, (32,)), 10, data.support, SGLD(0.1, 0.01, 5), buffer)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        max_steps=STEPS,
        limit_val_batches=0,
        logger=False,
        callbacks=[ModelCheckpoint(folder, every_n_train_steps=EVERY, save_last=True), Harms()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    damaged = (folder / "last.ckpt").exists() and not is_whole(folder / "last.ckpt")
    trainer.fit(module, data, ckpt_path=newest_whole(folder) if damaged else "last")
    end(folder, module, buffer.x)


def end(folder: Path, module: nn.Module, chains: Tensor) -> None:
    weights = torch.cat([p.detach().flatten() for p in module.parameters()])
    torch.save({"weights": weights, "x": chains}, folder / f"end-{RANK}.pt")


# The trials.


def bit_equal_resumes(name: str, kills: int, seed: int) -> int:
    """How many runs, killed at a random step and resumed, end with the weights and chains of one that was not."""
    draw, equal = random.Random(seed), 0
    whole = left_by(name, fresh())
    for _ in range(kills):
        folder = fresh()
        process = start(name, folder)
        wait_for_step(folder, draw.randrange(EVERY + 1, STEPS - 1))
        process.kill()
        process.wait()
        resumed = left_by(name, folder)
        equal += bool(whole and resumed and all(torch.equal(whole[key], resumed[key]) for key in whole))
    return equal


def distinct_chains(name: str) -> int:
    """How many different chains two ranks have at the end of one run."""
    folder = fresh()
    cluster = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517", "NODE_RANK": "0"}
    ranks = [start(name, folder, **cluster, LOCAL_RANK=str(rank), RANK=str(rank)) for rank in range(2)]
    for process in ranks:
        process.wait()
    return len(torch.cat([torch.load(folder / f"end-{rank}.pt")["x"] for rank in range(2)]).unique(dim=0))


def survives(name: str, fault: str) -> bool:
    """Whether a run that meets the fault can be started again, and ends finite with no more than its due lost."""
    folder = fresh()
    start(name, folder, FAULT=fault).wait()
    if fault == "damaged checkpoint":
        path = folder / "last.ckpt"
        path.write_bytes(path.read_bytes()[:-1000])
    (folder / "steps").unlink(missing_ok=True)
    ended = left_by(name, folder)
    if ended is None or not ended["weights"].isfinite().all():
        return False
    due = HARMED + 1 if fault == "Ctrl-C" else HARMED // EVERY * EVERY
    return int((folder / "steps").read_text().split()[0]) >= due


def nan_batch(x: Tensor) -> None:
    x[0] = torch.nan


def full_disk(x: Tensor) -> None:
    def save(obj: Any, file: Any, *_: Any, **__: Any) -> None:
        with open(file, "wb") if isinstance(file, Path | str) else file as out:
            out.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")

    mock.patch.object(torch, "save", save).start()  # for the rest of this process


def ctrl_c(x: Tensor) -> None:
    signal.raise_signal(signal.SIGINT)


def kill(x: Tensor) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS: dict[str, Callable[[Tensor], None]] = {
    "NaN batch": nan_batch,
    "full disk": full_disk,
    "Ctrl-C": ctrl_c,
    "damaged checkpoint": kill,
}
TRAINERS = {"ebm_lightning": ebm_lightning, "plain loop": plain_loop}
RANK = os.environ.get("RANK", "0")


def child(name: str, folder: Path) -> None:
    """One process of a run; notes each step and meets the fault that the environment names."""
    fault = os.environ.get("FAULT")

    def harm(step: int, x: Tensor) -> None:
        with open(folder / "steps", "a") as file:
            file.write(f"{step} ")
        if fault and step == HARMED:
            FAULTS[fault](x)

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored in the background
    TRAINERS[name](folder, harm)


def start(name: str, folder: Path, **environment: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, __file__, "child", name, str(folder)]
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)


def left_by(name: str, folder: Path) -> dict[str, Tensor] | None:
    """What a run in ``folder`` leaves, or None if it fails."""
    failed = start(name, folder).wait()
    return None if failed else torch.load(folder / "end-0.pt", weights_only=True)


def wait_for_step(folder: Path, step: int) -> None:
    while not (folder / "steps").exists() or f" {step} " not in " " + (folder / "steps").read_text():
        time.sleep(0.002)


def fresh() -> Path:
    return Path(tempfile.mkdtemp())


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], Path(sys.argv[3]))
    else:
        auto_cli(main, as_positional=False)
