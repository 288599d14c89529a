"""Faults of machines, files and data give a clear error and lose nothing. All of them are listed in docs/faults.md.

Mutants that these tests kill: a checkpoint written in place; no check of the file when it is read; Ctrl-C raised in the
middle of a step; a checkpoint written after a second Ctrl-C; shapes not compared.
"""

import errno
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ebm_lightning import JEM, Box, ReplayBuffer
from ebm_lightning.data import Rings
from ebm_lightning.networks import MLP
from ebm_lightning.resume import checkpoint_io
from ebm_lightning.resume.checkpoint_io import AtomicCheckpointIO, is_complete, newest_complete
from ebm_lightning.resume.interrupts import refuse_sharded
from tests.helpers import batches, jem, trainer, weights
from tests.resume.runs import final, noisy, same

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:.*(callbacks used to create the checkpoint|exists and is not empty)")


def saving(folder: Path, **arguments: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, **({"every_n_train_steps": 1, "save_last": True, "filename": "kept"} | arguments))


def fit(folder: Path, module: JEM, data: Any = None, *callbacks: L.Callback, **arguments: Any) -> None:
    """Two epochs of three steps, a checkpoint after each step."""
    t = trainer(folder, max_epochs=2, callbacks=[saving(folder), *callbacks], enable_checkpointing=True)
    t.fit(module, data or batches(), **arguments)


@pytest.fixture
def saved(tmp_path) -> Path:
    fit(tmp_path, jem())
    return tmp_path / "last.ckpt"


# Files.


def full(checkpoint: dict, file: Any) -> None:
    file.write(b"half a checkpoint")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_an_error_and_keeps_earlier_checkpoints(tmp_path, monkeypatch):
    class Fills(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 4:
                monkeypatch.setattr(checkpoint_io.torch, "save", full)

    with pytest.raises(
        OSError, match=r"kept.*was not written.*No space left on device.*Earlier checkpoints are complete"
    ):
        fit(tmp_path, jem(), None, Fills())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept.ckpt", "last.ckpt"], "no partial file is left"
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device_is_an_error(tmp_path):
    (tmp_path / ".m.ckpt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"m.ckpt.*was not written"):
        AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(10)}, tmp_path / "m.ckpt")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="was not written"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "file" / "m.ckpt")


def test_a_kill_while_saving_keeps_the_earlier_checkpoint(saved, monkeypatch):
    """A kill leaves a partial file, whose name is not that of a checkpoint."""

    def killed(*_: Any) -> None:
        raise SystemExit(9)

    before = saved.read_bytes()
    monkeypatch.setattr(checkpoint_io.os, "replace", killed)
    with pytest.raises(SystemExit):
        AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(10)}, saved)
    assert saved.read_bytes() == before
    monkeypatch.undo()
    (saved.parent / ".last.ckpt.partial").write_bytes(before[:1000])
    assert newest_complete(saved.parent).name in ("last.ckpt", "kept.ckpt")
    fit(saved.parent, jem(), ckpt_path="last")
    AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(10)}, saved)
    assert not list(saved.parent.glob(".*")), "the next checkpoint replaces the partial file"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    i = data.find(torch.load(path)["state_dict"]["energy.classifier.layers.1.weight"].numpy().tobytes())
    data[i] ^= 1
    path.write_bytes(bytes(data))


def text(path: Path) -> None:
    path.write_text("404: not found")


@pytest.mark.parametrize("harm", [truncate, empty, damage, text])
def test_a_truncated_or_damaged_checkpoint_is_an_error(harm, saved):
    """The error names the newest complete checkpoint, which can be resumed. One bit of one weight is detected."""
    harm(saved)
    assert not is_complete(saved)
    with pytest.raises(RuntimeError, match=r"last.ckpt' is truncated or damaged. Resume from '.*kept.ckpt'"):
        fit(saved.parent, jem(), ckpt_path=saved)
    fit(saved.parent, jem(), ckpt_path=newest_complete(saved.parent))


def test_a_folder_without_a_complete_checkpoint_is_an_error(tmp_path):
    text(tmp_path / "last.ckpt")
    with pytest.raises(RuntimeError, match="There is no complete one in its folder"):
        fit(tmp_path, jem(), ckpt_path=tmp_path / "last.ckpt")


def test_a_missing_checkpoint_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt"):
        fit(tmp_path, jem(), ckpt_path=tmp_path / "nowhere.ckpt")


def test_a_checkpoint_with_objects_is_not_loaded(tmp_path):
    torch.save({"state_dict": {}, "evil": Path("x"), "code": pytest.raises}, tmp_path / "m.ckpt")
    with pytest.raises(RuntimeError, match="was not written by this library, or contains objects"):
        fit(tmp_path, jem(), ckpt_path=tmp_path / "m.ckpt", weights_only=True)


def test_a_checkpoint_of_another_network_is_an_error(saved):
    module = jem(MLP(4, 3, (16,)))
    before = weights(module)
    with pytest.raises(
        ValueError, match=r"'classifier' should be the network that was saved, got .* of shape \(16, 4\)"
    ):
        fit(saved.parent, module, ckpt_path=saved)
    assert torch.equal(weights(module), before)
    with pytest.raises(RuntimeError, match="Missing key"):
        fit(saved.parent, jem(MLP(4, 3, (8, 3))), ckpt_path=saved)


def test_a_checkpoint_of_another_support_is_an_error(saved):
    with pytest.raises(ValueError, match=r"'chains' should have shape \(2, 2\)"):
        fit(saved.parent, jem(support=Box(-1, 1, (2, 2))), batches(shape=(2, 2)), ckpt_path=saved)


