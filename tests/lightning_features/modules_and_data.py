"""What users override, and forms of data."""

import functools
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader, grad_norm
from torch.utils.data import DataLoader, IterableDataset

from ebm_lightning import JEM, SGLD, Box, ReplayBuffer
from ebm_lightning.data import Rings, resumable_loader
from ebm_lightning.networks import MLP
from tests.helpers import BOX, batches, jem, trainer, weights
from tests.lightning_features.registry import feature

GROUP = "Modules and data"


def subclass(**members) -> JEM:
    """A JEM with some methods overridden."""
    torch.manual_seed(0)
    return type("Mine", (JEM,), members)(MLP(4, 3, (8,)), 3, BOX, SGLD(0.1, 0.01, 3), ReplayBuffer(30))


@feature(GROUP, "`LightningDataModule`")
def data_module(folder: Path) -> None:
    module = JEM(MLP(2, 3, (8,)), 3, Box(-4, 4, (2,)), SGLD(0.1, 0.01, 2), ReplayBuffer(600))
    trainer(folder, max_steps=2).fit(module, datamodule=Rings(size=512))


@feature(GROUP, "`train_dataloader` and `val_dataloader` of the module")
def own_loaders(folder: Path) -> None:
    trainer(folder).fit(subclass(train_dataloader=lambda self: batches(), val_dataloader=lambda self: batches()))


@feature(GROUP, "`CombinedLoader`", 'Parts `"clf"` and `"gen"`: the second, with or without labels, is for log p(x).')
def combined(folder: Path) -> None:
    inputs = DataLoader(batches().dataset.tensors[0], 8)
    trainer(folder).fit(jem(), CombinedLoader({"clf": batches(), "gen": inputs}))


@feature(GROUP, "`IterableDataset`", "If it has no end, fits before training need an integer `limit_train_batches`.")
def iterable(folder: Path) -> None:
    class Endless(IterableDataset):
        def __iter__(self):
            while True:
                yield torch.rand(4) * 2 - 1, torch.randint(3, ())

    trainer(folder, limit_train_batches=2).fit(jem(), DataLoader(Endless(), 8))


@feature(GROUP, "Several validation or test loaders", "Each has its own metrics: `val/accuracy/dataloader_idx_1`.")
def several_loaders(folder: Path) -> None:
    run = trainer(folder)
    run.validate(jem(), [batches(), batches(16)], verbose=False)
    assert "val/accuracy/dataloader_idx_1" in run.callback_metrics


@feature(GROUP, "Batches as tuples, dictionaries or inputs alone", "`batch_keys` names other keys.")
def dictionaries(folder: Path) -> None:
    x, y = batches().dataset.tensors
    data = DataLoader([{"pixel_values": a, "labels": b} for a, b in zip(x, y, strict=True)], 8)
    trainer(folder).fit(jem(), data, data)
    trainer(folder).predict(jem(), DataLoader(x, batch_size=8))


@feature(GROUP, "Loaders that resume within an epoch", "`ebm_lightning.data.resumable_loader`, or one of torchdata.")
def stateful_loader(folder: Path) -> None:
    run = trainer(folder, max_steps=2)
    run.fit(jem(), resumable_loader(batches().dataset, 8))
    run.save_checkpoint(folder / "model.ckpt")
    resumed = trainer(folder, max_steps=3)
    loader = resumable_loader(batches().dataset, 8)
    resumed.fit(jem(), loader, ckpt_path=folder / "model.ckpt", weights_only=True)
    assert resumed.current_epoch == 1 or resumed.global_step == 3


@feature(GROUP, "`configure_optimizers`")
def own_optimizer(folder: Path) -> None:
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 1e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    trainer(folder).fit(subclass(configure_optimizers=configure_optimizers), batches())


@feature(GROUP, "`ReduceLROnPlateau`, schedules per step or epoch", '`lr_scheduler_config={"monitor": "val/nll"}`.')
def schedules(folder: Path) -> None:
    plateau = functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0)
    module = jem(lr_scheduler=plateau, lr_scheduler_config={"monitor": "val/nll"})
    trainer(folder, max_epochs=2).fit(module, batches(), batches())
    step = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1)
    trainer(folder).fit(jem(lr_scheduler=step, lr_scheduler_config={"interval": "epoch"}), batches())


@feature(GROUP, "Optimizers with a closure: `LBFGS`", "Every evaluation of the closure moves the chains.")
def closures(folder: Path) -> None:
    optimizer = functools.partial(torch.optim.LBFGS, lr=0.01, max_iter=2)
    module = jem(optimizer=optimizer)
    trainer(folder, max_steps=2).fit(module, batches())
    assert torch.isfinite(weights(module)).all()


@feature(GROUP, "Manual optimization", "`training_step` of the class returns the loss.")
def manual(folder: Path) -> None:
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(JEM.training_step(self, batch, batch_idx))
        optimizer.step()

    module = subclass(automatic_optimization=False, training_step=training_step)
    before = weights(module)
    trainer(folder).fit(module, batches())
    assert not torch.equal(weights(module), before)


@feature(GROUP, "Hooks: `on_before_optimizer_step`, `configure_gradient_clipping`, `on_after_batch_transfer`")
def hooks(folder: Path) -> None:
    seen = []

    def on_before_optimizer_step(self, optimizer):
        seen.append(grad_norm(self, 2)["grad_2.0_norm_total"])

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, 0.1, "norm")

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] * 0.9, batch[1]]

    overridden = (on_before_optimizer_step, configure_gradient_clipping, on_after_batch_transfer)
    trainer(folder).fit(subclass(**{hook.__name__: hook for hook in overridden}), batches())
    assert len(seen) == 3


@feature(GROUP, "Metrics of torchmetrics, `self.log`, in overridden steps")
def metrics(folder: Path) -> None:
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        outputs = JEM.validation_step(self, batch, batch_idx, dataloader_idx)
        self.log("val/top2", outputs["logits"].topk(2).values.mean())
        return outputs

    run = trainer(folder)
    run.fit(subclass(validation_step=validation_step), batches(), batches())
    assert "val/top2" in run.callback_metrics


@feature(GROUP, "`example_input_array`")
def example(folder: Path) -> None:
    module = jem()
    module.example_input_array = BOX.sample(2)
    trainer(folder, enable_model_summary=True).fit(module, batches())


@feature(GROUP, "`torch.compile` of the classifier", "Or `compute=Compute(compile=True)`, for chains alone.")
def compiled(folder: Path) -> None:
    trainer(folder).fit(jem(torch.compile(MLP(4, 3, (8,)), backend="eager")), batches())


@feature(GROUP, "`Fabric` and hand-written loops", "Call `module.start_chains()` before the first `compute_loss`.")
def fabric(folder: Path) -> None:
    module = jem()
    module.start_chains()
    run = L.Fabric(accelerator="cpu", devices=1)
    optimizer = torch.optim.Adam(module.parameters())
    for x, y in batches():
        loss, _ = module.compute_loss(x, y)
        optimizer.zero_grad()
        run.backward(loss)
        optimizer.step()
    assert torch.isfinite(weights(module)).all()
