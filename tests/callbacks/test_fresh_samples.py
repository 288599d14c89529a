import pytest

from ebm_lightning import SGLD, FreshSamples
from tests.callbacks.helpers import Grey, image_jem
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


def test_vectors_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'support' should be a Box of images"):
        trainer(tmp_path, callbacks=[FreshSamples()]).test(jem(), batches(), verbose=False)


def test_bad_arguments():
    with pytest.raises(ValueError, match="'side' should be at least 1, got 0"):
        FreshSamples(side=0)