def test_a_smaller_buffer_keeps_every_chain_and_a_larger_one_is_filled(saved):
    chains = torch.load(saved)["ranks"][0]["chains"]["chains"]["x"]
    for size in (12, 60):
        module = jem(chains=ReplayBuffer(size))
        fit(saved.parent, module, ckpt_path=saved)
        assert len(module.chains.x) == max(size, 30)
        assert torch.equal(module.chains.x[:30], chains), "the run had ended, so no step moved them"


# Data.


def test_a_nan_batch_stops_the_run_before_its_step(tmp_path):
    data = batches(48)
    data.dataset.tensors[0][20, 1] = torch.nan  # the third of six batches
    module = jem()
    with pytest.raises(ValueError, match="'x' should be finite"):
        fit(tmp_path, module, data)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    assert all(torch.equal(p, last["state_dict"][name]) for name, p in module.named_parameters())


class Deadly(Dataset[tuple[Tensor, Tensor]]):
    """Kills the process that reads item 20, once a checkpoint exists."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def __len__(self) -> int:
        return 32

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        while i == 20:
            time.sleep(0.05)
            if self.checkpoint.exists():
                os.kill(os.getpid(), signal.SIGKILL)
        return torch.linspace(-1, 1, 4), torch.tensor(0)


@pytest.mark.slow
def test_a_killed_loader_worker_is_an_error_and_keeps_the_last_checkpoint(tmp_path):
    with pytest.raises(RuntimeError, match=r"worker .* (exited unexpectedly|is killed by signal)"):
        fit(tmp_path, jem(), DataLoader(Deadly(tmp_path / "last.ckpt"), 8, num_workers=1))
    assert newest_complete(tmp_path) is not None
    assert 0 < torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] <= 2


# Signals.


class Pressing(MLP):
    """Ctrl-C arrives in the middle of a step, between two gradients of a chain."""

    def __init__(self, times: int) -> None:
        super().__init__(2, 8, (8,))
        self.calls, self.times = 0, times

    def forward(self, x: Tensor) -> Tensor:
        self.calls += x.requires_grad  # four steps of chains in each training step, so that call 30 is in step 8
        if self.calls == 30 and x.requires_grad:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)
        return super().forward(x)


def pressing(times: int) -> JEM:
    module = noisy()
    module.classifier[0] = Pressing(times)
    return module


def press(folder: Path, times: int, signum: int = signal.SIGINT) -> JEM:
    L.seed_everything(0, verbose=False)
    module = pressing(times)
    t = trainer(folder, max_epochs=3, callbacks=[saving(folder, every_n_train_steps=5)], enable_checkpointing=True)
    with pytest.raises(SystemExit) as stopped:
        t.fit(module, Rings(size=64, batch_size=16))
    assert stopped.value.code == 1
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning ignores the signal before it exits
    return module


def test_ctrl_c_saves_after_the_step_and_the_run_resumes_bit_for_bit(tmp_path):
    def rest(folder: Path, checkpoint: Path | None) -> JEM:
        L.seed_everything(0, verbose=False)
        module = pressing(0)
        trainer(folder, max_epochs=3).fit(module, Rings(size=64, batch_size=16), ckpt_path=checkpoint)
        return module

    module = press(tmp_path, 1)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["global_step"] == module.global_step == 8, "not at a multiple of 5"
    assert not same(final(rest(tmp_path, tmp_path / "last.ckpt")), final(rest(tmp_path, None)))


def test_a_second_ctrl_c_stops_immediately_without_saving(tmp_path):
    press(tmp_path, 2)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 5


def test_training_restores_the_handler_of_ctrl_c(tmp_path):
    fit(tmp_path, jem())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_writes_a_checkpoint(tmp_path):
    class Term(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 4:
                signal.raise_signal(signal.SIGTERM)

    callbacks = [saving(tmp_path, every_n_train_steps=100), Term()]
    t = trainer(tmp_path, max_epochs=2, callbacks=callbacks, enable_checkpointing=True)
    with pytest.raises(SIGTERMException):
        t.fit(jem(), batches())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 5


def test_ctrl_c_without_a_model_checkpoint_warns(tmp_path):
    class Press(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            signal.raise_signal(signal.SIGINT)

    with pytest.warns(UserWarning, match="stops without a checkpoint"), pytest.raises(SystemExit):
        trainer(tmp_path, callbacks=[Press()]).fit(jem(), batches())
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Strategies.


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_strategies_that_shard_weights_are_an_error(name):
    strategy = FSDPStrategy() if name == "FSDPStrategy" else type(name, (SingleDeviceStrategy,), {})()
    with pytest.raises(RuntimeError, match=f"'strategy' should keep all weights on each device, got {name}.*'ddp'"):
        refuse_sharded(strategy)


def test_a_custom_checkpoint_io_is_kept(tmp_path):
    class Own(checkpoint_io.TorchCheckpointIO):
        pass

    for plugins, kind in (([Own()], Own), ([], AtomicCheckpointIO)):
        t = trainer(tmp_path, plugins=plugins)
        t.fit(jem(), batches())
        assert type(t.strategy.checkpoint_io) is kind


# The table.


def test_every_row_of_the_table_names_a_test():
    rows = [r.split("|") for r in (ROOT / "docs" / "faults.md").read_text().splitlines() if r.startswith("| ")][1:]
    assert len(rows) >= 25
    assert len({r[1].strip() for r in rows}) == len(rows), "faults are distinct"
    for row in rows:
        file, name = re.search(r"`(\w+)::(\w+)`", row[3]).groups()
        assert any(f"def {name}(" in path.read_text() for path in (ROOT / "tests").rglob(f"{file}.py")), row
