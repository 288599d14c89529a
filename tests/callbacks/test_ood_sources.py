"""Where out-of-distribution data come from: loaders, datasets, tensors; and the sets that are made by default."""

import math
import re

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from ebm_lightning import ConditionalEBM, DataInit, Gaussian, OODDetection, Whitening
from ebm_lightning.evaluation.metrics import OODScores
from ebm_lightning.evaluation.ood_sets import OOD_SETS, transposed
from ebm_lightning.networks import MLP, ConvNet
from ebm_lightning.supports import Binary, Box, Euclidean
from tests.callbacks.helpers import IMAGES, image_jem
from tests.helpers import BOX, batches, jem, trainer

OTHER = IMAGES.sample(30, generator=torch.Generator().manual_seed(1))


class Noisy(Dataset):
    """Draws from the global random state, as augmentations do."""

    def __len__(self) -> int:
        return len(OTHER)

    def __getitem__(self, i: int):
        torch.rand(1)
        return {"image": OTHER[i], "label": 0}


class Stream(IterableDataset):
    def __iter__(self):
        return iter(OTHER)


SOURCES = {
    "tensor": OTHER,
    "array": OTHER.numpy(),
    "pairs": TensorDataset(OTHER, torch.zeros(30)),
    "dictionaries": Noisy(),
    "loader": DataLoader(TensorDataset(OTHER, torch.zeros(30)), 7),
    "shuffled loader": DataLoader(TensorDataset(OTHER), 7, shuffle=True),
    "loader of dictionaries": DataLoader(Noisy(), 7, shuffle=True),
    "stream": DataLoader(Stream(), 7),
}


def net(inputs: int = 4) -> MLP:
    torch.manual_seed(0)
    return MLP(inputs, 3)


def run(tmp_path, module, data, callback, stage="test"):
    return getattr(trainer(tmp_path, callbacks=[callback]), stage)(module, data, verbose=False)[0]


@pytest.mark.parametrize("limit", [None, 11])
def test_every_source_of_the_same_data_gives_the_same_scores(limit, tmp_path):
    """And the global random state does not change. Mutant: a loader that is read without a seed, or past the limit."""
    seen: list[Tensor] = []

    def score(energy, x):
        seen.append(x)
        return x.flatten(1).sum(1)

    data = batches(n=48, batch_size=16, shape=(1, 8, 8))
    state = torch.get_rng_state()
    found = run(tmp_path, image_jem(), data, OODDetection(SOURCES, [score], limit=limit))
    torch.manual_seed(0)
    assert len({float(found[f"ood/{name}/auroc"]) for name in SOURCES}) == 1
    assert sum(map(len, seen)) == (48 if limit is None else limit) + len(SOURCES) * (30 if limit is None else limit)
    torch.set_rng_state(state)
    run(tmp_path, image_jem(), data, OODDetection({"noisy": Noisy()}, [score], limit=limit))
    after_noisy = torch.get_rng_state()
    torch.set_rng_state(state)
    run(tmp_path, image_jem(), data, OODDetection({"tensor": OTHER}, [score], limit=limit))
    assert torch.equal(torch.get_rng_state(), after_noisy)


def test_keys_of_the_module_do_not_matter_for_tensors(tmp_path):
    module = jem(batch_keys=("photo", "species"))
    x, y = batches().dataset.tensors
    data = DataLoader([{"photo": a, "species": b} for a, b in zip(x, y, strict=True)], 24)
    assert run(tmp_path, module, data, OODDetection({"box": BOX.sample(20)}))["ood/box/auroc"] >= 0


