"""Calls of the trainer in any order, and checkpoints."""

import copy
import pickle
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner import Tuner

from ebm_lightning import JEM
from tests.helpers import batches, jem, trainer, weights
from tests.lightning_features.registry import feature

GROUP = "Life cycle and checkpoints"


def saved(folder: Path, **options) -> tuple[JEM, Path]:
    module, run = jem(), trainer(folder)
    run.fit(module, batches())
    run.save_checkpoint(folder / "model.ckpt", **options)
    return module, folder / "model.ckpt"


@feature(GROUP, "`validate`, `test`, `predict` before and after `fit`, with one trainer or several")
def any_order(folder: Path) -> None:
    module, run = jem(), trainer(folder)
    run.validate(module, batches(), verbose=False)
    run.fit(module, batches())
    run.test(module, batches(), verbose=False)
    (first, *_) = run.predict(module, batches())
    assert first["logits"].shape == (8, 3)
    trainer(folder).test(module, batches(), verbose=False)


@feature(GROUP, "`fit` again, with the same trainer or another", "The chains continue.")
def fit_again(folder: Path) -> None:
    module, run = jem(), trainer(folder)
    run.fit(module, batches())
    chains = module.chains.x.clone()
    run.fit_loop.max_epochs = 2
    run.fit(module, batches())
    trainer(folder, max_steps=1).fit(module, batches())
    assert (module.chains.x == chains).any()


@feature(GROUP, '`fit(ckpt_path=...)`, also `"last"`', "Bit-equal on CPU to a run without interruption.")
def resume(folder: Path) -> None:
    whole, resumed = jem(), jem()
    trainer(folder, max_epochs=2).fit(whole, batches())
    saver = ModelCheckpoint(folder, save_last=True)
    trainer(folder, callbacks=[saver], enable_checkpointing=True).fit(jem(), batches())
    again = trainer(
        folder, max_epochs=2, callbacks=[ModelCheckpoint(folder, save_last=True)], enable_checkpointing=True
    )
    again.fit(resumed, batches(), ckpt_path="last", weights_only=True)
    assert torch.equal(weights(whole), weights(resumed))


@feature(GROUP, '`test(ckpt_path="best")`')
def best(folder: Path) -> None:
    saver = ModelCheckpoint(folder, monitor="val/nll")
    run, module = trainer(folder, max_epochs=2, callbacks=[saver], enable_checkpointing=True), jem()
    run.fit(module, batches(), batches())
    run.test(module, batches(), ckpt_path="best", weights_only=True, verbose=False)


@feature(GROUP, "`save_checkpoint` before any `fit`", "Restores to chains that are not set up.")
def early_checkpoint(folder: Path) -> None:
    run = trainer(folder)
    run.validate(jem(), batches(), verbose=False)
    run.save_checkpoint(folder / "early.ckpt")
    trainer(folder).fit(jem(), batches(), ckpt_path=folder / "early.ckpt", weights_only=True)


@feature(GROUP, "`save_checkpoint(weights_only=True)`", "Without chains and random states.")
def bare_weights(folder: Path) -> None:
    module, path = saved(folder, weights_only=True)
    assert "ranks" not in torch.load(path, weights_only=True)
    assert torch.equal(weights(JEM.load_from_checkpoint(path)), weights(module))


@feature(GROUP, "`load_from_checkpoint`", "The chains are there: `JEM.load_from_checkpoint(path).chains.x`.")
def load(folder: Path) -> None:
    module, path = saved(folder)
    assert torch.equal(JEM.load_from_checkpoint(path, weights_only=True).chains.x, module.chains.x)


@feature(GROUP, "`load_from_checkpoint(path, argument=...)`", "A network that is not of this library has to be passed.")
def load_with_arguments(folder: Path) -> None:
    _, path = saved(folder)
    assert JEM.load_from_checkpoint(path, energy_l2=0.5).energy_l2 == 0.5


@feature(
    GROUP, "`Tuner.lr_find`", "Leaves weights and chains as they were. Needs an attribute `lr`, or `update_attr=False`."
)
def lr_find(folder: Path) -> None:
    module, run = jem(), trainer(folder)
    before = weights(module)
    Tuner(run).lr_find(module, batches(), num_training=5, update_attr=False)
    assert torch.equal(weights(module), before)
    run.fit(module, batches())


@feature(
    GROUP,
    "`Tuner.scale_batch_size`",
    "A batch can hold at most `chains.size` inputs. Lightning wants a `val_dataloader`.",
)
def scale_batch_size(folder: Path) -> None:
    class Data(L.LightningDataModule):
        batch_size = 2

        def train_dataloader(self):
            return batches(24, self.batch_size)

        val_dataloader = train_dataloader

    data = Data()
    Tuner(trainer(folder)).scale_batch_size(jem(), datamodule=data, max_trials=2, steps_per_trial=1)
    assert data.batch_size > 2


@feature(GROUP, "`copy.deepcopy`, `pickle`")
def copies(folder: Path) -> None:
    module, _ = saved(folder)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied.chains.x, module.chains.x)
        trainer(folder, max_steps=1).fit(copied, batches())


@feature(GROUP, "`freeze`, `unfreeze`")
def freeze(folder: Path) -> None:
    module, _ = saved(folder)
    module.freeze()
    trainer(folder).test(module, batches(), verbose=False)
    module.unfreeze()
    trainer(folder).fit(module, batches())


@feature(GROUP, "`LightningCLI`: `fit`, `validate`, `test`, `predict` with `--ckpt_path`", "`ebm-lightning` is one.")
def command_line(folder: Path) -> None:
    from lightning.pytorch.cli import LightningCLI

    (folder / "run.yaml").write_text(CONFIG.replace("FOLDER", str(folder)))
    LightningCLI(args=["fit", f"--config={folder / 'run.yaml'}"], save_config_callback=None)
    options = [f"--config={folder / 'run.yaml'}", f"--ckpt_path={next(folder.rglob('*.ckpt'))}"]
    LightningCLI(args=["test", *options], save_config_callback=None)


CONFIG = """
model:
  class_path: ebm_lightning.JEM
  init_args:
    classifier: {class_path: ebm_lightning.networks.MLP, init_args: {in_features: 2, num_classes: 3, hidden: [8]}}
    num_classes: 3
    support: {class_path: ebm_lightning.Box, init_args: {low: -4, high: 4, shape: [2]}}
    sampler: {class_path: ebm_lightning.SGLD, init_args: {step_size: 0.01, temperature: 1.0, steps: 2}}
    chains: {class_path: ebm_lightning.ReplayBuffer, init_args: {size: 300}}
data: {class_path: ebm_lightning.data.Rings, init_args: {size: 512}}
trainer:
  accelerator: cpu
  max_steps: 2
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: FOLDER
"""
