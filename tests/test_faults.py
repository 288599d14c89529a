"""Faults of machines, files and data: a clear error, and nothing lost. The table of all of them is docs/faults.md.

Mutants that these tests kill, each tried by hand: a checkpoint written in place; the file not checked when it is read;
Ctrl-C raised in the middle of a step; a checkpoint written after a second Ctrl-C; shapes not compared.
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
from ebm_lightning.modules import checkpoint_io
from ebm_lightning.modules.checkpoint_io import AtomicCheckpointIO, is_whole, newest_whole
from ebm_lightning.modules.safeguards import refuse_sharded
from ebm_lightning.networks import MLP
from tests.helpers import batches, jem, trainer, weights
from tests.runs import final, noisy, same

ROOT = Path(__file__).parent.parent
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


def test_a_full_disk_is_an_error_and_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    class Fills(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 4:
                monkeypatch.setattr(checkpoint_io.torch, "save", full)

    with pytest.raises(OSError, match=r"kept.*was not written.*No space left on device.*Earlier checkpoints are whole"):
        fit(tmp_path, jem(), None, Fills())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept.ckpt", "last.ckpt"], "no half file is left"
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_that_is_full_is_an_error(tmp_path):
    (tmp_path / ".m.ckpt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"m.ckpt.*was not written"):
        AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(10)}, tmp_path / "m.ckpt")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="was not written"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "file" / "m.ckpt")


def test_killed_while_saving_the_earlier_checkpoint_stands_and_is_taken(saved, monkeypatch):
    """What SIGKILL leaves: part of a file, under a name that is none of a checkpoint."""

    def killed(*_: Any) -> None:
        raise SystemExit(9)

    before = saved.read_bytes()
    monkeypatch.setattr(checkpoint_io.os, "replace", killed)
    with pytest.raises(SystemExit):
        AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(10)}, saved)
    assert saved.read_bytes() == before
    monkeypatch.undo()
    (saved.parent / ".last.ckpt.partial").write_bytes(before[:1000])
    assert newest_whole(saved.parent).name in ("last.ckpt", "kept.ckpt")
    fit(saved.parent, jem(), ckpt_path="last")
    AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(10)}, saved)
    assert not list(saved.parent.glob(".*")), "the next one takes its place"


def cut(path: Path) -> None:
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


@pytest.mark.parametrize("harm", [cut, empty, damage, text])
def test_a_checkpoint_that_is_cut_short_or_damaged_is_refused(harm, saved):
    """The error names the newest whole one, and going on from that works. One bit of one weight is enough."""
    harm(saved)
    assert not is_whole(saved)
    with pytest.raises(RuntimeError, match=r"last.ckpt' is cut short or damaged. Resume from '.*kept.ckpt'"):
        fit(saved.parent, jem(), ckpt_path=saved)
    fit(saved.parent, jem(), ckpt_path=newest_whole(saved.parent))


def test_a_folder_without_a_whole_checkpoint_says_so(tmp_path):
    text(tmp_path / "last.ckpt")
    with pytest.raises(RuntimeError, match="There is no whole one in its folder"):
        fit(tmp_path, jem(), ckpt_path=tmp_path / "last.ckpt")


def test_a_checkpoint_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt"):
        fit(tmp_path, jem(), ckpt_path=tmp_path / "nowhere.ckpt")


def test_a_checkpoint_with_objects_is_refused_before_they_are_made(tmp_path):
    torch.save({"state_dict": {}, "evil": Path("x"), "code": pytest.raises}, tmp_path / "m.ckpt")
    with pytest.raises(RuntimeError, match="was not written by this library, or holds objects"):
        fit(tmp_path, jem(), ckpt_path=tmp_path / "m.ckpt", weights_only=True)


def test_a_checkpoint_of_another_network_is_refused(saved):
    module = jem(MLP(4, 3, (16,)))
    before = weights(module)
    with pytest.raises(
        ValueError, match=r"'classifier' should be the network that was saved, got .* of shape \(16, 4\)"
    ):
        fit(saved.parent, module, ckpt_path=saved)
    assert torch.equal(weights(module), before)
    with pytest.raises(RuntimeError, match="Missing key"):
        fit(saved.parent, jem(MLP(4, 3, (8, 3))), ckpt_path=saved)


def test_a_checkpoint_of_another_support_is_refused(saved):
    with pytest.raises(ValueError, match=r"'chains' should go on with chains of shape \(2, 2\)"):
        fit(saved.parent, jem(support=Box(-1, 1, (2, 2))), batches(shape=(2, 2)), ckpt_path=saved)


def test_a_smaller_buffer_keeps_every_chain_and_a_larger_one_is_filled(saved):
    chains = torch.load(saved)["ranks"][0]["chains"]["chains"]["x"]
    for size in (12, 60):
        module = jem(chains=ReplayBuffer(size))
        fit(saved.parent, module, ckpt_path=saved)
        assert len(module.chains.x) == max(size, 30)
        assert torch.equal(module.chains.x[:30], chains), "the run was over: no step moved them"


# Data.


def test_a_nan_batch_in_the_middle_stops_before_it_changes_anything(tmp_path):
    data = batches(48)
    data.dataset.tensors[0][20, 1] = torch.nan  # the third of six batches
    module = jem()
    with pytest.raises(ValueError, match="'x' should be finite"):
        fit(tmp_path, module, data)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    assert torch.equal(weights(module), torch.cat([v.flatten() for v in last["state_dict"].values()]))


class Deadly(Dataset[tuple[Tensor, Tensor]]):
    """Ends the process that takes its item 20, once a checkpoint is there."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def __len__(self) -> int:
        return 32

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        while i == 20:
            time.sleep(0.05)
            if self.checkpoint.exists():
                os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(4), torch.tensor(0)


