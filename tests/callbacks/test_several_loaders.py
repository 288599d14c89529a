"""Callbacks under several loaders, and under batches without labels: data of one loader never count for another."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import (
    AISLogZ,
    Calibration,
    EnergyLandscape,
    FreshSamples,
    OODDetection,
    Refinement,
    Robustness,
    SampleQuality,
)
from ebm_lightning.evaluation.ood_sets import noise
from tests.callbacks.helpers import FirstPixels, image_jem
from tests.helpers import batches, trainer

pytestmark = pytest.mark.filterwarnings("ignore:log Z is unreliable")


def every_loader_callback(folder) -> list[L.Callback]:
    return [
        AISLogZ(1, 3, 20, directory=folder),
        Calibration(directory=folder),
        EnergyLandscape(1, points=8, directory=folder),
        FreshSamples(3, steps=2, directory=folder),
        OODDetection({"noise": noise}, directory=folder, limit=30),
        Refinement([0, 2], limit=30),
        Robustness([0.1], [], [0.3], steps=2, limit=30, directory=folder),
        SampleQuality(FirstPixels(), steps=2, samples=20),
    ]


@pytest.fixture
def loaders():
    first, second = batches(n=48, batch_size=16, shape=(1, 8, 8)), batches(n=40, batch_size=8, shape=(1, 8, 8))
    x, y = second.dataset.tensors
    return first, DataLoader(TensorDataset(-x, 2 - y), 8)


def metrics_of(tmp_path, data) -> dict[str, float]:
    t = trainer(tmp_path, callbacks=every_loader_callback(tmp_path))
    t.test(image_jem(), data, verbose=False)
    return {name: float(value) for name, value in t.callback_metrics.items()}


def test_a_second_loader_changes_nothing_of_the_first(tmp_path, loaders):
    """Metrics that keep loaders apart have Lightning's suffix. Mutants: data of both in one; a quota over both."""
    alone, both = metrics_of(tmp_path, loaders[0]), metrics_of(tmp_path, list(loaders))
    for name, value in alone.items():
        found = both.get(name, both.get(f"{name}/dataloader_idx_0"))
        assert found == pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True), name
    second = metrics_of(tmp_path, loaders[1])
    of_both = [name for name in both if name.endswith("/dataloader_idx_1")]
    assert {"test/ece/dataloader_idx_1", "ais/log_likelihood/dataloader_idx_1"} <= set(of_both)
    for name in of_both:
        expected = second[name.removesuffix("/dataloader_idx_1")]
        if not name.startswith("ais/"):  # under the log Z with the evidence of the first loader
            assert both[name] == pytest.approx(expected, rel=1e-5), name


def test_a_test_without_labels_leaves_out_what_needs_them(tmp_path, loaders):
    x = loaders[0].dataset.tensors[0]
    t = trainer(tmp_path, callbacks=every_loader_callback(tmp_path))
    with pytest.warns(UserWarning, match="needs labels") as warned:
        t.test(image_jem(), DataLoader(x, 16), verbose=False)
    named = {str(w.message).split(" ")[0] for w in warned if "needs labels" in str(w.message)}
    assert named == {"Calibration", "Refinement", "Robustness"}
    found = set(t.callback_metrics)
    assert {"test/energy", "ood/noise/auroc", "ais/log_z", "samples/fid_classifier"} <= found
    assert not {"test/accuracy", "test/ece", "robust/clean", "refine/images"} & found


def test_soft_labels_count_as_their_most_likely_class(tmp_path, loaders):
    x, y = loaders[0].dataset.tensors
    soft = torch.nn.functional.one_hot(y, 3) * 0.4 + 0.2
    hard, softened = (metrics_of(tmp_path, DataLoader(TensorDataset(x, labels), 16)) for labels in (y, soft))
    for name in ("test/accuracy", "test/ece", "robust/clean", "refine/accuracy_2"):
        assert hard[name] == pytest.approx(softened[name]), name
