import itertools

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

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


@pytest.mark.parametrize("images", [3, 5, 450])
def test_tick_labels_do_not_overlap(images):
    """Kills: a label at every minor tick of the logarithmic axis."""
    figure = plot_reliability(torch.rand(images), torch.ones(images), 15, 0.0)
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        for axis, side in ((axes.xaxis, "x"), (axes.yaxis, "y")):
            ticks = [*axis.get_majorticklabels(), *axis.get_minorticklabels()]
            boxes = [t.get_window_extent() for t in ticks if t.get_text() and t.get_visible()]
            spans = sorted((getattr(b, f"{side}0"), getattr(b, f"{side}1")) for b in boxes if b.width)
            inside = [s for s in spans if s[1] > 0]
            assert all(low >= end for (_, end), (low, _) in itertools.pairwise(inside)), (axis, spans)


def test_bad_arguments():
    with pytest.raises(ValueError, match="'bins' should be at least 1, got 0"):
        Calibration(0)
