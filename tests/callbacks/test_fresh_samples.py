import pytest
import torch
from matplotlib.figure import Figure

from ebm_lightning import SGLD, Box, DataInit, Euclidean, FreshSamples
from ebm_lightning.callbacks import fresh_samples
from tests.callbacks.helpers import Flat, Grey, image_jem
from tests.helpers import batches, jem, trainer


class Spy(SGLD):
    """Records the initial points and the labels of the chains."""

    def run(self, energy, x, **arguments):
        self.runs.append((x, getattr(energy, "keywords", {}).get("y")))
        return super().run(energy, x, **arguments)


@pytest.fixture
def loader():
    return batches(n=48, batch_size=20, shape=(1, 8, 8))


@pytest.fixture
def spy(monkeypatch):
    monkeypatch.setattr(Spy, "runs", [], raising=False)
    return Spy(0.1, 0.01, 2)


def test_the_conditional_grid_has_a_row_for_each_class(tmp_path, loader, spy):
    trainer(tmp_path, callbacks=[FreshSamples(4, sampler=spy, directory=tmp_path)]).test(
        image_jem(), loader, verbose=False
    )
    (_, without_labels), (_, labels) = spy.runs
    assert without_labels is None
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert {p.name for p in tmp_path.glob("*.png")} == {"samples-conditional.png", "samples-unconditional.png"}


def test_chains_start_at_the_given_distribution(tmp_path, loader, spy):
    initial = Grey()
    callback = FreshSamples(2, sampler=spy, initial=initial, directory=tmp_path)
    trainer(tmp_path, callbacks=[callback]).test(image_jem(), loader, verbose=False)
    assert [len(x) for x, _ in spy.runs] == [4, 6]
    assert all((x == 0.25).all() for x, _ in spy.runs)
    assert initial.labels[0] is None
    assert initial.labels[1].tolist() == [0, 0, 1, 1, 2, 2]


def test_the_first_panel_has_the_points_where_these_chains_start(tmp_path, loader, spy, monkeypatch):
    shown = []
    monkeypatch.setattr(fresh_samples, "plot_panels", lambda rows, *_: shown.append(rows) or Figure())
    callback = FreshSamples(2, sampler=spy, directory=tmp_path)
    trainer(tmp_path, callbacks=[callback]).test(image_jem(), loader, verbose=False)
    for rows, (x, _) in zip(shown, spy.runs, strict=True):
        assert torch.equal(torch.cat([row.starts for row in rows]), x)


@pytest.mark.parametrize("shape", [(4,), (2, 6)], ids=["table", "series"])
def test_points_that_are_not_images_are_shown(tmp_path, spy, shape):
    module = jem(Flat(shape), support=Box(-1, 1, shape))
    trainer(tmp_path, callbacks=[FreshSamples(3, sampler=spy)]).test(module, batches(shape=shape), verbose=False)
    assert {p.name for p in tmp_path.glob("*.png")} == {"samples-conditional.png", "samples-unconditional.png"}


def test_a_support_of_infinite_mass_needs_initial_points(tmp_path):
    module = jem(support=Euclidean((4,)), chains=DataInit())
    with pytest.raises(ValueError, match="'initial' should be given for FreshSamples on Euclidean"):
        trainer(tmp_path, callbacks=[FreshSamples()]).test(module, batches(), verbose=False)


def test_bad_arguments():
    with pytest.raises(ValueError, match="'side' should be at least 1, got 0"):
        FreshSamples(side=0)
