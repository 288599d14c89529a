"""A run that was stopped anywhere and resumed ends bit-equal: weights, chains, generators and logged values.

Mutants that these tests kill: not saving the chains' generator, the ages, or the global state of PyTorch, NumPy or
Python; restoring the random state only before the loaders draw, or only after; not saving the sampler's epoch or seed;
loaders not marked as finished at the end of an epoch; a pending validation that is not run; averaged weights that stay
in their callback.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from ebm_lightning import JEM, ConditionalEBM
from ebm_lightning.data import Digits, Rings, resumable_loader
from ebm_lightning.networks import MLP
from tests.helpers import BOX, batches, jem, trainer, weights
from tests.resume.runs import STEPS, final, noisy, run, same

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")

SETTINGS = {
    "plain": {},
    "validation in the epoch": {"val_check_interval": 2},
    "validation every other epoch": {"check_val_every_n_epoch": 2},
    "accumulation": {"accumulate_grad_batches": 2},
    "by steps": {"max_epochs": -1, "max_steps": STEPS},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_checkpoint_resumes_bit_for_bit(settings, tmp_path):
    """From the checkpoint of every step and epoch, with batch norm, dropout, averaged weights and a schedule."""
    whole, rows = run(tmp_path, **settings)
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) > 5
    for path in checkpoints:
        step = torch.load(path, weights_only=True)["global_step"]
        resumed, later = run(tmp_path, path, **settings)
        assert not same(final(resumed), final(whole)), path.name
        # A checkpoint of an epoch comes after the last step's values were logged, all others before the validation.
        due = {
            key: value for key, value in rows.rows.items() if key[1] >= step or ("val/" in key[0] and key in later.rows)
        }
        assert without_epoch(later.rows) == without_epoch(due), path.name


def without_epoch(rows: dict[tuple[str, int], float]) -> dict[tuple[str, int], float]:
    return {key: value for key, value in rows.items() if key[0] != "epoch"}


def test_a_validation_that_was_pending_is_run(tmp_path):
    _, rows = run(tmp_path)
    _, later = run(tmp_path, tmp_path / "step=4.ckpt")
    assert later.rows["val/nll", 3] == rows.rows["val/nll", 3]


class Shuffled(Rings):
    """A user's loader, as in the documentation of torchdata."""

    def train_dataloader(self) -> DataLoader:
        return StatefulDataLoader(self.train, self.batch_size, shuffle=True, drop_last=True)


def test_a_torchdata_loader_resumes_exactly_within_an_epoch_and_skips_no_epoch(tmp_path):
    """Its order comes from a generator that Lightning does not restore between epochs, unlike that of this library."""
    whole, rows = run(tmp_path, data=Shuffled(size=64, batch_size=16))
    for step in (3, 6):
        resumed, _ = run(tmp_path, tmp_path / f"step={step}.ckpt", data=Shuffled(size=64, batch_size=16))
        assert not same(final(resumed), final(whole)), step
    for name in ("step=4", "end-epoch=0"):
        _, later = run(tmp_path, tmp_path / f"{name}.ckpt", data=Shuffled(size=64, batch_size=16))
        assert {k for k in rows.rows if k[1] >= 4} <= later.rows.keys(), name


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_data_order_resumes_with_and_without_workers(workers, tmp_path):
    """From the start and the middle of the second epoch, and from its end."""

    class Data(L.LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return resumable_loader(TensorDataset(*self.tensors), 4, self.trainer, num_workers=workers)

    class Seen(ConditionalEBM):
        def on_train_batch_start(self, batch: list[torch.Tensor], batch_idx: int) -> None:
            order.append(batch[0][:, 0].tolist())

    def fit(**arguments) -> None:
        data, module = Data(), Seen(MLP(4, 3, (8,)), 3)
        data.tensors = torch.arange(30).view(-1, 1).repeat(1, 4) / 30, torch.zeros(30, dtype=torch.long)
        t = trainer(tmp_path, max_epochs=3, **arguments.pop("trainer", {}))
        t.fit(module, data, **arguments)

    order: list[list[float]] = []
    save = {"every_n_train_steps": 1, "save_top_k": -1}
    saver = L.pytorch.callbacks.ModelCheckpoint(tmp_path, "{step}", **save)
    fit(trainer={"callbacks": [saver], "enable_checkpointing": True})
    whole, order = order, []
    assert [len({x for batch in whole[i : i + 7] for x in batch}) for i in (0, 7, 14)] == [28] * 3
    assert whole[:7] != whole[7:14]
    for step in (7, 10, 14):
        order = []
        fit(ckpt_path=tmp_path / f"step={step}.ckpt")
        assert order == whole[step:], step


def test_data_order_depends_on_epoch_and_seed():
    def order(seed: int, epoch: int) -> list[int]:
        torch.manual_seed(seed)
        loader = resumable_loader(TensorDataset(torch.arange(40)), 4)
        loader.sampler.set_epoch(epoch)
        return torch.cat([b[0] for b in loader]).tolist()

    orders = [order(0, 0), order(0, 1), order(1, 0)]
    assert order(0, 0) == orders[0]
    assert len({tuple(o) for o in orders}) == 3


def test_digits_resume_with_their_dequantization_noise(tmp_path):
    def fit(folder: Path, **arguments) -> torch.Tensor:
        data = Digits(256)
        L.seed_everything(3, verbose=False)
        module = ConditionalEBM(MLP(64, 10, (8,)), 10, data.support)
        t = trainer(folder, max_epochs=2, **arguments.pop("trainer", {}))
        t.fit(module, data, **arguments)
        return weights(module)

    saver = L.pytorch.callbacks.ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=3)
    whole = fit(tmp_path, trainer={"callbacks": [saver], "enable_checkpointing": True})
    for step in (3, 6):
        assert torch.equal(fit(tmp_path, ckpt_path=tmp_path / f"step={step}.ckpt"), whole)


