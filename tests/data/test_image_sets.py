"""Data modules of standard image data sets."""

from pathlib import Path

import pytest
from lightning.pytorch.cli import LightningCLI

from ebm_lightning.data import (
    CIFAR10,
    CIFAR100,
    MNIST,
    SVHN,
    FashionMNIST,
    ImageDataModule,
    NotMNIST,
)
from ebm_lightning.supports import Box
from tests.data.pictures import ready, real, write_arrays


@pytest.mark.parametrize("data", [MNIST, FashionMNIST, CIFAR10, CIFAR100, SVHN, NotMNIST])
def test_image_sets_describe_themselves(data):
    assert data.support == Box(-1, 1, data.support.shape)
    assert len(set(data.class_names)) == len(data.class_names) == data.num_classes
    assert data.num_levels == 256
    assert list(data.class_names) == sorted(data.class_names) or data is FashionMNIST


@pytest.mark.filterwarnings("ignore")  # LightningCLI 2.6 uses what jsonargparse 4.53 deprecates
def test_lightning_cli_builds_data_modules(tmp_path):
    arrays = write_arrays(tmp_path)

    def built(*arguments: str) -> ImageDataModule:
        init_args = "{classifier: torch.nn.Identity, num_classes: 2}"
        model = f"--model={{class_path: ebm_lightning.ConditionalEBM, init_args: {init_args}}}"
        return LightningCLI(run=False, args=[model, *arguments], save_config_callback=None).datamodule

    data = built("--data=CIFAR10", "--data.augment=crop-flip", "--data.separate_batch_size=64", "--data.root=elsewhere")
    assert isinstance(data, CIFAR10)
    assert (data.augment, data.separate_batch_size, data.root) == ("crop-flip", 64, Path("elsewhere"))
    data = built("--data=ImageArrays", f"--data.path={arrays}", "--data.size=9")
    assert (data.support, data.size) == (Box(-1, 1, (3, 8, 8)), 9)


@pytest.mark.parametrize("data", [MNIST, FashionMNIST])
def test_real_grayscale_images_load(data):
    data = data(real(f"{data.__name__}/raw"), val_size=5000, download=False)
    ready(data)
    assert [len(part) for part in (data.train, data.val, data.test)] == [55_000, 5000, 10_000]
    assert data.train.levels.shape == (55_000, 1, 28, 28)
    frequencies = data.train.labels.bincount() / 55_000
    assert (data.val.labels.bincount() - 5000 * frequencies).abs().max() < 2


def test_real_notmnist_loads():
    data = NotMNIST(real("notMNIST/raw"))
    data.setup("test")
    x, y = next(iter(data.test_dataloader()))
    data.support.check(x)
    assert y.max() < 10
