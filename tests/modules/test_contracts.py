"""What users bring: outputs of classifiers, precision, labels, kinds of arguments. Taken, or named at the start.

Mutants killed: ``.logits`` not taken, or taken with other digits; a check that passes log-probabilities; a remedy that
does not work; a check that changes batch-norm statistics or random states.
"""

import copy
import dataclasses
import functools
import re

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ebm_lightning import HMC, JEM, SGLD, Box, ClassGaussians, ConditionalEBM, JointEnergy, ReplayBuffer, ais
from ebm_lightning.evaluation.scores import log_density
from ebm_lightning.networks import MLP
from tests.helpers import BOX, batches, jem, trainer, weights


@dataclasses.dataclass
class ModelOutput:
    logits: Tensor


@dataclasses.dataclass
class Other:
    scores: Tensor


class Returns(nn.Module):
    """A network that returns its logits in another form."""

    def __init__(self, form, net: nn.Module | None = None):
        super().__init__()
        self.net = net or MLP(4, 3, (8,))
        self.form = form

    def forward(self, x):
        return self.form(self.net(x))


@pytest.mark.parametrize("form", [ModelOutput, lambda z: {"logits": z, "loss": None}], ids=["attribute", "entry"])
def test_logits_are_taken_bit_for_bit(form, tmp_path):
    net = Returns(form)
    module = jem(net)
    trainer(tmp_path).fit(module, batches(), batches())
    x = BOX.sample(5)
    assert torch.equal(module(x), net.net(x))
    assert torch.equal(module.energy.logits(x), net.net(x))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            lambda z: (z, z),
            "to logits (8, K), got a tuple of 2 from Returns. Wrap it in a module whose forward returns",
        ),
        (lambda z: [z], "got a list of 1"),
        (
            Other,
            "got a Other from Returns. Wrap it in a module whose forward returns the logits, or name them 'logits'.",
        ),
        (lambda z: {"scores": z}, "got a dict with scores"),
        (lambda z: None, "got None from Returns. Its forward returns nothing"),
        (lambda z: z.argmax(1), "of floating point, got torch.int64. Return logits, not classes."),
        (lambda z: z[:, 0], "got one logit for each x, (8,). A binary classifier"),
        (lambda z: z[:, :1], "for a classifier with 1. A binary classifier"),
        (lambda z: z[:, :, None], "got (8, 3, 1). Flatten or pool its output."),
        (lambda z: z.log_softmax(1), "got log-probabilities, with a logsumexp of 0 for every x"),
        (lambda z: z.softmax(1), "got probabilities whose rows sum to 1. Drop the last layer of Returns"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "form",
)
@pytest.mark.parametrize("kind", ["JEM", "ConditionalEBM"])
def test_other_outputs_are_named(form, message, kind, tmp_path):
    net = Returns(form)
    module = jem(net) if kind == "JEM" else ConditionalEBM(net, 3)
    before = weights(module)
    with pytest.raises(ValueError, match=re.escape(message)):
        (trainer(tmp_path).fit if kind == "JEM" else trainer(tmp_path).validate)(module, batches())
    assert torch.equal(weights(module), before)


def test_a_sigmoid_is_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="ends in a Sigmoid"):
        trainer(tmp_path).fit(jem(nn.Sequential(MLP(4, 3, (8,)), nn.Sigmoid())), batches())


def test_gaussians_and_constant_heads_pass(tmp_path):
    zero = MLP(4, 3, (8,))
    nn.init.zeros_(zero.layers[-1].weight)
    nn.init.zeros_(zero.layers[-1].bias)
    trainer(tmp_path).fit(jem(zero), batches())


def test_one_logit_has_a_remedy_that_works():
    z = torch.randn(9, 1)
    torch.testing.assert_close(torch.cat([-z, z], 1).div(2).softmax(1)[:, 1:], z.sigmoid())
    with pytest.raises(ValueError, match=re.escape("torch.cat([-z, z], 1) / 2")):
        JEM(MLP(4, 1, (8,)), 1, BOX)


