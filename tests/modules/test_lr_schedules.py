"""Schedules per step, per epoch and on a plateau; and the parameters that an optimizer gets."""

import functools
import re

import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, Callback
from lightning.pytorch.cli import LightningCLI, ReduceLROnPlateau as LightningPlateau
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau

from ebm_lightning import JEM, ConditionalEBM
from ebm_lightning.networks import MLP
from tests.helpers import BOX, batches, jem, trainer, weights

SGD = functools.partial(torch.optim.SGD, lr=0.1)
HALVING = functools.partial(ExponentialLR, gamma=0.5)


class Rates(Callback):
    """The learning rate of the first group at every step."""

    def on_train_start(self, trainer, pl_module):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        (None, [0.1, 0.05, 0.025, 0.0125]),
        ({"interval": "step", "frequency": 2}, [0.1, 0.1, 0.05, 0.05]),
        ({"interval": "epoch"}, [0.1, 0.1, 0.05, 0.05]),
    ],
)
def test_a_schedule_is_stepped_as_the_config_says(config, rates, tmp_path):
    spy = Rates()
    module = jem(optimizer=SGD, lr_scheduler=HALVING, lr_scheduler_config=config)
    trainer(tmp_path, max_epochs=2, callbacks=[spy]).fit(module, batches(16))
    assert spy.seen == pytest.approx(rates)


@pytest.mark.parametrize(
    ("scheduler", "config"),
    [
        (functools.partial(ReduceLROnPlateau, factor=0.5, patience=0), {"monitor": "val/nll"}),
        (functools.partial(LightningPlateau, monitor="val/nll", factor=0.5, patience=0), None),
    ],
    ids=["torch", "lightning"],
)
def test_a_plateau_is_stepped_per_epoch_with_its_monitor(scheduler, config, tmp_path):
    """With a loss of 0 nothing improves, so the rate halves at the end of the second epoch."""
    spy = Rates()
    arguments = {"optimizer": SGD, "lr_scheduler": scheduler, "lr_scheduler_config": config}
    module = ConditionalEBM(nn.Linear(4, 3), 3, BOX, **arguments)
    module.conditional_loss = lambda logits, y: 0 * logits.sum()
    trainer(tmp_path, max_epochs=3, callbacks=[spy]).fit(module, batches(8), batches(8))
    assert spy.seen == pytest.approx([0.1, 0.1, 0.05])


def test_a_plateau_without_a_monitor_names_the_remedy(tmp_path):
    module = jem(lr_scheduler=functools.partial(ReduceLROnPlateau, patience=0))
    with pytest.raises(ValueError, match=re.escape("Pass lr_scheduler_config={'monitor': 'val/nll'}")):
        trainer(tmp_path).fit(module, batches())
    remedied = jem(
        lr_scheduler=functools.partial(ReduceLROnPlateau, patience=0), lr_scheduler_config={"monitor": "val/nll"}
    )
    trainer(tmp_path).fit(remedied, batches(), batches())


def test_bad_configs_are_refused():
    for config, message in (
        ({"scheduler": HALVING}, "should have keys among interval, frequency, monitor, strict, name, got 'scheduler'"),
        ({"interval": "batch"}, "should have the interval 'step' or 'epoch', got 'batch'"),
        ("epoch", "should be a dictionary, got 'epoch'"),
    ):
        with pytest.raises(ValueError, match=f"'lr_scheduler_config' {message}"):
            jem(lr_scheduler_config=config)
    with pytest.raises(ValueError, match="'frequency' should be at least 1, got 0"):
        jem(lr_scheduler_config={"frequency": 0})


def test_the_config_reloads_from_a_checkpoint(tmp_path):
    config = {"interval": "epoch", "frequency": 2}
    for arguments in (
        {"lr_scheduler": HALVING, "lr_scheduler_config": config},
        {"lr_scheduler": {"scheduler": HALVING, **config}},
    ):
        t = trainer(tmp_path)
        t.fit(jem(**arguments), batches())
        t.save_checkpoint(tmp_path / "m.ckpt")
        again = JEM.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
        assert again.lr_scheduler_config == config
        assert isinstance(again.configure_optimizers()["lr_scheduler"]["scheduler"], ExponentialLR)


