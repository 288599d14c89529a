"""Jobs of the tests with several ranks. As a script: FOLDER JOB, with the rank in the environment."""

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from ebm_lightning import JEM, SADAJEM, SGLD, Box, ClassGaussians, ReplayBuffer
from ebm_lightning.data import Rings
from ebm_lightning.networks import MLP, ConvNet
from tests.helpers import batches, jem, trainer, weights
from tests.modules import two_loaders
from tests.resume.runs import Rows, final, noisy

ROOT = Path(__file__).parent.parent.parent
CLUSTER = {name: os.environ[name] for name in ("WORLD_SIZE", "LOCAL_RANK", "RANK", "NODE_RANK") if name in os.environ}
RANKS, RANK = int(CLUSTER.get("WORLD_SIZE", 1)), int(CLUSTER.get("LOCAL_RANK", 0))
WEIGHTS = [(1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 0, 0), (1, 1, 1, 0), (1, 0, 0, 1), (0, 1, 1, 1)]


def launch(folder: Path, job: str, ranks: int) -> list[subprocess.Popen]:
    """Start the processes as a cluster does, so that each can run several trainers and be killed separately."""
    folder.mkdir(exist_ok=True)
    base = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NODE_RANK": "0"}
    base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    command = [sys.executable, "-m", "tests.resume.ranks", str(folder), job]
    started = []
    for rank in range(ranks):
        environment = base | {"LOCAL_RANK": str(rank), "RANK": str(rank)}
        with open(folder / f"{job}-{rank}.log", "w") as log:
            started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    return started


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_ranks(folder: Path, job: str, ranks: int) -> list[int]:
    """Exit codes of the processes of a job, which have two minutes."""
    processes = launch(folder, job, ranks)
    try:
        return [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()


def logs(folder: Path, job: str) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob(f"{job}-*.log")))


def saved(folder: Path, name: str, ranks: int) -> list[dict[str, Any]]:
    """What each rank saved under ``name``."""
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(ranks)]


def train(folder: Path, checkpoint: Path | None = None, callbacks: Sequence[L.Callback] = (), **settings: Any) -> JEM:
    L.seed_everything(0 if checkpoint is None else 99, verbose=False)
    module = noisy(chains=ReplayBuffer(21))
    defaults = {"logger": Rows(), "max_epochs": 2, "enable_checkpointing": bool(callbacks)}
    t = distributed(folder, callbacks=list(callbacks), **(defaults | settings))
    t.fit(module, Rings(size=64, batch_size=8), ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return module


def distributed(folder: Path, **settings: Any) -> L.Trainer:
    os.environ |= CLUSTER  # each trainer removes it when it ends
    return trainer(folder, devices=RANKS, **({"strategy": "ddp"} if RANKS > 1 else {}), **settings)


def save(folder: Path, name: str, values: Any) -> None:
    torch.save(values, folder / f"{name}-{RANK}.pt")


def whole(folder: Path) -> None:
    """8 steps with a checkpoint after each; resumed at and within an epoch; every loss; Ctrl-C; a killed rank."""
    saver = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    save(folder, "whole", final(train(folder, callbacks=[saver])))
    for step in (4, 6):
        save(folder, f"again-{step}", final(train(folder, folder / f"step={step}.ckpt")))
    for i, combination in enumerate(WEIGHTS):
        names = ("conditional_weight", "generative_weight", "joint_weight", "class_conditional_weight")
        net, box = ConvNet((1, 4, 4), 3, 4), Box(-1, 1, (1, 4, 4))
        net = nn.Sequential(net, nn.BatchNorm1d(3)) if i % 2 else net
        module = jem(
            net, support=box, chains=ReplayBuffer(21), **dict(zip(names, map(float, combination), strict=True))
        )
        distributed(folder, max_steps=2).fit(module, batches(64, 4, (1, 4, 4)))
        save(folder, f"weights-{i}", {n: p.detach() for n, p in module.named_parameters()})

    with contextlib.suppress(SystemExit):
        interrupt(folder / "interrupt")
    kill(folder / "kill", int(os.environ.get("TEST_SEED", "0")) % 2)


def reshard(folder: Path) -> None:
    """Resume two ranks' checkpoint on the current number of ranks, and save what each starts with; no step."""

    class Stop(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            state = final(pl_module) | {"global": torch.get_rng_state()}
            save(folder, f"reshard-{trainer.world_size}", {name: value.clone() for name, value in state.items()})
            trainer.should_stop = True

    train(folder, folder / "step=6.ckpt", [Stop()], enable_checkpointing=False, max_steps=7)


def gaussians(folder: Path) -> None:
    """Chains from Gaussians fitted to an odd number of points; resumed within an epoch under another seed."""
    saver = ModelCheckpoint(folder, "{step}-gaussians", save_top_k=-1, every_n_train_steps=1)
    for job, checkpoint in (("gaussians", None), ("gaussians-again", folder / "step=3-gaussians.ckpt")):
        L.seed_everything(0 if checkpoint is None else 99, verbose=False)
        module, data = noisy(chains=ReplayBuffer(21, 0.5, ClassGaussians())), Rings(size=67, batch_size=8)
        t = distributed(
            folder, callbacks=[] if checkpoint else [saver], max_steps=5, enable_checkpointing=not checkpoint
        )
        t.fit(module, data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        fitted = {name: getattr(module.chains.initial, name) for name in ("counts", "means", "factors")}
        save(folder, job, final(module) | fitted)


def separate(folder: Path) -> None:
    """Two loaders on each rank; resumed at the end of the first epoch and within the second."""
    save(folder, "separate", two_loaders.run(folder, trainer=distributed))
    for step in (2, 3):
        save(
            folder,
            f"separate-{step}",
            two_loaders.run(folder, folder / "saved" / f"step={step}.ckpt", trainer=distributed),
        )


def sharpness_aware(folder: Path) -> None:
    """One SGD step of SADA-JEM with lr 1, and this rank's batch and negatives."""

    class Recording(SADAJEM):
        def loss_terms(self, x: Tensor, y: Tensor, *rest: Any) -> Any:
            self.batch = x, y
            return super().loss_terms(x, y, *rest)

    L.seed_everything(0, verbose=False)
    data, network = Rings(size=64, batch_size=8), MLP(2, 3, (8,))
    sgd = functools.partial(torch.optim.SGD, lr=1.0)
    chains = SGLD(0.1, 0.01, 3), ReplayBuffer(30)
    module = Recording(network, 3, data.support, *chains, rho=0.5, adaptive=False, energy_l2=0.05, optimizer=sgd)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    distributed(folder, max_steps=1).fit(module, data)
    step = dict(zip(("x", "y"), module.batch, strict=True)) | {"negatives": module.chain_step.state.x}
    save(folder, "sharpness_aware", step | {"start": start, "weights": weights(module)})


class Kill(L.Callback):
    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)


def kill(folder: Path, rank: int) -> None:
    saver = ModelCheckpoint(folder, every_n_train_steps=2, save_last=True, save_on_exception=True)
    train(folder, callbacks=[saver, Kill(rank)])


def interrupt(folder: Path) -> None:
    """Ctrl-C on rank 1 only."""

    class Press(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_rank == 1 and trainer.global_step == 4:
                signal.raise_signal(signal.SIGINT)

    train(folder, callbacks=[ModelCheckpoint(folder, every_n_train_steps=100, save_last=True), Press()])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with SIGINT ignored
    torch.set_num_threads(1)
    jobs = {job.__name__: job for job in (whole, reshard, gaussians, separate, sharpness_aware)}
    jobs[sys.argv[2]](Path(sys.argv[1]))
