"""Modules in the trainer: training, evaluation, reloading, and errors."""

import copy
import functools
import re
import subprocess
import sys

import pytest
import torch
import torchvision
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import (
    JEM,
    SGLD,
    Box,
    Calibration,
    ConditionalEBM,
    DataInit,
    Euclidean,
    Gaussian,
    OODDetection,
    ReplayBuffer,
    SampleGrid,
    SupportInit,
)
from ebm_lightning.networks import MLP, ConvNet
from ebm_lightning.samplers import Sampler, State
from tests.helpers import BOX, batches, jem, trainer, weights

IMAGES = Box(-1, 1, (3, 64, 64))


NETWORKS = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=5),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=5),
    "vit": lambda: torchvision.models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=5),
    "mlp": lambda: MLP(3 * 64 * 64, 5),
}


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_any_classifier_trains_a_step(name, batch_size, seed, tmp_path):
    """Weights are finite, and batch-norm statistics are those of the data only."""
    net = NETWORKS[name]()
    plain = copy.deepcopy(net).train()
    module = jem(net, num_classes=5, support=IMAGES, sampler=SGLD(1.0, 0.01, 2), optimizer=torch.optim.SGD)
    loader = batches(batch_size, batch_size, (3, 64, 64), 5)
    before = weights(module)
    trainer(tmp_path, max_steps=1).fit(module, loader)
    assert torch.isfinite(weights(module)).all()
    assert not torch.equal(weights(module), before)
    plain(next(iter(loader))[0])
    for (key, ours), expected in zip(net.named_buffers(), plain.buffers(), strict=True):
        assert torch.allclose(ours, expected), key


@pytest.mark.parametrize("name", NETWORKS)
def test_a_wrapped_classifier_predicts_bit_for_bit(name, seed):
    net, x = NETWORKS[name]().eval(), IMAGES.sample(2)
    with torch.no_grad():
        assert torch.equal(ConditionalEBM(net, num_classes=5).eval()(x), net(x))


@pytest.mark.parametrize("weight", ["generative_weight", "joint_weight", "class_conditional_weight"])
@pytest.mark.parametrize("chains", [ReplayBuffer(30), DataInit(), SupportInit()], ids=lambda c: type(c).__name__)
def test_every_term_trains_with_every_kind_of_chains(weight, chains, tmp_path):
    module = jem(chains=copy.deepcopy(chains), **({"generative_weight": 0.0} | {weight: 1.0}))
    t = trainer(tmp_path)
    t.fit(module, batches())
    assert torch.isfinite(t.callback_metrics["train/loss_gen"])
    assert {"train/loss", "train/loss_clf", "train/energy_pos", "train/energy_neg"} <= set(t.callback_metrics)


def test_a_gaussian_reference_trains(tmp_path):
    module = jem(support=Gaussian(0.0, 1.0, (4,)))
    trainer(tmp_path).fit(module, batches())
    assert torch.isfinite(weights(module)).all()


class Counting(MLP):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return super().forward(x)


@pytest.mark.parametrize(
    ("arguments", "passes"),
    [
        ({"generative_weight": 0.0}, 1),
        ({}, 3 + 3),  # three steps; negatives, and the data in train and in eval mode
        ({"joint_weight": 1.0}, 3 + 3),  # with the same chains and passes
        ({"class_conditional_weight": 1.0}, 2 * (3 + 1) + 2),
        ({"conditional_weight": 0.0}, 3 + 2),
    ],
    ids=str,
)
def test_terms_of_weight_zero_cost_nothing(arguments, passes, tmp_path):
    Counting.calls = 0
    trainer(tmp_path).fit(jem(Counting(4, 3, (8,)), **arguments), batches(8))
    assert Counting.calls == passes + 1  # one more looks at the classifier before the first step


def test_generative_weight_zero_is_the_plain_classifier(tmp_path):
    plain = ConditionalEBM(copy.deepcopy(jem().classifier), 3, BOX)
    joint = jem(generative_weight=0.0)
    for module in (plain, joint):
        trainer(tmp_path, max_epochs=3).fit(module, batches())
    assert torch.equal(weights(plain), weights(joint))


