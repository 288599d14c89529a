import math
from pathlib import Path

import lightning as L
import pytest
import torch
from matplotlib.image import imread
from sklearn.metrics import roc_auc_score

from ebm_lightning import SGLD, Box, Calibration, ConditionalEBM, OODDetection, ReplayBuffer, SampleGrid
from ebm_lightning.callbacks.calibration import reliability_diagram
from ebm_lightning.callbacks.ood_detection import histogram
from ebm_lightning.networks import ConvNet
from ebm_lightning.ood import transposed
from tests.helpers import batches, jem, trainer

IMAGES = Box(-1, 1, (1, 8, 8))


@pytest.fixture
def loader():
    return batches(shape=(1, 8, 8))


def image_jem(**arguments):
    return jem(ConvNet((1, 8, 8), 3, 4), support=IMAGES, **arguments)


def test_ood_auroc_is_that_of_the_scores(tmp_path, loader):
    module = image_jem()
    t = trainer(tmp_path, callbacks=[OODDetection(["transposed", "noise"])])
    (metrics,) = t.test(module, loader, verbose=False)
    x = loader.dataset.tensors[0]
    with torch.no_grad():
        scores = -torch.cat([module.energy(x), module.energy(transposed(x, IMAGES, torch.Generator()))])
    assert metrics["ood/transposed/auroc"] == pytest.approx(roc_auc_score([1] * 24 + [0] * 24, scores), abs=1e-6)
    assert set(metrics) >= {"ood/noise/auroc"}
    assert {"ood-transposed.png", "ood-noise.png"} == {p.name for p in tmp_path.glob("*.png")}


def test_ood_at_validation_and_with_a_score_of_one_s_own(tmp_path, loader):
    module = image_jem()
    callback = OODDetection(["noise"], scores=[lambda energy, x: x.flatten(1).std(1)], stages=["val"])
    t = trainer(tmp_path, callbacks=[callback])
    t.validate(module, loader, verbose=False)
    assert t.callback_metrics["ood/noise/auroc"] > 0
    assert not list(tmp_path.glob("*.png"))


def test_an_unknown_ood_set():
    with pytest.raises(ValueError, match=r"'sets' should be among noise, shuffled, .*, got 'svhn'"):
        OODDetection(["svhn"])


def test_ece_by_hand(tmp_path, loader):
    module = image_jem()
    t = trainer(tmp_path, callbacks=[Calibration(bins=5)])
    (metrics,) = t.test(module, loader, verbose=False)
    t.validate(module, loader, verbose=False)
    x, y = loader.dataset.tensors
    with torch.no_grad():
        confidence, guess = module(x).softmax(1).max(1)
    bins = (confidence * 5).ceil()
    parts = [
        (bins == b).float().mean() * ((guess == y)[bins == b].float().mean() - confidence[bins == b].mean()).abs()
        for b in bins.unique()
    ]
    assert metrics["test/ece"] == pytest.approx(float(sum(parts)), abs=1e-6)
    assert t.callback_metrics["val/ece"] == pytest.approx(metrics["test/ece"], abs=1e-6)
    assert (tmp_path / "test-reliability.png").exists()


@pytest.mark.parametrize("source", ["chains", "fresh"])
def test_sample_grid_draws_the_box_in_grey_levels(tmp_path, loader, source):
    module = image_jem()
    callback = SampleGrid(1, samples=9, source=source, sampler=SGLD(0.1, 0.01, 2), directory=tmp_path / "p", scale=2)
    trainer(tmp_path, callbacks=[callback]).fit(module, loader)
    picture = imread(tmp_path / "p" / f"samples-{source}.png")
    assert picture.shape == (3 * (16 + 2) + 2, 3 * (16 + 2) + 2, 3)


def test_sample_grid_shows_the_chains(tmp_path, loader):
    module = image_jem(chains=ReplayBuffer(8))
    callback = SampleGrid(0, samples=4)
    trainer(tmp_path, callbacks=[callback]).fit(module, loader)
    picture = torch.from_numpy(imread(tmp_path / "samples-chains.png"))[..., 0]
    oldest = module.chains.x[module.chains.age.argsort(descending=True, stable=True)[0]]
    assert (picture[1:9, 1:9] - (oldest[0] + 1) / 2).abs().max() < 1 / 250


@pytest.mark.parametrize(
    ("module", "callback", "message"),
    [
        (lambda: jem(), SampleGrid(), "'support' should be a Box of images"),
        (lambda: ConditionalEBM(ConvNet((1, 8, 8), 3), 3, IMAGES), SampleGrid(), "'source' should be 'fresh'"),
        (lambda: L.LightningModule(), Calibration(), "Calibration needs a ConditionalEBM or JEM"),
        (lambda: L.LightningModule(), OODDetection(), "OODDetection needs a ConditionalEBM or JEM"),
        (lambda: L.LightningModule(), SampleGrid(), "SampleGrid needs a ConditionalEBM or JEM"),
    ],
)
def test_callbacks_say_what_they_need(module, callback, message, tmp_path, loader):
    class Any(L.LightningModule):
        def training_step(self, batch, batch_idx): ...

        def configure_optimizers(self): ...

    made = module()
    made = Any() if type(made) is L.LightningModule else made
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, callbacks=[callback]).fit(made, loader)


def test_sample_grid_source():
    with pytest.raises(ValueError, match="'source' should be 'chains' or 'fresh', got 'dreams'"):
        SampleGrid(source="dreams")


def test_pictures_of_degenerate_scores(tmp_path: Path):
    """Equal, infinite and single scores still make a picture."""
    histogram(torch.zeros(5), torch.tensor([-math.inf, 1.0]), "x", 0.5).savefig(tmp_path / "a.png")
    reliability_diagram(torch.ones(3), torch.ones(3), 15, 0.0).savefig(tmp_path / "b.png")
