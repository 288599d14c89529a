import pytest
import torch

from ebm_lightning import Box, EnergyExtremes
from ebm_lightning.callbacks import energy_extremes
from ebm_lightning.callbacks.energy_extremes import Points, extremes
from tests.callbacks.helpers import Flat, image_jem
from tests.helpers import batches, jem, trainer


def points(energy: list[float]) -> Points:
    n = len(energy)
    return Points(torch.arange(n)[:, None], torch.tensor(energy), torch.zeros(n).long(), torch.zeros(n).long())


def test_the_lowest_and_the_highest_are_kept_in_order():
    first = extremes([points([3.0, 1.0, 2.0, 9.0, 5.0])], 2)
    assert first.energy.tolist() == [1, 2, 5, 9]
    assert extremes([first, points([0.0, 4.0, 8.0])], 2).energy.tolist() == [0, 1, 8, 9]
    assert extremes([points([2.0, 1.0])], 2).energy.tolist() == [1, 2]


def test_the_figure_shows_the_extremes_of_all_batches(tmp_path, monkeypatch):
    seen = []
    original = energy_extremes.plot_extremes
    monkeypatch.setattr(energy_extremes, "plot_extremes", lambda p, *a: seen.append(p) or original(p, *a))
    loader, module = batches(n=50, batch_size=20, shape=(1, 8, 8)), image_jem()
    trainer(tmp_path, callbacks=[EnergyExtremes(4)]).test(module, loader, verbose=False)
    with torch.no_grad():
        energy = module.eval().energy(loader.dataset.tensors[0]).sort().values
    assert torch.allclose(seen[0].energy, torch.cat([energy[:4], energy[-4:]]), atol=1e-5)
    assert (tmp_path / "test-extremes.png").exists()


@pytest.mark.parametrize("shape", [(4,), (2, 6)], ids=["table", "series"])
def test_points_that_are_not_images_are_shown(tmp_path, shape):
    module = jem(Flat(shape), support=Box(-1, 1, shape))
    trainer(tmp_path, callbacks=[EnergyExtremes(4)]).test(module, batches(shape=shape), verbose=False)
    assert (tmp_path / "test-extremes.png").exists()


def test_bad_arguments():
    with pytest.raises(ValueError, match="'count' should be at least 1, got 0"):
        EnergyExtremes(0)
