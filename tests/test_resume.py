"""A run that stopped anywhere and goes on ends as if it had not: weights, chains, generators and logged figures.

Mutants that these tests kill: the chains' generator, the ages, the global state of PyTorch, of NumPy or of Python not
saved; the random state restored only before the loaders draw, or only after; the sampler's epoch or seed not saved;
loaders not marked as finished at an epoch's end; a validation that is due not owed; averaged weights left in their
callback.
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
from tests.runs import STEPS, final, noisy, run, same

ROOT = Path(__file__).parent.parent
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
def test_every_checkpoint_is_gone_on_from_bit_for_bit(settings, tmp_path):
    """From each step's and each epoch's checkpoint, with batch norm, dropout, averaged weights and a schedule."""
    whole, rows = run(tmp_path, **settings)
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) > 5
    for path in checkpoints:
        step = torch.load(path, weights_only=True)["global_step"]
        resumed, later = run(tmp_path, path, **settings)
        assert not same(final(resumed), final(whole)), path.name
        # The epoch's own checkpoint comes after the figures of its last step, all others before the validation's.
        due = {
            key: value for key, value in rows.rows.items() if key[1] >= step or ("val/" in key[0] and key in later.rows)
        }
        assert {k: v for k, v in later.rows.items() if k[0] != "epoch"} == {
            k: v for k, v in due.items() if k[0] != "epoch"
        }, path.name


def test_a_validation_that_a_checkpoint_came_before_is_made_up_for(tmp_path):
    _, rows = run(tmp_path)
    _, later = run(tmp_path, tmp_path / "step=4.ckpt")
    assert later.rows["val/nll", 3] == rows.rows["val/nll", 3]


class Shuffled(Rings):
    """A user's own loader, as torchdata's documentation has it."""

    def train_dataloader(self) -> DataLoader:
        return StatefulDataLoader(self.train, self.batch_size, shuffle=True, drop_last=True)


def test_a_torchdata_loader_of_a_user_is_exact_within_an_epoch_and_skips_none_at_its_end(tmp_path):
    """Its order comes from a generator that Lightning does not restore between epochs, unlike this library's."""
    whole, rows = run(tmp_path, data=Shuffled(size=64, batch_size=16))
    for step in (3, 6):
        resumed, _ = run(tmp_path, tmp_path / f"step={step}.ckpt", data=Shuffled(size=64, batch_size=16))
        assert not same(final(resumed), final(whole)), step
    for name in ("step=4", "end-epoch=0"):
        _, later = run(tmp_path, tmp_path / f"{name}.ckpt", data=Shuffled(size=64, batch_size=16))
        assert {k for k in rows.rows if k[1] >= 4} <= later.rows.keys(), name


@pytest.mark.parametrize("workers", [0, 2])
def test_data_order_is_resumed_with_workers_and_without(workers, tmp_path):
    """In the second epoch, from its middle and from its start."""

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


def test_epochs_have_orders_of_their_own_and_seeds_too():
    def order(seed: int, epoch: int) -> list[int]:
        torch.manual_seed(seed)
        loader = resumable_loader(TensorDataset(torch.arange(40)), 4)
        loader.sampler.set_epoch(epoch)
        return torch.cat([b[0] for b in loader]).tolist()

    orders = [order(0, 0), order(0, 1), order(1, 0)]
    assert order(0, 0) == orders[0]
    assert len({tuple(o) for o in orders}) == 3


def test_digits_resume_with_the_noise_of_dequantisation(tmp_path):
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


def test_killed_at_a_random_step_twice_it_ends_as_if_it_had_not(tmp_path):
    """SIGKILL; the last checkpoint found by itself; the log of all three processes is that of one."""
    draw = random.Random(int(os.environ.get("TEST_SEED", "0")))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start(whole).communicate(timeout=120)
    for step in sorted(draw.sample(range(3, STEPS), 2)):
        process = start(killed)
        wait_for(killed / "rows", f'"train/loss", {step - 1},')
        time.sleep(0.15 * draw.random())
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
        assert not (killed / "final.pt").exists()
    start(killed).communicate(timeout=120)
    a, b = (torch.load(folder / "final.pt", weights_only=True) for folder in (whole, killed))
    assert not same(a, b)
    assert figures(killed) == figures(whole)


def start(folder: Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.runs", str(folder)]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 120
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline, f"{text} never came"
        time.sleep(0.01)


def figures(folder: Path) -> set[str]:
    """Lines as a set: steps after the last checkpoint are logged by both processes, with equal figures."""
    return set((folder / "rows").read_text().splitlines())


def test_a_loaded_model_goes_on_with_its_chains_in_a_run_of_its_own(tmp_path):
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


def test_a_checkpoint_without_chains_says_that_they_start_anew(tmp_path):
    plain = jem(generative_weight=0.0)
    t = trainer(tmp_path)
    t.fit(plain, batches())
    t.save_checkpoint(tmp_path / "m.ckpt")
    with pytest.warns(UserWarning, match="holds no 'chains': they start anew"):
        trainer(tmp_path, max_epochs=2).fit(jem(), batches(), ckpt_path=tmp_path / "m.ckpt")


@pytest.mark.parametrize("compiled", [True, False])
def test_checkpoints_of_compiled_classifiers_load_into_plain_ones_and_back(compiled, tmp_path):
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