def test_auxiliary_heads_have_a_remedy_that_works(tmp_path):
    box = Box(-1, 1, (3, 32, 32))
    googlenet = functools.partial(torchvision.models.googlenet, num_classes=3, init_weights=False)
    run = functools.partial(trainer, tmp_path, max_steps=1)
    data = batches(2, 2, (3, 32, 32))
    with pytest.raises(ValueError, match=r"GoogLeNetOutputs of 3 from GoogLeNet\. Build it with aux_logits=False"):
        run().fit(jem(googlenet(), support=box, sampler=SGLD.jem(1)), data)
    run().fit(jem(googlenet(aux_logits=False), support=box, sampler=SGLD.jem(1)), data)


class Centers(MLP):
    """Subtracts a mean in place."""

    def forward(self, x):
        return super().forward(x.sub_(0.5))


@pytest.mark.parametrize(
    "net", [Centers(4, 3), nn.Sequential(nn.ReLU(inplace=True), MLP(4, 3))], ids=["subtraction", "ReLU"]
)
@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_operations_in_place_are_named(net, stage, tmp_path):
    data = batches()
    before = data.dataset.tensors[0].clone()
    with pytest.raises(ValueError, match="should not change its input, which an operation in place of"):
        getattr(trainer(tmp_path), stage)(jem(net), data)
    assert torch.equal(data.dataset.tensors[0], before)


def test_operations_in_place_are_named_in_chains():
    energy = JointEnergy(Centers(4, 3), BOX)
    for call in (lambda x: energy(x), lambda x: SGLD.jem(1)(energy, x, support=BOX)):
        with pytest.raises(ValueError, match="in place of Centers"):
            call(BOX.sample(3))


class Frozen(nn.Module):
    def __init__(self, remedy: bool = False):
        super().__init__()
        self.backbone, self.head, self.remedy = MLP(4, 6, (8,)), nn.Linear(6, 3), remedy
        self.backbone.requires_grad_(not remedy)

    def forward(self, x):
        if self.remedy:
            return self.head(self.backbone(x))
        with torch.no_grad():
            features = self.backbone(x)
        return self.head(features)


def test_a_backbone_without_gradient_has_a_remedy_that_works(tmp_path):
    with pytest.raises(ValueError, match=r"'classifier' should be differentiable in x.*requires_grad_\(False\)"):
        trainer(tmp_path).fit(jem(Frozen()), batches())
    trainer(tmp_path).fit(jem(Frozen(remedy=True)), batches())
    trainer(tmp_path).fit(ConditionalEBM(Frozen(), 3), batches())  # without chains it is fine


def test_the_look_at_the_classifier_changes_nothing(tmp_path):
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), MLP(4, 3, (8,)))
    module = ConditionalEBM(copy.deepcopy(net), 3, optimizer=functools.partial(torch.optim.SGD, lr=0.0))
    torch.manual_seed(0)
    trainer(tmp_path, max_steps=1).fit(module, batches())
    net(next(iter(batches()))[0])
    assert torch.equal(module.classifier[0].running_mean, net[0].running_mean)
    assert all(part.training for part in module.classifier.modules())


# Precision and types.


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_half_precision_of_chains_is_refused(precision, tmp_path):
    with pytest.raises(RuntimeError, match=f"'precision' should be bf16-mixed or 32-true .* got {precision}"):
        trainer(tmp_path, precision=precision).fit(jem(), batches())
    trainer(tmp_path, precision=precision).validate(jem(), batches(), verbose=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_data_of_any_precision_train(dtype, precision, tmp_path):
    x, y = batches().dataset.tensors
    data = DataLoader(TensorDataset(x.to(dtype), y), 8)
    run, module = trainer(tmp_path, precision=precision), jem()
    run.fit(module, data, data)
    run.test(module, data, verbose=False)
    run.predict(module, data)
    assert module.chains.x.dtype in (torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16, torch.bool])
