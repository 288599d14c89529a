"""Daily use without a trainer: samples, scores, a threshold. In eval mode by themselves, and nothing else changes."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import JEM, ConditionalEBM, Whitening
from ebm_lightning.data import Rings
from ebm_lightning.modules.stored_values import StoredValues, weight_checksum
from tests.helpers import BOX, batches, jem, trainer

X = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def normalized() -> JEM:
    """With batch normalization and dropout, whose energies depend on the mode."""
    torch.manual_seed(0)
    return jem(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)))


def expected_scores(module, x):
    with torch.no_grad():
        return -copy.deepcopy(module).eval().energy(x)


USES = {
    "sample": lambda m: m.sample(5, steps=2),
    "class samples": lambda m: m.sample(5, 1, steps=2),
    "score": lambda m: m.score(X),
    "threshold": lambda m: m.threshold(DataLoader(TensorDataset(X), 7, shuffle=True)),
    "is_ood": lambda m: (m.threshold(X), m.is_ood(X)),
    "estimate_log_z": lambda m: m.estimate_log_z(X, temperatures=2, num_chains=20),
    "log_prob": lambda m: (m.estimate_log_z(temperatures=2, num_chains=20), m.log_prob(X)),
}


@pytest.mark.filterwarnings("ignore:log p.x. is unreliable")
@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("inference", [False, True])
def test_daily_use_changes_nothing(use, inference):
    """A layer in eval mode inside a model in train mode stays so. Mutants: .eval() and .train(); no isolated draws."""
    module = normalized().train()
    module.classifier[1].eval()
    modes = [part.training for part in module.modules()]
    before, state = copy.deepcopy(module.energy.state_dict()), torch.get_rng_state()
    with torch.inference_mode(inference):
        use(module)
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(module.energy.state_dict().values(), before.values(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


# Samples.


def test_one_class_stands_for_all_samples():
    module = normalized().train()
    samples = [module.sample(4, y, steps=2) for y in (2, np.int64(2), torch.tensor(2), torch.full((4,), 2))]
    assert all(torch.equal(x, samples[0]) for x in samples)
    assert samples[0].shape == (4, 4)
    assert not torch.equal(module.sample(4, steps=2), samples[0])
    assert not torch.equal(module.sample(4, 1, steps=2), samples[0])
    assert torch.equal(module.eval().sample(4, 2, steps=2), samples[0])


@pytest.mark.parametrize(
    ("n", "y", "message"),
    [
        (4, 3, "'y' should be labels from 0 to 2, got 3 to 3"),
        (4, torch.tensor([0, 1]), "'y' should be integer labels of shape (4,)"),
        (4, 0.5, "'y' should be integer labels of shape (4,)"),
        (0, None, "'n' should be at least 1, got 0"),
    ],
)
def test_bad_samples_are_refused(n, y, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        jem().sample(n, y)


def test_a_generator_seeds_the_samples():
    module = jem()
    first, again, other = (module.sample(4, steps=2, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(ValueError, match="'generator' should be on the model's device, meta, got one on cpu"):
        copy.deepcopy(module).to("meta").sample(4, generator=torch.Generator())


# Scores.


@pytest.mark.parametrize(
    "data",
    [
        X,
        X.double(),
        X.numpy(),
        X.double().numpy(),
        TensorDataset(X),
        DataLoader(TensorDataset(X, torch.zeros(40).long()), 7),
        [{"image": part} for part in X.split(9)],
    ],
    ids=["tensor", "float64", "array", "float64 array", "dataset", "loader", "dictionaries"],
)
def test_scores_of_any_data(data):
    module = normalized().train()
    found = module.score(data, batch_size=16)
    torch.testing.assert_close(found, expected_scores(module, X))
    assert not found.requires_grad


def test_a_float64_model_scores_float32_data_in_float64():
    module = normalized().double()
    found = module.score(X)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected_scores(module, X.double()))


def test_scores_are_of_x_under_coordinates(tmp_path):
    module = jem(support=None, coordinates=Whitening((4,)), chains=None)
    trainer(tmp_path, limit_train_batches=1).fit(module, batches())
    torch.testing.assert_close(module.score(X), expected_scores(module, X))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (255 * X.abs(), "'x' should be in the box [-1, 1]"),
        (X / 0, "'x' should be finite"),
        (X[0], "'x' should have shape (N, 4), got (4,)"),
        (X.int(), "'x' should be a floating point tensor, got torch.int32"),
        ([], "'data' should hold inputs, got none"),
        (3.0, "'data' should be a tensor, a dataset or a loader, got float"),
        (
            Rings(size=64),
            "'data' should be a tensor, a dataset or a loader, got the data module Rings. Call its setup()",
        ),
    ],
)
def test_bad_data_are_named(data, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        jem().score(data)


def test_no_inputs_have_no_scores_and_give_no_threshold():
    assert jem().score(X[:0]).shape == (0,)
    with pytest.raises(ValueError, match="'data' should hold inputs, got none"):
        jem().threshold(X[:0])


# The threshold.


@pytest.mark.parametrize(("keep", "kept"), [(0.95, 38), (0.96, 39), (1.0, 40), (0.5, 20), (1e-6, 1)])
def test_a_threshold_keeps_at_least_that_fraction(keep, kept):
    module = jem()
    threshold = module.threshold(X, keep)
    scores = module.score(X).sort(descending=True).values
    assert threshold == scores[kept - 1]
    assert int((~module.is_ood(X)).sum()) == kept
    assert module.is_ood(X).dtype == torch.bool


def test_fractions_are_counted_in_whole_numbers():
    """0.07 * 100 is above 7 in floating point. Mutant: ceil of the product, which keeps one more."""
    module, x = jem(), BOX.sample(100)
    module.threshold(x, 0.07)
    assert int((~module.is_ood(x)).sum()) == 7


def test_data_far_from_a_density_are_ood():
    """A mixture of three narrow normal densities knows its own data."""
    means = torch.eye(3, 2) * 3
    module = ConditionalEBM(Mixture(means), 3)
    own = means.repeat_interleave(200, 0) + 0.3 * torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    module.threshold(own[::2])
    assert 0.9 < float((~module.is_ood(own[1::2])).float().mean()) <= 1
    assert module.is_ood(own + 20).all()


class Mixture(nn.Module):
    def __init__(self, means):
        super().__init__()
        self.means = nn.Parameter(means)

    def forward(self, x):
        return -(x[:, None] - self.means).square().sum(2) / (2 * 0.3**2)


def test_a_model_without_a_threshold_names_the_remedy():
    with pytest.raises(RuntimeError, match=re.escape("has no threshold yet. Call model.threshold(data)")):
        jem().is_ood(X)
    with pytest.raises(ValueError, match=re.escape("'keep' should be in (0, 1], got 0")):
        jem().threshold(X, 0)


def test_a_threshold_is_void_once_the_weights_change(tmp_path):
    """By a fit, by hand, or by a batch in train mode, which moves batch-norm statistics."""

    def step(module):
        with torch.no_grad():
            module.classifier[-1].bias += 1e-6

    trained = normalized()
    trainer(tmp_path).fit(trained, batches())
    changes = [
        step,
        lambda module: module(X),
        lambda module: trainer(tmp_path).fit(module, batches()),
        lambda module: module.energy.load_state_dict(trained.energy.state_dict()),
    ]
    for change in changes:
        module = normalized().train()
        module.threshold(X)
        module.is_ood(X)
        change(module)
        with pytest.raises(RuntimeError, match=r"(have changed since its threshold was computed|has no threshold)"):
            module.is_ood(X)
        module.threshold(X)
        module.is_ood(X)


def test_checkpoints_and_state_dicts_contain_the_threshold(tmp_path):
    module = jem()
    t = trainer(tmp_path)
    t.fit(module, batches())
    threshold = module.threshold(X, 0.9)
    t.save_checkpoint(tmp_path / "m.ckpt")
    again = JEM.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    other = jem()
    other.load_state_dict(module.state_dict())
    for model in (again, other, copy.deepcopy(module)):
        assert torch.equal(model.is_ood(X), module.is_ood(X))
        assert model.stored_threshold.numbers == [threshold]


def test_weight_averaging_runs_with_stored_values(tmp_path):
    """The buffers are swapped and averaged with the weights: a threshold from before is void, and no crash."""
    module = jem()
    module.threshold(X)
    t = trainer(tmp_path, max_epochs=2, callbacks=[EMAWeightAveraging(decay=0.5)])
    t.fit(module, batches(), batches())
    with pytest.raises(RuntimeError, match="have changed"):
        module.is_ood(X)


# Stored values.


@pytest.mark.parametrize("convert", [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.double()])
def test_stored_numbers_are_exact_in_every_precision(convert):
    model, stored = nn.Linear(2, 2), StoredValues(3)
    numbers = [math.pi, -1e300, math.inf]
    stored.store(model, numbers, "why ±")
    convert(stored)
    assert stored.numbers == numbers
    assert stored.text == "why ±"
    assert stored.holds_for(model)
    assert not StoredValues(1).holds_for(model)


def test_a_long_text_is_cut():
    stored = StoredValues(1)
    stored.store(nn.Linear(1, 1), [0.0], "ä" * 999)
    assert stored.text == "ä" * 500


def test_the_checksum_sees_every_weight_and_no_counter(seed):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3).bfloat16(), nn.Linear(3, 3).double())
    before = weight_checksum(model)
    for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
        flat = tensor.detach().view(-1)
        kept = flat[0].clone()
        flat[0] = torch.nextafter(kept.float() + 1e-2, torch.tensor(9.0)).to(flat)
        assert weight_checksum(model) != before
        flat[0] = kept
        assert weight_checksum(model) == before
    model[1].num_batches_tracked += 1
    assert weight_checksum(model) == before
    model[0].weight.data = model[0].weight.data.t().contiguous().t()  # as channels_last does
    assert weight_checksum(model) == before
    assert weight_checksum(nn.Identity()) != 0
