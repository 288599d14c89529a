"""Compare how this library and a hand-written loop handle kills, ranks and faults, on scikit-learn's digits.

Both train the same small joint energy model. ``python recipes/benchmarks/reliability.py`` kills the runs, runs them on
two ranks and injects faults, and prints a table of what survived.
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
from common import print_table
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from ebm_lightning import JEM, SGLD, ReplayBuffer
from ebm_lightning.data import Digits
from ebm_lightning.networks import MLP
from ebm_lightning.resume.checkpoint_io import is_complete, newest_complete

MAX_STEPS = 40
CHECKPOINT_EVERY = 4  # steps
FAULT_STEP = 23
BUFFER_SIZE = 200  # chains per rank
Hook = Callable[[int, Tensor], None]  # called with the step and its images before every step


def main(kills: int = 5, seed: int = 0) -> dict[str, dict[str, str]]:
    """Run every trial with both trainers, and print the table.

    Args:
        kills: Number of runs that are killed at a random step and resumed.
        seed: Seed of the random steps.
    """
    rows: dict[str, dict[str, str]] = {}
    for name in TRAINERS:
        survived = [fault for fault in FAULTS if survives(name, fault)]
        rows[name] = {
            "bit-equal resumes": f"{bit_equal_resumes(name, kills, seed)} of {kills}",
            "distinct chains on 2 ranks": f"{distinct_chains(name)} of {2 * BUFFER_SIZE}",
            "faults survived": f"{len(survived)} of {len(FAULTS)} ({', '.join(survived) or 'none'})",
        }
    print_table(("", *rows), [(trial, *(row[trial] for row in rows.values())) for trial in rows["ebm_lightning"]])
    return rows


# The two trainers. Each resumes from the checkpoint in the folder, if there is one, and saves its final state there.


def plain_loop(folder: Path, before_step: Hook) -> None:
    """A typical script: chains in a tensor, slots drawn with replacement, weights saved to one file, one seed."""
    torch.manual_seed(0)
    data, net = Digits(64), MLP(64, 10, (32,))
    data.setup()
    loader = torch.utils.data.DataLoader(data.train, 64, shuffle=True, drop_last=True, collate_fn=lambda batch: batch)
    optimizer, buffer = torch.optim.Adam(net.parameters(), 1e-3), torch.rand(BUFFER_SIZE, 1, 8, 8) * 2 - 1
    path, step = folder / ("last.ckpt" if RANK == "0" else f"last-{RANK}.ckpt"), 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        net.load_state_dict(saved["model"])
        step = saved["step"]
    while step < MAX_STEPS:
        for x, y in loader:
            before_step(step, x)
            index = torch.randint(BUFFER_SIZE, (len(x),))
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
            if step % CHECKPOINT_EVERY == 0:
                torch.save({"model": net.state_dict(), "step": step}, path)
            if step == MAX_STEPS:
                break
    save_end(folder, net, buffer)


def ebm_lightning(folder: Path, before_step: Hook) -> None:
    """The same training with JEM, Lightning's ModelCheckpoint and ``ckpt_path="last"``."""

    class BeforeStep(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, i: int) -> None:
            before_step(trainer.global_step, batch[0])

    L.seed_everything(0, verbose=False)
    data, ranks = Digits(64), int(os.environ.get("WORLD_SIZE", "1"))
    buffer = ReplayBuffer(BUFFER_SIZE, 0.0)
    module = JEM(MLP(64, 10, (32,)), 10, data.support, SGLD(0.1, 0.01, 5), buffer)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        max_steps=MAX_STEPS,
        limit_val_batches=0,
        logger=False,
        callbacks=[ModelCheckpoint(folder, every_n_train_steps=CHECKPOINT_EVERY, save_last=True), BeforeStep()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    damaged = (folder / "last.ckpt").exists() and not is_complete(folder / "last.ckpt")
    trainer.fit(module, data, ckpt_path=newest_complete(folder) if damaged else "last")
    save_end(folder, module, buffer.x)


def save_end(folder: Path, module: nn.Module, chains: Tensor) -> None:
    weights = torch.cat([p.detach().flatten() for p in module.parameters()])
    torch.save({"weights": weights, "x": chains}, folder / f"end-{RANK}.pt")


# The trials.


def bit_equal_resumes(name: str, kills: int, seed: int) -> int:
    """How many killed and resumed runs end with the same weights and chains as an uninterrupted run."""
    rng, equal = random.Random(seed), 0
    expected = result_of(name, new_folder())
    for _ in range(kills):
        folder = new_folder()
        process = start(name, folder)
        wait_for_step(folder, rng.randrange(CHECKPOINT_EVERY + 1, MAX_STEPS - 1))
        process.kill()
        process.wait()
        resumed = result_of(name, folder)
        equal += bool(expected and resumed and all(torch.equal(expected[key], resumed[key]) for key in expected))
    return equal


def distinct_chains(name: str) -> int:
    """Number of distinct chains that two ranks have at the end of a run."""
    folder = new_folder()
    cluster = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517", "NODE_RANK": "0"}
    ranks = [start(name, folder, **cluster, LOCAL_RANK=str(rank), RANK=str(rank)) for rank in range(2)]
    for process in ranks:
        process.wait()
    return len(torch.cat([torch.load(folder / f"end-{rank}.pt")["x"] for rank in range(2)]).unique(dim=0))


def survives(name: str, fault: str) -> bool:
    """Whether a run with the fault can be restarted, ends with finite weights and repeats no step that was saved."""
    folder = new_folder()
    start(name, folder, FAULT=fault).wait()
    if fault == "damaged checkpoint":
        path = folder / "last.ckpt"
        path.write_bytes(path.read_bytes()[:-1000])
    (folder / "steps").unlink(missing_ok=True)
    result = result_of(name, folder)
    if result is None or not result["weights"].isfinite().all():
        return False
    first_step = FAULT_STEP + 1 if fault == "Ctrl-C" else FAULT_STEP // CHECKPOINT_EVERY * CHECKPOINT_EVERY
    return int((folder / "steps").read_text().split()[0]) >= first_step


def nan_batch(x: Tensor) -> None:
    x[0] = torch.nan


def full_disk(x: Tensor) -> None:
    def save(obj: Any, file: Any, *_: Any, **__: Any) -> None:
        with open(file, "wb") if isinstance(file, Path | str) else file as out:
            out.write(b"incomplete")
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
    """One process of a run. It records every step and injects the fault named by the environment variable FAULT."""
    fault = os.environ.get("FAULT")

    def before_step(step: int, x: Tensor) -> None:
        with open(folder / "steps", "a") as file:
            file.write(f"{step} ")
        if fault and step == FAULT_STEP:
            FAULTS[fault](x)

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for background jobs
    TRAINERS[name](folder, before_step)


def start(name: str, folder: Path, **environment: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, __file__, "child", name, str(folder)]
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)


def result_of(name: str, folder: Path) -> dict[str, Tensor] | None:
    """Final weights and chains of a run in ``folder``, or None if it fails."""
    failed = start(name, folder).wait()
    return None if failed else torch.load(folder / "end-0.pt", weights_only=True)


def wait_for_step(folder: Path, step: int) -> None:
    while not (folder / "steps").exists() or f" {step} " not in " " + (folder / "steps").read_text():
        time.sleep(0.002)


def new_folder() -> Path:
    return Path(tempfile.mkdtemp())


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], Path(sys.argv[3]))
    else:
        auto_cli(main, as_positional=False)