def test_labels_of_any_integer_type_train(dtype, tmp_path):
    x, y = batches(classes=2).dataset.tensors
    data = DataLoader(TensorDataset(x, y.to(dtype)), 8)
    module = jem(MLP(4, 2, (8,)), num_classes=2, class_conditional_weight=1.0, joint_weight=1.0)
    run = trainer(tmp_path)
    run.fit(module, data, data)
    run.test(module, data, verbose=False)
    assert torch.isfinite(weights(module)).all()


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (3, r"Use torch.tensor\(\[3\]\) for one label of all"),
        (torch.tensor([3]), "should be labels from 0 to 2, got 3 to 3"),
        (torch.tensor([-1, 0]), "should be labels from 0 to 2, got -1 to 0"),
        (torch.tensor([1.0]), "should be integer labels, got torch.float32"),
        (torch.zeros(2, 3), "turn one-hot labels into classes"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "form",
)
def test_labels_of_energies_are_checked(y, message):
    with pytest.raises(ValueError, match=message):
        jem().energy(BOX.sample(2), y)


@pytest.mark.parametrize(
    "run",
    [
        lambda energy: HMC(0.1)(energy, torch.randn(5, 4)),
        lambda energy: SGLD(0.1)(energy, torch.randn(5, 4)),
        lambda energy: ais(energy, BOX, num_chains=50),
        lambda energy: log_density(energy, torch.randn(5, 4)),
    ],
    ids=["HMC", "SGLD", "ais", "score"],
)
@pytest.mark.parametrize(
    ("energy", "remedy"),
    [
        (lambda x: x.square().sum(), "Sum over the components of each x"),
        (lambda x: x.square().sum(1, keepdim=True), "Call .squeeze(1) on it."),
        (jem(), "Of a model pass its energy, model.energy."),
    ],
    ids=["scalar", "column", "model"],
)
def test_energies_of_another_shape_are_named(run, energy, remedy):
    with pytest.raises(ValueError, match=re.escape(remedy)):
        run(energy)


# Arguments.