@pytest.mark.parametrize(
    ("network", "shape", "domain", "sets"),
    [
        (lambda: ConvNet((1, 8, 8), 3, 4), (1, 8, 8), IMAGES, set(OOD_SETS)),
        (lambda: ConvNet((1, 8, 8), 3, 4), (1, 8, 8), None, {"shuffled", "transposed", "flipped", "interpolated"}),
        (lambda: ConvNet((1, 8, 6), 3, 4), (1, 8, 6), Box(-1, 1, (1, 8, 6)), set(OOD_SETS) - {"transposed"}),
        (net, (4,), BOX, {"noise", "interpolated"}),
        (net, (4,), Euclidean((4,)), {"interpolated"}),
        (net, (4,), None, {"interpolated"}),
        (net, (4,), Gaussian(0.0, 1.0, (4,)), {"noise", "interpolated"}),
        (
            lambda: nn.Sequential(nn.Flatten(), net(12)),
            (2, 6),
            Gaussian(0.0, 1.0, (2, 6)),
            {"noise", "shuffled", "flipped", "interpolated"},
        ),
    ],
    ids=["images", "images without a domain", "oblong images", "box", "R^D", "no domain", "Gaussian", "series"],
)
def test_the_default_sets_fit_the_data(network, shape, domain, sets, tmp_path):
    torch.manual_seed(0)
    found = run(tmp_path, ConditionalEBM(network(), 3, domain), batches(shape=shape), OODDetection(directory=tmp_path))
    assert {name.split("/")[1] for name in found if name.endswith("/auroc")} == sets
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize(
    ("sets", "domain", "message"),
    [
        (["shuffled"], BOX, "got 'shuffled'. One x has shape (4,), and no pixels or steps in an order"),
        (["transposed"], BOX, "got 'transposed'. One x has shape (4,), and is not a square image"),
        ({"noise": OOD_SETS["noise"]}, Euclidean((4,)), "got 'noise'. Euclidean has no reference density"),
        (["inverted"], Gaussian(0.0, 1.0, (4,)), "got 'inverted'. Gaussian has no lowest and highest value"),
        (["noise"], None, "got 'noise'. Euclidean has no reference density"),
    ],
)
def test_a_set_that_cannot_be_made_is_refused_at_the_start_of_fit(sets, domain, message, tmp_path):
    module = ConditionalEBM(net(), 3, domain)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        trainer(tmp_path, callbacks=[OODDetection(sets)]).fit(module, batches())
    assert "'interpolated'] fit." in str(error.value)


def test_a_shape_that_only_the_data_show_is_checked_at_the_first_batch(tmp_path):
    with pytest.raises(ValueError, match=r"got 'flipped'\. One x has shape \(4,\)"):
        run(tmp_path, ConditionalEBM(net(), 3), batches(), OODDetection(["flipped"]))
    own = {"transposed": lambda x, support, generator: transposed(x[:, None], support, generator)[..., 0]}
    assert run(tmp_path, ConditionalEBM(net(), 3), batches(), OODDetection(own))["ood/transposed/auroc"] == 0.5


def test_coordinates_and_binary_units_have_default_sets(tmp_path):
    module = jem(support=None, coordinates=Whitening((4,)), chains=DataInit())
    trainer(tmp_path).fit(module, batches())
    default = OODDetection(stages=["val"])
    assert "ood/interpolated/auroc" in run(tmp_path, module, batches(), default, "validate")
    bits = DataLoader((batches().dataset.tensors[0] > 0).float(), 8)
    named = OODDetection(["noise", "inverted"], stages=["val"])
    found = run(tmp_path, ConditionalEBM(net(), 3, Binary((4,))), bits, named, "validate")
    assert {"ood/noise/auroc", "ood/inverted/auroc"} <= set(found)


def test_aupr_is_the_average_precision_of_either_class(seed):
    """Mutants: in and out swapped; scores of the second not negated."""
    inside, outside = torch.randint(20, (60,)).float() + 3, torch.randint(20, (25,)).float()
    inside[0], outside[0] = 300.0, -math.inf
    metric = OODScores()
    for a, b in zip(inside.chunk(5), outside.chunk(5), strict=True):
        metric.update(a, b)
    found = metric.compute()
    scores, positive = np.r_[inside, outside.clamp(min=-1e9)], np.r_[np.ones(60), np.zeros(25)]
    assert float(found["aupr_in"]) == pytest.approx(average_precision_score(positive, scores), abs=1e-6)
    assert float(found["aupr_out"]) == pytest.approx(average_precision_score(1 - positive, -scores), abs=1e-6)


def test_aupr_is_logged(tmp_path):
    found = run(tmp_path, jem(), batches(), OODDetection(["noise"]))
    assert {f"ood/noise/log_density/{k}" for k in ("auroc", "fpr95", "aupr_in", "aupr_out")} <= set(found)
