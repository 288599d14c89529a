"""Data in any form become batches, in one way everywhere."""

import re

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import FeatureJEM
from ebm_lightning.data import Rings
from ebm_lightning.evaluation.inputs import labeled_data
from ebm_lightning.modules.cache_features import cache_features
from ebm_lightning.modules.loaders import as_loader
from tests.helpers import batches, jem

X, Y = batches().dataset.tensors
SOFT = torch.eye(3)[Y]
INPUTS = {
    "tensor": X,
    "array": X.numpy(),
    "tuple of batches": X.split(12),
    "list of batches": list(X.split(12)),
    "batches of two sizes": X.split(16),
    "dataset": TensorDataset(X),
    "loader": DataLoader(TensorDataset(X), 5),
}
PAIRS = {
    "tensors": (X, Y),
    "list": [X, Y],
    "arrays": (X.numpy(), Y.numpy()),
    "tensor and array": (X, Y.numpy()),
    "dataset": TensorDataset(X, Y),
    "loader": DataLoader(TensorDataset(X, Y), 5),
}


@pytest.mark.parametrize("data", INPUTS.values(), ids=INPUTS)
def test_inputs_are_read_in_any_form(data):
    module = jem()
    pairs = [module.inputs_and_labels(batch) for batch in as_loader(data, 7)]
    assert torch.equal(torch.cat([x for x, _ in pairs]), X)
    assert all(y is None for _, y in pairs)


@pytest.mark.parametrize("data", PAIRS.values(), ids=PAIRS)
def test_labels_are_read_in_any_form(data):
    module = jem()
    for loader in (as_loader(data, 7), labeled_data(data)):
        pairs = [module.inputs_and_labels(batch) for batch in loader]
        assert torch.equal(torch.cat([x for x, _ in pairs]), X)
        assert torch.equal(torch.cat([y for _, y in pairs]), Y)


def test_probabilities_are_labels_unless_they_look_like_inputs():
    x, soft = next(iter(as_loader((X, SOFT), 24)))
    assert torch.equal(x, X)
    assert torch.equal(soft, SOFT)
    assert as_loader((SOFT, SOFT)) == (SOFT, SOFT)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X, Y[:9]), "'data' should have one label for each input, got 9 labels for 24 inputs"),
        (X[0, 0], "'data' should have a row for each input, got a single number"),
        (None, "'data' should be a tensor, a dataset or a loader, got NoneType"),
        ("mnist", "'data' should be a tensor, a dataset or a loader, got str"),
        (Rings(size=64), "got the data module Rings. Call its setup(), and pass its train_dataloader()"),
    ],
)
def test_other_data_are_refused_everywhere(data, message):
    network = torch.nn.Linear(4, 3).eval()
    for read in (as_loader, jem().score, lambda data: cache_features(FeatureJEM(network, 3), data)):
        with pytest.raises(ValueError, match=re.escape(message)):
            read(data)