ADAM = torch.optim.Adam(nn.Linear(1, 1).parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"sampler": SGLD},
            r"'sampler' should be a Sampler or None, got the class SGLD. Make an instance: SGLD\(...\)",
        ),
        ({"sampler": ReplayBuffer(9), "chains": SGLD()}, "'sampler' should be a Sampler or None, got a ReplayBuffer"),
        ({"chains": 1000}, "'chains' should be a Chains or None, got 1000 of type int"),
        ({"compute": "bf16"}, "'compute' should be a Compute or None, got 'bf16' of type str"),
        ({"adaptation": True}, "'adaptation' should be an Adaptation or None"),
        ({"coordinates": BOX}, "'coordinates' should be a Coordinates or None"),
        ({"support": (-1, 1)}, "'support' should be a Support or None"),
        ({"support": Box}, "got the class Box. Make an instance"),
        ({"classifier": MLP}, "'classifier' should be a Module or None, got the class MLP"),
        ({"classifier": lambda x: x}, "'classifier' should be a Module or None, got a function"),
        ({"optimizer": ADAM}, r"got an instance of Adam. Pass functools.partial\(Adam, ...\)"),
        ({"optimizer": "adam"}, r"got 'adam'. Pass functools.partial\(CLASS, ...\), such as functools.partial\(torch"),
        ({"optimizer": 1e-3}, "'optimizer' should be a class or function that makes one, got 0.001"),
        ({"lr_scheduler": torch.optim.lr_scheduler.StepLR(ADAM, 1)}, "got an instance of StepLR"),
        ({"energy_l2": "0.1"}, "'energy_l2' should be a number, got '0.1'"),
        ({"seed": 1.5}, "'seed' should be an integer or None, got 1.5"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "form",
)
def test_kinds_of_arguments_are_checked_on_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        jem(**arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReplayBuffer(1e2), "'size' should be an integer, got 100.0. Write 100."),
        (lambda: ReplayBuffer(10, initial=ClassGaussians), "'initial' should be a Density or None, got the class"),
        (lambda: Box(-1, 1, 64), r"'shape' should be a tuple of positive integers, got 64. Write \(64,\)."),
        (lambda: Box("-1", 1, (4,)), "'low' should be a number, got '-1'"),
        (lambda: Box(-torch.ones(4), 1, (4,)), "A box has the same walls in all components"),
        (lambda: JointEnergy(lambda x: x, BOX), "'classifier' should be a Module, got a function"),
    ],
)
def test_kinds_are_checked_in_the_core(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Data.


def test_data_that_fill_a_part_of_the_box_are_named_once(tmp_path):
    x, y = batches().dataset.tensors
    data = DataLoader(TensorDataset((x + 1) / 2, y), 8)
    message = r"the box \[-1, 1\], and the first batch has values in \[0.*% of it.*Use x \* 2 - 1.*Box\(0, 1, \(4,\)\)"
    with pytest.warns(UserWarning, match=message) as warned:
        trainer(tmp_path).fit(jem(), data, data)
    assert sum("first batch" in str(w.message) for w in warned) == 1
    trainer(tmp_path).fit(jem(support=Box(0, 1, (4,))), data, data)


@pytest.mark.parametrize(
    ("low", "high", "remedy"),
    [
        (-1.07, 1.006, "use x.clamp(-1, 1)"),
        (-2.1, 2.6, "ImageNet"),
        (0, 255, "x / 255 * 2 - 1"),
        (-9, 3, "widen the box"),
    ],
)
def test_data_outside_the_box_have_a_remedy(low, high, remedy):
    with pytest.raises(ValueError, match=re.escape(remedy)):
        Box(-1, 1, (2,)).check(torch.tensor([[float(low), float(high)]]))


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.rand(4) * 2 - 1, torch.randint(3, ())


def test_a_fit_to_an_endless_loader_respects_the_limit(tmp_path, monkeypatch):
    module = jem(chains=ReplayBuffer(30, initial=ClassGaussians()))
    trainer(tmp_path, limit_train_batches=5).fit(module, DataLoader(Endless(), 8))
    assert module.chains.initial.counts.sum() == 40
    unfitted = jem(chains=ReplayBuffer(30, initial=ClassGaussians()))
    monkeypatch.setattr("ebm_lightning.modules.training_data.MANY_BATCHES", 20)
    with pytest.raises(ValueError, match=r"has read 20 batches and seen no end\. Set Trainer"):
        trainer(tmp_path, max_steps=2).fit(unfitted, DataLoader(Endless(), 8))


def test_a_class_that_fills_a_batch_enlarges_the_buffer(tmp_path):
    x, y = batches().dataset.tensors
    data = DataLoader(TensorDataset(x, y * 0 + 1), 8)
    module = jem(class_conditional_weight=1.0, chains=ReplayBuffer(9))
    with pytest.warns(
        UserWarning, match=r"gives each of 3 classes 3 chains, and a batch has 8 of one class: .* 9 to 24"
    ):
        trainer(tmp_path).fit(module, data)
    assert len(module.class_chains.x) == module.class_chains.size == 24


class LateCheck(JEM):
    """Checks the first batch only, as on an accelerator."""

    def _checked(self, pair, batch_idx, *, unlabeled):
        return super()._checked(pair, batch_idx, unlabeled=unlabeled) if batch_idx == 0 else pair


@pytest.mark.parametrize("bad", [2.0, torch.nan])
def test_a_late_bad_batch_is_named(bad, tmp_path):
    data = batches()
    data.dataset.tensors[0][20, 1] = bad
    module = LateCheck(MLP(4, 3, (8,)), 3, BOX, SGLD(0.1, 0.01, 2), ReplayBuffer(30))
    with pytest.raises(ValueError, match="'x' should be"):
        trainer(tmp_path).fit(module, data)