@pytest.mark.slow
def test_a_run_that_was_killed_twice_ends_bit_equal(tmp_path):
    """SIGKILL at two random steps; each process finds the last checkpoint, and together they log what one does."""
    rng = random.Random(int(os.environ.get("TEST_SEED", "0")))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start(whole).communicate(timeout=120)
    for step in sorted(rng.sample(range(3, STEPS), 2)):
        process = start(killed)
        wait_for(killed / "rows", f'"train/loss", {step - 1},')
        time.sleep(0.15 * rng.random())
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
        assert not (killed / "final.pt").exists()
    start(killed).communicate(timeout=120)
    a, b = (torch.load(folder / "final.pt", weights_only=True) for folder in (whole, killed))
    assert not same(a, b)
    assert logged(killed) == logged(whole)


def start(folder: Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.resume.runs", str(folder)]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 120
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline, f"{text} was not logged"
        time.sleep(0.01)


def logged(folder: Path) -> set[str]:
    """Logged lines, as a set: two processes log the steps after the last checkpoint, with equal values."""
    return set((folder / "rows").read_text().splitlines())


def test_a_loaded_model_starts_a_new_run_with_its_chains(tmp_path):
    first = jem()
    t = trainer(tmp_path)
    t.fit(first, batches())
    t.save_checkpoint(tmp_path / "m.ckpt")
    second = JEM.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    trainer(tmp_path, limit_train_batches=0).fit(second, batches())
    assert torch.equal(second.chains.x, first.chains.x)
    assert torch.equal(torch.get_rng_state(), state), "only 'ckpt_path' restores the global random state"


def test_a_checkpoint_without_chains_warns(tmp_path):
    plain = jem(generative_weight=0.0)
    t = trainer(tmp_path)
    t.fit(plain, batches())
    t.save_checkpoint(tmp_path / "m.ckpt")
    with pytest.warns(UserWarning, match="has no 'chains': these chains are initialized"):
        trainer(tmp_path, max_epochs=2).fit(jem(), batches(), ckpt_path=tmp_path / "m.ckpt")


@pytest.mark.parametrize("compiled", [True, False])
def test_checkpoints_of_compiled_and_plain_classifiers_are_interchangeable(compiled, tmp_path):
    def net(compile: bool) -> torch.nn.Module:
        return torch.compile(MLP(4, 3, (8,)), backend="aot_eager") if compile else MLP(4, 3, (8,))

    first, second = jem(net(compiled)), jem(net(not compiled))
    t = trainer(tmp_path)
    t.fit(first, batches())
    t.save_checkpoint(tmp_path / "m.ckpt")
    trainer(tmp_path).fit(second, batches(), ckpt_path=tmp_path / "m.ckpt")
    assert torch.equal(weights(first), weights(second))
    assert torch.equal(first.energy(BOX.sample(5)).isfinite(), torch.ones(5, dtype=torch.bool))


def test_random_states_are_plain_values(tmp_path):
    torch.manual_seed(0)
    module = noisy()
    t = trainer(tmp_path)
    t.fit(module, Rings(size=64, batch_size=16))
    t.save_checkpoint(tmp_path / "m.ckpt")
    state = torch.load(tmp_path / "m.ckpt", weights_only=True)["ranks"]
    assert len(state) == 1
    assert set(state[0]["random"]) == {"torch", "numpy", "python"}
    assert set(state[0]["chains"]) == {"chains", "class_chains"}
