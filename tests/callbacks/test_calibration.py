import pytest
import torch

from ebm_lightning import Calibration
from ebm_lightning.callbacks.calibration import plot_reliability
from tests.callbacks.helpers import image_jem
from tests.helpers import batches, trainer


def test_ece_by_hand(tmp_path):
    module, loader = image_jem(), batches(shape=(1, 8, 8))
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


def test_a_diagram_with_all_images_in_one_bin(tmp_path):
    plot_reliability(torch.ones(3), torch.ones(3), 15, 0.0).savefig(tmp_path / "a.png")


def test_bad_arguments():
    with pytest.raises(ValueError, match="'bins' should be at least 1, got 0"):
        Calibration(0)
