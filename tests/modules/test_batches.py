"""Batches of any form, wherever one is read; soft labels; several loaders."""

import functools
import re
from collections import UserDict, namedtuple

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.v2 import MixUp

from ebm_lightning import Calibration, ClassGaussians, ClassificationRBM, ConditionalEBM, Quantiles, ReplayBuffer
from ebm_lightning.modules.batches import X_KEYS, Y_KEYS, split_batch
from ebm_lightning.networks import MLP
from tests.helpers import BOX, batches, jem, trainer, weights

X, Y = torch.rand(24, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1, torch.arange(24) % 3
Pair = namedtuple("Pair", ["images", "species"])


def loader(form, batch_size: int = 8):
    """X and Y in batches, each made by ``form(x, y)``."""

    def collate(rows: list):
        x, y = zip(*rows, strict=True)
        return form(torch.stack(x), torch.stack(y))

    return DataLoader(TensorDataset(X, Y), batch_size, collate_fn=collate)


FORMS = {
    "tuple": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "namedtuple": Pair,
    "Hugging Face": lambda x, y: UserDict(pixel_values=x, labels=y, pixel_mask=None),
    "dictionary": lambda x, y: {"image": x, "label": y},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_a_batch_gives_the_same_run(form, tmp_path):
    """Training, validation, fits of coordinates and of densities, callbacks, test and predictions read it."""

    def run(form):
        module = jem(
            chains=ReplayBuffer(30, initial=ClassGaussians(ridge=0.1)),
            support=None,
            coordinates=Quantiles(BOX, 4),
        )
        t = trainer(tmp_path, callbacks=[Calibration()])
        t.fit(module, loader(form), loader(form))
        metrics = dict(t.callback_metrics) | t.test(module, loader(form), verbose=False)[0]
        predicted = torch.cat([part["energy"] for part in t.predict(module, loader(form))])
        return weights(module), metrics, predicted

    expected, found = run(FORMS["tuple"]), run(form)
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]
    assert torch.equal(found[2], expected[2])
    assert {"val/accuracy", "val/ece", "test/accuracy"} <= set(found[1])


@pytest.mark.parametrize(
    ("form", "keys"),
    [
        (lambda x, y: {"photo": x, "species": y, "image": "a name"}, ("photo", "species")),
        (lambda x, y: (y, "path", x), (2, 0)),
    ],
    ids=["dictionary", "tuple"],
)
def test_batch_keys_say_where_inputs_and_labels_are(form, keys, tmp_path):
    plain, named = jem(), jem(batch_keys=keys)
    for module, data in ((plain, loader(FORMS["tuple"])), (named, loader(form))):
        t = trainer(tmp_path)
        t.fit(module, data, data)
    assert torch.equal(weights(plain), weights(named))
    t.save_checkpoint(tmp_path / "m.ckpt")
    again = type(named).load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    assert tuple(again.batch_keys) == keys


def test_every_known_key_is_taken():
    for x_key in X_KEYS:
        for y_key in Y_KEYS:
            x, y = split_batch({x_key: X, y_key: Y})
            assert x is X
            assert y is Y
        assert split_batch({x_key: X})[1] is None


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        ({"pixels": X, "labels": Y}, "a dictionary of pixels (Tensor), labels (Tensor)"),
        ({"image": X, "pixel_values": X, "label": Y}, "a dictionary of image (Tensor), pixel_values"),
        ({"image": X, "species": Y}, "a dictionary of image (Tensor), species (Tensor)"),
        ({"image": X, "label": Y, "labels": Y}, "a dictionary of image"),
        ((X, Y, Y), "a tuple of 3: Tensor, Tensor, Tensor"),
        ((X, Y.tolist()), "a tuple of 2: Tensor, list"),
        (({"image": X}, Y), "a tuple of 2: dict, Tensor"),
        ([], "a list of 0"),
        ("text", "str"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_an_unknown_form_is_named_with_what_is_taken(batch, got):
    """An entry that may be labels under another name is not silently left out."""
    with pytest.raises(ValueError, match=r"'batch' should be \(x, y\), x alone, or a dictionary") as error:
        split_batch(batch)
    assert got in str(error.value)
    assert "batch_keys=('image', 'species')" in str(error.value)


def test_bad_batch_keys():
    for keys in ("xy", ("image",), (None, "y"), 3):
        with pytest.raises(ValueError, match="'batch_keys' should be two keys or positions"):
            jem(batch_keys=keys)
    with pytest.raises(ValueError, match=re.escape("got 'img' for a dictionary of image (Tensor)")):
        split_batch({"image": X}, ("img", None))
    assert split_batch({"image": X, "species": Y}, ("image", None))[1] is None


def test_a_subclass_reads_batches_of_its_own_form(tmp_path):
    class Own(ConditionalEBM):
        def inputs_and_labels(self, batch):
            return batch.images, batch.species

    class Slots:
        def __init__(self, images, species):
            self.images, self.species = images, species

    module, data = Own(MLP(4, 3), 3, BOX), loader(Slots)
    t = trainer(tmp_path, callbacks=[Calibration()])
    t.fit(module, data, data)
    assert t.callback_metrics["val/ece"] >= 0


# Without labels.


@pytest.mark.parametrize("form", [lambda x, y: x, lambda x, y: (x,), lambda x, y: {"image": x}])
def test_inputs_alone_train_log_p_of_x(form, tmp_path):
    labeled, bare = jem(conditional_weight=0.0), jem(conditional_weight=0.0)
    trainer(tmp_path).fit(labeled, loader(FORMS["tuple"]))
    t = trainer(tmp_path)
    t.fit(bare, loader(form), loader(form))
    assert torch.equal(weights(labeled), weights(bare))
    assert "val/energy" in t.callback_metrics
    assert "val/accuracy" not in t.callback_metrics


@pytest.mark.parametrize("module", [jem(), ConditionalEBM(MLP(4, 3), 3, BOX)], ids=["JEM", "ConditionalEBM"])
def test_a_conditional_term_without_labels_is_refused(module, tmp_path):
    with pytest.raises(ValueError, match=r"'batch' should have labels for .*'conditional_weight' to 0"):
        trainer(tmp_path).fit(module, loader(lambda x, y: x))


def test_labels_of_minus_one_name_the_route(tmp_path):
    with pytest.raises(ValueError, match=re.escape("If -1 means unlabeled, yield {'clf': the labeled (x, y)")):
        trainer(tmp_path).fit(jem(), loader(lambda x, y: (x, y - 1)))


def test_a_callback_without_the_labels_it_needs_warns_and_logs_nothing(tmp_path):
    t = trainer(tmp_path, callbacks=[Calibration()])
    with pytest.warns(UserWarning, match="Calibration needs labels, and some test batches have none"):
        (metrics,) = t.test(jem(), loader(lambda x, y: x), verbose=False)
    assert set(metrics) == {"test/energy"}


# Soft labels.


def test_soft_labels_train_the_conditional_term(tmp_path):
    """One-hot probabilities give what classes give; MixUp runs as torchvision has it."""
    one_hot = loader(lambda x, y: (x, torch.nn.functional.one_hot(y, 3).float()))
    runs = []
    in_float64 = loader(lambda x, y: (x, torch.nn.functional.one_hot(y, 3).double()))
    for data in (loader(FORMS["tuple"]), one_hot, in_float64):
        module = jem()
        t = trainer(tmp_path)
        t.fit(module, data, data)
        runs.append((weights(module), t.callback_metrics["val/accuracy"], t.callback_metrics["val/nll"]))
    torch.testing.assert_close(runs[0], runs[1])
    torch.testing.assert_close(runs[0], runs[2], check_dtype=False)
    mixed = MixUp(num_classes=3)
    images = DataLoader(TensorDataset(X.view(24, 1, 2, 2), Y), 8)
    module = ConditionalEBM(torch.nn.Sequential(torch.nn.Flatten(), MLP(4, 3)), 3)
    module.on_after_batch_transfer = lambda batch, i: mixed(*batch)
    trainer(tmp_path).fit(module, images)


@pytest.mark.parametrize("weight", ["joint_weight", "class_conditional_weight"])
def test_class_terms_refuse_soft_labels_and_take_classes_beside_them(weight, tmp_path):
    def soft(x, y):
        return x, torch.full((len(x), 3), 1 / 3)

    module = jem(**{weight: 1.0})
    with pytest.raises(ValueError, match=r"should be 0 for soft labels, .*'gen': \(x, y\)") as error:
        trainer(tmp_path).fit(module, loader(soft))
    assert "'clf': (mixed x, probabilities)" in str(error.value)
    both = loader(lambda x, y: {"clf": soft(x, y), "gen": (x, y)})
    trainer(tmp_path).fit(jem(**{weight: 1.0}), both)


def test_a_density_of_classes_refuses_soft_labels(tmp_path):
    """They are not classes to fit; the unmixed part is."""
    module = jem(chains=ReplayBuffer(30, initial=ClassGaussians(ridge=0.1)))
    with pytest.raises(ValueError, match="'batches' should have a class for each image for ClassGaussians"):
        trainer(tmp_path).fit(module, loader(lambda x, y: (x, torch.full((len(x), 3), 1 / 3))))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.ones(8, 3), "'y' should be probabilities with rows that sum to 1, got torch.float32 of shape (8, 3)"),
        (torch.tensor([[2.0, -1.0, 0.0]] * 8), "'y' should be probabilities"),
        (torch.full((8, 4), 0.25), "probabilities of shape (8, 3) as soft labels"),
        (torch.zeros(8), "'y' should be integer labels of shape (8,), got torch.float32"),
    ],
)
def test_bad_soft_labels(y, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        jem().check_batch(X[:8], y)


def test_an_rbm_counts_soft_and_missing_labels(tmp_path):
    """Mutant: counts of -1, which bincount refuses."""
    bits = (X > 0).float()
    for y, arguments in (
        (torch.full((24, 3), 1 / 3), {"joint_weight": 0.0}),
        (None, {"joint_weight": 0.0, "generative_weight": 1.0, "conditional_weight": 0.0}),
    ):
        module = ClassificationRBM(4, 2, 3, **arguments)
        data = TensorDataset(bits) if y is None else TensorDataset(bits, y)
        trainer(tmp_path).fit(module, DataLoader(data, 8))
        torch.testing.assert_close(module.rbm.class_counts, torch.full((3,), 8.0))
        torch.testing.assert_close(module.rbm.data_mean, bits.mean(0))


# Several loaders.


@pytest.mark.parametrize("several", [list, lambda two: dict(zip("ab", two, strict=True)), CombinedLoader])
def test_each_loader_has_its_own_metrics(several, tmp_path):
    """Accuracy 1 and 0 where the truth is 1 and 0. Mutant: one metric, or one calibration error, for both."""
    module = ConditionalEBM(torch.nn.Identity(), 3)
    x = 9 * torch.nn.functional.one_hot(Y, 3).float()
    right, wrong = (DataLoader(TensorDataset(x, y), 8) for y in (Y, (Y + 1) % 3))
    two = several([right, wrong]) if several is not CombinedLoader else CombinedLoader([right, wrong], "sequential")
    for stage in ("validate", "test"):
        name = {"validate": "val", "test": "test"}[stage]
        t = trainer(tmp_path, callbacks=[Calibration(directory=tmp_path)])
        found = getattr(t, stage)(module, two, verbose=False)
        for i, accuracy in enumerate((1.0, 0.0)):
            assert found[i][f"{name}/accuracy/dataloader_idx_{i}"] == accuracy
            assert t.callback_metrics[f"{name}/ece/dataloader_idx_{i}"] == pytest.approx(1 - accuracy, abs=1e-3)
    assert len(t.predict(module, two)) == 2
    assert {f"test-reliability-dataloader_idx_{i}.png" for i in (0, 1)} == {p.name for p in tmp_path.glob("*.png")}


def test_several_loaders_in_a_fit_are_monitored_by_name(tmp_path):
    module = jem(
        lr_scheduler=functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0),
        lr_scheduler_config={"monitor": "val/nll/dataloader_idx_1"},
    )
    t = trainer(tmp_path, max_epochs=2)
    t.fit(module, batches(), [batches(), batches(8)])
    assert {f"val/accuracy/dataloader_idx_{i}" for i in (0, 1)} <= set(t.callback_metrics)