def test_fit_validate_test_and_predict_give_the_same_energies(tmp_path, seed):
    class Recording(JEM):
        seen: dict[str, Tensor]

        def on_train_epoch_start(self) -> None:
            with torch.no_grad():
                self.seen = {"fit": self.energy(next(iter(loader))[0])}

    loader = batches(8)
    module = Recording(
        nn.Sequential(MLP(4, 6, (8,)), nn.BatchNorm1d(6), nn.Linear(6, 3)),
        3,
        BOX,
        SGLD(0.1, 0.01, 3),
        ReplayBuffer(30),
        optimizer=functools.partial(torch.optim.SGD, lr=0.0),
    )
    module.eval()  # Lightning does not change the mode
    t = trainer(tmp_path)
    t.fit(module, loader, loader)
    fit = module.seen["fit"]
    val = t.callback_metrics["val/energy"]
    (tested,) = t.test(module, loader, verbose=False)
    (predicted,) = t.predict(module, loader)
    (bare,) = t.predict(module, DataLoader(loader.dataset.tensors[0], 8))
    torch.testing.assert_close(predicted["energy"], fit)
    assert torch.equal(bare["energy"], predicted["energy"])
    assert val == pytest.approx(fit.mean().item(), rel=1e-6)
    assert tested["test/energy"] == pytest.approx(fit.mean().item(), rel=1e-6)


def test_callbacks_do_not_change_training(tmp_path):
    """With dropout and a small buffer, any use of the training randomness or chains changes the weights."""

    def train(callbacks: list) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        box = Box(-1, 1, (1, 4, 4))
        net = nn.Sequential(ConvNet((1, 4, 4), 3, 4), nn.Dropout(0.3), nn.Linear(3, 3))
        module = jem(net, support=box, chains=ReplayBuffer(10))
        loader = batches(shape=(1, 4, 4))
        trainer(tmp_path, max_epochs=3, callbacks=callbacks).fit(module, loader, loader)
        return weights(module), module.chains.x

    bare = train([])
    watched = train(
        [
            SampleGrid(1),
            SampleGrid(1, source="fresh"),
            Calibration(),
            OODDetection(stages=("val", "test")),
        ]
    )
    assert torch.equal(bare[0], watched[0])
    assert torch.equal(bare[1], watched[1])


def test_a_subclass_overrides_one_term(tmp_path):
    class Smoothed(JEM):
        def __init__(self, classifier: nn.Module, smoothing: float = 0.1) -> None:
            super().__init__(classifier, 3, BOX, SGLD(0.1, 0.01, 2), ReplayBuffer(30))
            self.smoothing = smoothing
            self.save_hyperparameters()  # as users of Lightning do

        def conditional_loss(self, logits: Tensor, y: Tensor) -> Tensor:
            return nn.functional.cross_entropy(logits, y, label_smoothing=self.smoothing)

    module = Smoothed(MLP(4, 3, (8,)), 0.2)
    t = trainer(tmp_path)
    t.fit(module, batches())
    t.save_checkpoint(tmp_path / "m.ckpt")
    assert module.hparams["smoothing"] == 0.2
    assert torch.load(tmp_path / "m.ckpt", weights_only=True)["hyper_parameters"]["smoothing"] == 0.2
    assert torch.equal(weights(Smoothed.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)), weights(module))


def test_hyperparameters_reload_with_weights_only(tmp_path):
    module = jem(
        support=Gaussian(torch.zeros(4), 2.0, (4,)),
        optimizer=functools.partial(torch.optim.SGD, lr=0.1),
        lr_scheduler=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=7),
        energy_l2=0.01,
    )
    t = trainer(tmp_path)
    t.fit(module, batches())
    t.save_checkpoint(tmp_path / "m.ckpt")
    again = JEM.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    assert torch.equal(weights(again), weights(module))
    assert again.sampler == module.sampler
    assert again.chains.size == 30
    assert isinstance(again.support, Gaussian)
    assert again.energy_l2 == 0.01
    assert again.configure_optimizers()["optimizer"].defaults["lr"] == 0.1
    assert again.hparams == module.hparams
    assert module.hparams_initial["implied_temperature"] == pytest.approx(5e-4)
    assert "implied_temperature" not in module.hparams
    x = torch.randn(5, 4)
    assert torch.equal(again.energy(x), module.energy(x))


