import pytest
import torch
from matplotlib.image import imread

from ebm_lightning import SGLD, ConditionalEBM, ReplayBuffer, SampleGrid
from ebm_lightning.networks import ConvNet
from tests.callbacks.helpers import IMAGES, image_jem
from tests.helpers import batches, jem, trainer


@pytest.fixture
def loader():
    return batches(shape=(1, 8, 8))


@pytest.mark.parametrize("source", ["chains", "fresh"])
def test_size_of_the_grid(tmp_path, loader, source):
    callback = SampleGrid(1, samples=9, source=source, sampler=SGLD(0.1, 0.01, 2), directory=tmp_path / "p", scale=2)
    trainer(tmp_path, callbacks=[callback]).fit(image_jem(), loader)
    picture = imread(tmp_path / "p" / f"samples-{source}.png")
    assert picture.shape == (3 * (16 + 2) + 2, 3 * (16 + 2) + 2, 3)


def test_the_oldest_chain_comes_first(tmp_path, loader):
    module = image_jem(chains=ReplayBuffer(8))
    trainer(tmp_path, callbacks=[SampleGrid(0, samples=4)]).fit(module, loader)
    picture = torch.from_numpy(imread(tmp_path / "samples-chains.png"))[..., 0]
    oldest = module.chains.x[module.chains.age.argsort(descending=True, stable=True)[0]]
    assert (picture[1:9, 1:9] - (oldest[0] + 1) / 2).abs().max() < 1 / 250


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: jem(), "'support' should be a Box of images"),
        (lambda: ConditionalEBM(ConvNet((1, 8, 8), 3), 3, IMAGES), "'source' should be 'fresh'"),
    ],
)
def test_modules_without_images_or_chains_are_refused(module, message, tmp_path, loader):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, callbacks=[SampleGrid()]).fit(module(), loader)


def test_bad_arguments():
    with pytest.raises(ValueError, match="'source' should be 'chains' or 'fresh', got 'buffer'"):
        SampleGrid(source="buffer")
    with pytest.raises(ValueError, match="'samples' should be at least 1, got 0"):
        SampleGrid(samples=0)
