"""Reading and downloading image data sets, and errors about missing and damaged files.

Mutants that these tests kill: gzipped files not read; rows and channels swapped; a download of files that exist; a
download despite ``download=False``; a network error that is not wrapped.
"""

import gzip
import pickle
import zipfile
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from ebm_lightning.data import CIFAR10, MNIST, SOURCES, SVHN, MissingImages, NotMNIST
from tests.data.pictures import made_up, write_idx


@pytest.fixture
def offline(monkeypatch) -> list[str]:
    """Makes every download fail; returns the URLs that were requested."""
    requested: list[str] = []

    def refuse(url: str, *args, **kwargs) -> None:
        requested.append(url)
        raise URLError("no route to host")

    for module in (datasets.mnist, datasets.cifar):
        monkeypatch.setattr(module, "download_and_extract_archive", refuse)
    monkeypatch.setattr(datasets.svhn, "download_url", refuse)
    monkeypatch.setattr(datasets.omniglot, "download_and_extract_archive", refuse)
    return requested


@pytest.mark.parametrize("gzipped", [False, True])
def test_idx_files_are_read(gzipped, tmp_path, offline):
    sets = write_idx(tmp_path)
    if gzipped:
        for path in (tmp_path / "MNIST" / "raw").iterdir():
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    data = MNIST(tmp_path, val_size=10)
    data.prepare_data()
    assert not offline, "existing files are not downloaded"
    for split, (levels, labels) in sets.items():
        found, y = data.source.read(tmp_path, split)
        assert torch.equal(found, levels)
        assert torch.equal(y, labels)
        assert y.dtype == torch.long


def test_failed_download_raises_missing_images(tmp_path, offline):
    with pytest.raises(MissingImages) as error:
        MNIST(tmp_path).prepare_data()
    assert str(error.value).startswith(f"'root' should contain MNIST, got '{tmp_path}' without ")
    for text in (
        "MNIST/raw/train-images-idx3-ubyte.gz",
        "the download failed",
        "no route to host",
        "Put the files there",
    ):
        assert text in str(error.value)
    assert offline


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "notMNIST"])
def test_missing_files_are_named(name, tmp_path, offline):
    with pytest.raises(
        MissingImages, match=f"'root' should contain {name}, .*{SOURCES[name].files['test'][0]}.*the download"
    ):
        SOURCES[name].fetch(tmp_path, "test")
    assert offline


def test_nothing_is_downloaded_unless_requested(tmp_path, offline):
    with pytest.raises(MissingImages, match=r"without cifar-10-batches-py/data_batch_1, .* and download is off"):
        CIFAR10(tmp_path, download=False).prepare_data()
    with pytest.raises(MissingImages, match="they were not downloaded"):
        CIFAR10(tmp_path).setup()
    with pytest.raises(MissingImages, match="there is no automatic download"):
        SOURCES["notMNIST"].fetch(tmp_path, "test")
    with pytest.raises(MissingImages, match="'root' should contain notMNIST"):
        NotMNIST(tmp_path).setup()
    assert not offline


def test_downloaded_files_are_read(tmp_path, monkeypatch):
    def fetch(url: str, download_root: str, **kwargs) -> None:
        if not (tmp_path / "new" / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
            (tmp_path / "new" / "MNIST" / "raw").rmdir()
            write_idx(tmp_path / "new")

    monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", fetch)
    data = MNIST(tmp_path / "new", val_size=10)
    data.prepare_data()
    data.setup()
    assert len(data.train) == 50


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: b"", lambda data: b"<html>" + data])
@pytest.mark.parametrize("gzipped", [False, True])
def test_damaged_files_are_named(damage, gzipped, tmp_path):
    write_idx(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    data = path.read_bytes()
    path.unlink()
    if gzipped:
        path.with_name(f"{path.name}.gz").write_bytes(damage(gzip.compress(data)))
    else:
        path.write_bytes(damage(data))
    with pytest.raises(MissingImages, match=r"with damaged files .* Replace MNIST/raw/t10k-images-idx3-ubyte.gz"):
        MNIST(tmp_path).setup("test")


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_cifar_is_read_in_torchvisions_layout(name, tmp_path, monkeypatch):
    dataset, label = getattr(datasets, name), "labels" if name == "CIFAR10" else "fine_labels"
    folder = tmp_path / dataset.base_folder
    folder.mkdir()
    parts = {}
    for kind in ("train_list", "test_list"):
        monkeypatch.setattr(dataset, kind, [[file, None] for file, _ in getattr(dataset, kind)])
        for file, _ in getattr(dataset, kind):
            levels, labels = parts[file] = made_up(4, (3, 32, 32), seed=len(parts))
            entry = {"data": levels.flatten(1).numpy(), label: labels.tolist()}
            (folder / file).write_bytes(pickle.dumps(entry))
    monkeypatch.setattr(dataset, "meta", dataset.meta | {"md5": None})
    (folder / dataset.meta["filename"]).write_bytes(pickle.dumps({dataset.meta["key"]: ["a", "b"]}))
    for split, kind in (("train", "train_list"), ("test", "test_list")):
        levels, labels = SOURCES[name].read(tmp_path, split)
        assert torch.equal(levels, torch.cat([parts[file][0] for file, _ in getattr(dataset, kind)]))
        assert torch.equal(labels, torch.cat([parts[file][1] for file, _ in getattr(dataset, kind)]))
    monkeypatch.undo()
    with pytest.raises(MissingImages, match=f"'root' should contain {name}, .* damaged files"):
        SOURCES[name].read(tmp_path, "train")


def test_svhn_is_read(tmp_path, monkeypatch):
    from scipy.io import savemat

    files = {split: ["", file, None] for split, (_, file, _) in datasets.SVHN.split_list.items()}
    monkeypatch.setattr(datasets.SVHN, "split_list", files)
    for split, seed in (("train", 0), ("test", 1)):
        levels, _ = made_up(5, (3, 32, 32), seed=seed)
        numbers = np.array([[1, 10, 2, 3, 10]]).T  # label 10 is digit 0
        savemat(tmp_path / files[split][1], {"X": levels.permute(2, 3, 1, 0).numpy(), "y": numbers})
        found, y = SOURCES["SVHN"].read(tmp_path, split)
        assert torch.equal(found, levels)
        assert found.is_contiguous()
        assert y.tolist() == [1, 0, 2, 3, 0]
    data = SVHN(tmp_path, 2, val_size=1)
    data.prepare_data()
    data.setup()
    assert data.test[0][0].shape == data.support.shape


def test_omniglot_is_read_with_white_strokes(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.Omniglot, "zips_md5", {"images_background": None, "images_evaluation": None})
    folder = tmp_path / "omniglot-py" / "images_evaluation" / "Tengwar" / "character01"
    folder.mkdir(parents=True)
    Image.new("1", (105, 105), 1).save(folder / "0001_01.png")
    with zipfile.ZipFile(tmp_path / "omniglot-py" / "images_evaluation.zip", "w"):
        pass
    levels, labels = SOURCES["Omniglot"].read(tmp_path, "test")
    assert torch.equal(levels, torch.zeros(1, 1, 105, 105, dtype=torch.uint8))
    assert labels.tolist() == [0]