@pytest.mark.slow
def test_a_new_process_reloads(tmp_path):
    t = trainer(tmp_path)
    t.fit(jem(), batches())
    t.save_checkpoint(tmp_path / "m.ckpt")
    code = f"from ebm_lightning import JEM; JEM.load_from_checkpoint({str(tmp_path / 'm.ckpt')!r}, weights_only=True)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_an_unknown_network_has_to_be_passed_on_reload(tmp_path):
    net = nn.Sequential(nn.Linear(4, 3))
    t = trainer(tmp_path)
    t.fit(jem(net), batches())
    t.save_checkpoint(tmp_path / "m.ckpt")
    with pytest.raises(ValueError, match="'classifier' should be given"):
        JEM.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    again = JEM.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True, classifier=nn.Sequential(nn.Linear(4, 3)))
    assert torch.equal(weights(again), weights(net))


def test_a_checkpoint_cannot_build_arbitrary_classes():
    for path in ("os.system", "subprocess.Popen", "ebm_lightning.chains.ReplayBuffer", "no.such"):
        with pytest.raises(ValueError, match="'sampler' should be given"):
            jem(sampler={"class_path": path, "init_args": {}})


def test_one_process_resumes_with_its_chains(tmp_path):
    whole = jem()
    trainer(tmp_path, max_epochs=4).fit(whole, batches())
    first, second = jem(), jem(seed=99)
    t = trainer(tmp_path, max_epochs=2)
    t.fit(first, batches())
    t.save_checkpoint(tmp_path / "m.ckpt")
    trainer(tmp_path, max_epochs=4).fit(second, batches(), ckpt_path=tmp_path / "m.ckpt", weights_only=True)
    assert torch.equal(weights(second), weights(whole))
    assert torch.equal(second.chains.x, whole.chains.x)
    assert torch.equal(second.chains.age, whole.chains.age)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_chains_are_full_precision(precision, tmp_path):
    module = jem()
    trainer(tmp_path, precision=precision).fit(module, batches())
    assert module.chains.x.dtype == torch.float32
    assert not torch.equal(module.chains.x, module.chains.x.bfloat16().float())


def loader(x: Tensor, y: Tensor) -> DataLoader:
    return DataLoader(TensorDataset(x, y), 8)