@pytest.mark.filterwarnings("ignore")  # LightningCLI 2.6 uses what jsonargparse 4.53 deprecates
def test_yaml_configures_a_plateau(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("""
model:
  class_path: ebm_lightning.ConditionalEBM
  init_args:
    classifier: {class_path: ebm_lightning.networks.MLP, init_args: {in_features: 2, num_classes: 3, hidden: [8]}}
    num_classes: 3
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.01}}
    lr_scheduler: {class_path: torch.optim.lr_scheduler.ReduceLROnPlateau, init_args: {factor: 0.5}}
    lr_scheduler_config: {monitor: train/loss, frequency: 2}
    batch_keys: [0, 1]
data: {class_path: ebm_lightning.data.Rings, init_args: {size: 512}}
trainer: {accelerator: cpu, max_epochs: 1, logger: false, enable_checkpointing: false, enable_progress_bar: false}
""")
    cli = LightningCLI(args=["fit", f"--config={config}"], save_config_callback=None)
    (schedule,) = cli.trainer.lr_scheduler_configs
    assert isinstance(schedule.scheduler, ReduceLROnPlateau)
    assert (schedule.monitor, schedule.interval, schedule.frequency) == ("train/loss", "epoch", 2)
    assert list(cli.model.batch_keys) == [0, 1]


# Frozen parameters.


class Finetuned(ConditionalEBM):
    """A model with what BackboneFinetuning calls its backbone."""

    @property
    def backbone(self) -> nn.Module:
        return self.classifier[0]


def test_the_learning_rate_of_a_finetuning_callback_is_kept(tmp_path):
    """Mutant: an optimizer of all parameters, to which the callback adds none: they get the rate of the head."""
    seen = []

    class Spy(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            groups = trainer.optimizers[0].param_groups
            seen.append([(len(group["params"]), group["lr"]) for group in groups])

    module = Finetuned(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), 3, BOX, optimizer=SGD)
    before = module.backbone.weight.clone()
    tuning = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=1e-3, should_align=False)
    trainer(tmp_path, callbacks=[tuning, Spy()]).fit(module, batches())
    assert torch.equal(module.backbone.weight, before)
    trainer(tmp_path, max_epochs=2, callbacks=[tuning, Spy()]).fit(module, batches())
    assert seen[-2:] == [[(2, 0.1)], [(2, 0.1), (2, 1e-3)]]
    assert not torch.equal(module.backbone.weight, before)


def test_an_optimizer_gets_no_frozen_parameters():
    net = MLP(4, 3, (8,))
    net.layers[1].requires_grad_(False)
    optimizer = jem(net).configure_optimizers()
    assert len(optimizer.param_groups[0]["params"]) == 2
    with pytest.raises(ValueError, match="'classifier' should have parameters that are not frozen, got none"):
        jem(net.requires_grad_(False)).configure_optimizers()


def test_the_default_is_one_step_per_optimizer_step_of_all_weights(tmp_path):
    """Weights after two steps at rates 0.1 and 0.05 are those of torch by hand."""
    module = ConditionalEBM(nn.Linear(4, 3), 3, BOX, optimizer=SGD, lr_scheduler=HALVING)
    by_hand = nn.Linear(4, 3)
    by_hand.load_state_dict(module.classifier.state_dict())
    trainer(tmp_path).fit(module, batches(16))
    for rate, (x, y) in zip((0.1, 0.05), batches(16), strict=True):
        gradients = torch.autograd.grad(nn.functional.cross_entropy(by_hand(x), y), list(by_hand.parameters()))
        with torch.no_grad():
            for p, g in zip(by_hand.parameters(), gradients, strict=True):
                p -= rate * g
    torch.testing.assert_close(weights(module), weights(by_hand))