def test_a_loader_worker_that_dies_is_an_error_and_the_last_checkpoint_stands(tmp_path):
    with pytest.raises(RuntimeError, match=r"worker .* (exited unexpectedly|is killed by signal)"):
        fit(tmp_path, jem(), DataLoader(Deadly(tmp_path / "last.ckpt"), 8, num_workers=1))
    assert newest_whole(tmp_path) is not None
    assert 0 < torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] <= 2


# Signals.


class Pressing(MLP):
    """Ctrl-C arrives in the middle of a step, between two gradients of a chain."""

    def __init__(self, times: int) -> None:
        super().__init__(2, 8, (8,))
        self.calls, self.times = 0, times

    def forward(self, x: Tensor) -> Tensor:
        self.calls += x.requires_grad  # four of them move chains in each step, so that the 30th is of step 8
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
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves it off when it exits
    return module


def test_ctrl_c_writes_a_checkpoint_at_the_steps_end_and_the_run_goes_on_bit_for_bit(tmp_path):
    def rest(folder: Path, checkpoint: Path | None) -> JEM:
        L.seed_everything(0, verbose=False)
        module = pressing(0)
        trainer(folder, max_epochs=3).fit(module, Rings(size=64, batch_size=16), ckpt_path=checkpoint)
        return module

    module = press(tmp_path, 1)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["global_step"] == module.global_step == 8, "at no multiple of 5"
    assert not same(final(rest(tmp_path, tmp_path / "last.ckpt")), final(rest(tmp_path, None)))


def test_a_second_ctrl_c_stops_at_once_and_writes_nothing_of_half_a_step(tmp_path):
    press(tmp_path, 2)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 5


def test_ctrl_c_works_as_ever_after_training(tmp_path):
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


def test_ctrl_c_without_anything_that_saves_says_so(tmp_path):
    class Press(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            signal.raise_signal(signal.SIGINT)

    with pytest.warns(UserWarning, match="stops without a checkpoint"), pytest.raises(SystemExit):
        trainer(tmp_path, callbacks=[Press()]).fit(jem(), batches())
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Strategies.


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_strategies_that_shard_weights_are_refused(name):
    strategy = FSDPStrategy() if name == "FSDPStrategy" else type(name, (SingleDeviceStrategy,), {})()
    with pytest.raises(RuntimeError, match=f"'strategy' should keep whole weights on each device, got {name}.*'ddp'"):
        refuse_sharded(strategy)


def test_a_checkpoint_io_of_the_users_own_is_left_alone(tmp_path):
    class Own(checkpoint_io.TorchCheckpointIO):
        pass

    for plugins, kind in (([Own()], Own), ([], AtomicCheckpointIO)):
        t = trainer(tmp_path, plugins=plugins)
        t.fit(jem(), batches())
        assert type(t.strategy.checkpoint_io) is kind


# The table.


def test_every_row_of_the_table_names_a_test_that_exists():
    rows = [r.split("|") for r in (ROOT / "docs" / "faults.md").read_text().splitlines() if r.startswith("| ")][1:]
    assert len(rows) >= 25
    assert len({r[1].strip() for r in rows}) == len(rows), "faults are distinct"
    for row in rows:
        file, name = re.search(r"`(\w+)::(\w+)`", row[3]).groups()
        assert f"def {name}(" in (ROOT / "tests" / f"{file}.py").read_text(), row