GOOD_X, GOOD_Y = torch.rand(8, 4) * 2 - 1, torch.arange(8) % 3


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (GOOD_X * 255, GOOD_Y, "'x' should be in the box [-1, 1]"),
        (GOOD_X / 0, GOOD_Y, "'x' should be finite"),
        (GOOD_X[:, :3], GOOD_Y, "'x' should have shape (N, 4), got (8, 3)"),
        (GOOD_X, GOOD_Y + 1, "'y' should be labels from 0 to 2, got 1 to 3"),
        (GOOD_X, GOOD_Y - 1, "'y' should be labels from 0 to 2, got -1 to 1"),
        (GOOD_X, GOOD_Y.float(), "'y' should be integer labels of shape (8,), got torch.float32"),
        (GOOD_X, torch.eye(8)[:, :3].long(), "'y' should be integer labels of shape (8,)"),
    ],
)
@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_bad_batches_stop_before_the_first_step(x, y, message, stage, tmp_path):
    module = jem()
    before = weights(module)
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(trainer(tmp_path), stage)(module, loader(x, y))
    assert torch.equal(weights(module), before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chains": ReplayBuffer(7)}, "'size' should be at least the batch size 8, got a buffer of 7"),
        ({"num_classes": 5}, "'num_classes' should be the number of logits, got 5 for a classifier with 3"),
        ({"classifier": nn.Unflatten(1, (2, 2))}, "'classifier' should map"),
        ({"support": Euclidean((4,))}, "'support' should have finite mass"),
        ({"chains": ReplayBuffer(31), "class_conditional_weight": 1.0}, "'size' should be a multiple of the 3 classes"),
    ],
)
def test_a_bad_setup_stops_before_the_first_step(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer(tmp_path).fit(
            jem(**{"optimizer": lambda p: torch.optim.Adam([nn.Parameter(torch.zeros(1))])} | arguments), batches()
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generative_weight": -1.0}, "'generative_weight' should be 0 or positive, got -1.0"),
        ({"energy_l2": -0.1}, "'energy_l2' should be 0 or positive"),
        ({"generative_weight": 0.0, "conditional_weight": 0.0}, "should be positive, got 0 for all of them"),
        ({"num_classes": 1}, "'num_classes' should be at least 2, got 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        jem(**arguments)


class Exploding(Sampler):
    steps = 1

    def transitions(self, energy, x, support, generator):
        outside = torch.full_like(x, 2.0)  # of the box, where energies are infinite
        yield State(outside, x.new_zeros(len(x)), torch.zeros_like(x))


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    module = jem(sampler=Exploding())
    before = weights(module)
    with pytest.raises(RuntimeError, match=r"not finite at step 0 .*of data and inf of negatives") as error:
        trainer(tmp_path).fit(module, batches())
    assert "energy_l2" in str(error.value)
    assert torch.equal(weights(module), before)


def recorded_batches(module: JEM) -> list[tuple[Tensor, ...]]:
    """The arguments of every call of ``loss_terms``."""
    record, loss_terms = [], module.loss_terms
    module.loss_terms = lambda *batch: record.append(batch) or loss_terms(*batch)
    return record


def test_data_noise_stays_in_the_box(tmp_path):
    module = jem(data_noise=0.5)
    seen = recorded_batches(module)
    trainer(tmp_path).fit(module, batches())
    assert len(seen) == 3
    assert all(BOX.contains(x).all() for x, _ in seen)
    assert not torch.isclose(seen[0][0], next(iter(batches()))[0]).any()


def test_separate_generative_batches_get_the_noise_and_others_do_not(tmp_path):
    module = jem(data_noise=0.5)
    seen = recorded_batches(module)
    trainer(tmp_path).fit(module, CombinedLoader({"clf": batches(), "gen": batches()}))
    plain, (x, _, x_gen, _) = next(iter(batches()))[0], seen[0]
    assert torch.equal(x, plain)
    assert not torch.isclose(x_gen, plain).any()


def test_frozen_layers_stay_frozen(tmp_path):
    net = MLP(4, 3, (8,))
    net.layers[1].requires_grad_(False)
    before = net.layers[1].weight.clone()
    trainer(tmp_path).fit(jem(net), batches())
    assert torch.equal(net.layers[1].weight, before)
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]


@pytest.mark.filterwarnings("ignore")  # LightningCLI 2.6 uses what jsonargparse 4.53 deprecates
def test_lightning_cli_builds_everything(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("""
model:
  class_path: ebm_lightning.JEM
  init_args:
    classifier: {class_path: ebm_lightning.networks.MLP, init_args: {in_features: 2, num_classes: 3, hidden: [8]}}
    num_classes: 3
    support: {class_path: ebm_lightning.Box, init_args: {low: -4, high: 4, shape: [2]}}
    sampler: {class_path: ebm_lightning.SGLD, init_args: {step_size: 0.01, temperature: 1.0, steps: 2}}
    chains: {class_path: ebm_lightning.ReplayBuffer, init_args: {size: 300}}
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.01}}
data: {class_path: ebm_lightning.data.Rings, init_args: {size: 512}}
trainer:
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
""")
    cli = LightningCLI(args=["fit", f"--config={config}"], save_config_callback=None)
    assert cli.model.sampler == SGLD(0.01, temperature=1.0, steps=2)
    assert cli.model.support == Box(-4, 4, (2,))
    cli.trainer.save_checkpoint(tmp_path / "m.ckpt")
    again = JEM.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    assert torch.equal(weights(again), weights(cli.model))


def test_gradient_accumulation_moves_chains_for_every_micro_batch(tmp_path):
    """Each of 3 micro-batches gets new negatives, for one optimizer step."""
    module, calls = jem(), []
    negatives = module.negatives
    module.negatives = lambda *args: calls.append(1) or negatives(*args)
    t = trainer(tmp_path, accumulate_grad_batches=3)
    t.fit(module, batches())
    assert (len(calls), t.global_step) == (3, 1)
