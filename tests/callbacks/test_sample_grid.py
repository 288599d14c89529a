import pytest
import torch

from ebm_lightning import SGLD, Box, ConditionalEBM, ReplayBuffer, SampleGrid
from ebm_lightning.callbacks import sample_grid
from ebm_lightning.networks import ConvNet
from tests.callbacks.helpers import IMAGES, Flat, image_jem
from tests.helpers import batches, jem, trainer


@pytest.fixture
def loader():
    return batches(shape=(1, 8, 8))


@pytest.fixture
def shown(monkeypatch):
    """What every figure shows: the points, and the texts on them."""
    seen = []
    original = sample_grid.plot_points

    def recorded(axes, x, support, columns, labels=None, scale=1):
        seen.append((x, labels))
        original(axes, x, support, columns, labels, scale)

    monkeypatch.setattr(sample_grid, "plot_points", recorded)
    return seen


@pytest.mark.parametrize("source", ["chains", "fresh"])
def test_each_grid_has_its_own_file_and_is_drawn_once(tmp_path, loader, shown, source):
    """3 steps in each of 2 epochs: the grid of the end of training is that of the last epoch."""
    callback = SampleGrid(1, samples=9, source=source, sampler=SGLD(0.1, 0.01, 2), directory=tmp_path / "p", scale=2)
    trainer(tmp_path, callbacks=[callback], max_epochs=2).fit(image_jem(), loader)
    names = {f"samples-{source}-step-{step:06d}.png" for step in (3, 6)}
    assert {path.name for path in (tmp_path / "p").glob("*.png")} == names
    assert [len(x) for x, _ in shown] == [9, 9]


def test_the_oldest_chain_comes_first_with_its_class_and_energy(tmp_path, loader, shown):
    module = image_jem(chains=ReplayBuffer(8))
    trainer(tmp_path, callbacks=[SampleGrid(0, samples=4)]).fit(module, loader)
    ((x, labels),) = shown
    oldest = module.chains.x[module.chains.age.argsort(descending=True, stable=True)[:4]]
    assert torch.equal(x, oldest)
    with torch.no_grad():
        guess, energy = module.eval()(oldest).argmax(1), module.energy(oldest)
    assert labels == [f"{y}  {e:.4g}" for y, e in zip(guess.tolist(), energy.tolist(), strict=True)]
    assert (tmp_path / "samples-chains-step-000003.png").exists()


@pytest.mark.parametrize("shape", [(4,), (2, 6), (5, 4, 4)], ids=["table", "series", "five channels"])
def test_points_that_are_not_images_are_shown(tmp_path, shape):
    module = jem(Flat(shape), support=Box(-1, 1, shape))
    trainer(tmp_path, callbacks=[SampleGrid(1, samples=9)]).fit(module, batches(shape=shape))
    assert (tmp_path / "samples-chains-step-000003.png").stat().st_size > 3000


def test_modules_without_chains_are_refused(tmp_path, loader):
    with pytest.raises(ValueError, match="'source' should be 'fresh'"):
        trainer(tmp_path, callbacks=[SampleGrid()]).fit(ConditionalEBM(ConvNet((1, 8, 8), 3), 3, IMAGES), loader)


def test_bad_arguments():
    with pytest.raises(ValueError, match="'source' should be 'chains' or 'fresh', got 'buffer'"):
        SampleGrid(source="buffer")
    with pytest.raises(ValueError, match="'samples' should be at least 1, got 0"):
        SampleGrid(samples=0)
