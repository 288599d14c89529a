import math

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import TensorDataset

from ebm_lightning import OODDetection
from ebm_lightning.callbacks.ood_histogram import Scores, plot_scores
from ebm_lightning.evaluation.ood_sets import OOD_SETS, transposed
from ebm_lightning.evaluation.scores import approximate_mass, log_density
from tests.callbacks.helpers import IMAGES, image_jem
from tests.helpers import batches, trainer


@pytest.fixture
def loader():
    return batches(n=48, batch_size=20, shape=(1, 8, 8))


def test_auroc_and_fpr95_of_transforms_and_of_other_images(tmp_path, loader):
    module, other = image_jem(), IMAGES.sample(30)
    sets = {"mirrored": transposed, "tensor": other, "pairs": TensorDataset(other, torch.zeros(30))}
    callback = OODDetection(sets, [log_density, approximate_mass])
    (metrics,) = trainer(tmp_path, callbacks=[callback]).test(module, loader, verbose=False)
    x = loader.dataset.tensors[0]

    def scored(images: Tensor) -> Tensor:  # in the callback's batches: near ties depend on how float32 is rounded
        with torch.no_grad():
            return torch.cat([score(module.energy, part) for part in images.contiguous().split(20)])

    for score in (log_density, approximate_mass):
        inside, outside = scored(x), {"mirrored": scored(x.mT), "tensor": scored(other)}
        for name in sets:
            scores = outside.get(name, outside["tensor"])
            expected = roc_auc_score([1] * len(inside) + [0] * len(scores), torch.cat([inside, scores]))
            assert metrics[f"ood/{name}/{score.__name__}/auroc"] == pytest.approx(expected, abs=1e-6)
            threshold = inside.sort().values[2]  # 46 of 48 are at or above it, 45 would be too few
            assert metrics[f"ood/{name}/{score.__name__}/fpr95"] == pytest.approx(
                float((scores >= threshold).float().mean())
            )
    assert metrics["ood/tensor/auroc"] == metrics["ood/tensor/log_density/auroc"]
    assert metrics["ood/images"] == 48
    assert {p.name for p in tmp_path.glob("*.png")} == {f"ood-{name}.png" for name in sets}


def test_sets_by_name(tmp_path, loader):
    (metrics,) = trainer(tmp_path, callbacks=[OODDetection(["transposed", "noise"])]).test(
        image_jem(), loader, verbose=False
    )
    assert set(metrics) >= {"ood/transposed/auroc", "ood/noise/auroc"}
    assert {"ood-transposed.png", "ood-noise.png"} == {p.name for p in tmp_path.glob("*.png")}


def test_validation_with_a_user_defined_score(tmp_path, loader):
    callback = OODDetection(["noise"], scores=[lambda energy, x: x.flatten(1).std(1)], stages=["val"])
    t = trainer(tmp_path, callbacks=[callback])
    t.validate(image_jem(), loader, verbose=False)
    assert t.callback_metrics["ood/noise/auroc"] > 0
    assert not list(tmp_path.glob("*.png"))


def test_each_image_is_scored_once_up_to_the_limit(tmp_path, loader):
    seen: list[int] = []

    def counting(energy, x: Tensor) -> Tensor:
        seen.append(len(x))
        return x.flatten(1).sum(1)

    callback = OODDetection({**OOD_SETS, "real": IMAGES.sample(99)}, [counting], ["val"], limit=30)
    (metrics,) = trainer(tmp_path, callbacks=[callback]).validate(image_jem(), loader, verbose=False)
    assert metrics["ood/images"] == 30
    assert sum(seen) == 30 * (1 + len(OOD_SETS) + 1)


def test_interpolations_use_the_whole_batch(tmp_path, loader):
    """One image of each batch is selected: the mean of it and itself would be the image."""
    (metrics,) = trainer(tmp_path, callbacks=[OODDetection(["interpolated"], limit=3)]).test(
        image_jem(), loader, verbose=False
    )
    assert metrics["ood/images"] == 3
    assert metrics["ood/interpolated/auroc"] != 0.5


def test_images_outside_the_box_are_refused(tmp_path, loader):
    t = trainer(tmp_path, callbacks=[OODDetection({"bytes": 255 * torch.rand(9, 1, 8, 8)})])
    with pytest.raises(ValueError, match=r"'bytes' should be in the box .* look like 8-bit pixels"):
        t.test(image_jem(), loader, verbose=False)


def test_bad_arguments():
    with pytest.raises(ValueError, match="'scores' should be functions with different names"):
        OODDetection(scores=[log_density, log_density])
    with pytest.raises(ValueError, match=r"'sets' should be among noise, shuffled, .*, got 'svhn'"):
        OODDetection(["svhn"])
    with pytest.raises(ValueError, match="'limit' should be at least 1 or None, got 0"):
        OODDetection(limit=0)


def test_a_histogram_of_equal_and_infinite_scores(tmp_path):
    scores = {"JEM": Scores(torch.zeros(5), torch.tensor([-math.inf, 1.0]))}
    plot_scores(scores, "x", IMAGES.sample(3), IMAGES).savefig(tmp_path / "a.png")


def test_models_share_the_axes_of_their_histograms():
    one, two = Scores(torch.zeros(9), torch.ones(9)), Scores(torch.arange(9.0) + 50, torch.arange(9.0))
    figure = plot_scores({"JEM": one, "classifier": two}, "x", IMAGES.sample(3), IMAGES)
    _, upper, lower = figure.axes
    assert upper.get_xlim() == lower.get_xlim()
    assert upper.get_ylim() == lower.get_ylim()
    assert [axes.get_title().split(":")[0] for axes in (upper, lower)] == ["JEM", "classifier"]


def test_the_first_points_of_each_set_are_kept(tmp_path, loader):
    other = IMAGES.sample(30)
    callback = OODDetection({"mirrored": transposed, "tensor": other})
    trainer(tmp_path, callbacks=[callback]).test(image_jem(), loader, verbose=False)
    n = len(callback.examples["tensor"])
    assert torch.equal(callback.examples["tensor"], other[:n])
    assert torch.equal(callback.examples["mirrored"], loader.dataset.tensors[0][:n].mT)
