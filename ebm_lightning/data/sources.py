"""Image data sets on disk: expected files, download and reading."""

import gzip
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ebm_lightning._lazy import optional_packages

Split = Literal["train", "test"]

# What readers raise for a file that is truncated or is something else.
DAMAGED = (OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError, zipfile.BadZipFile, zlib.error)


class MissingImages(RuntimeError):
    """Images are not on disk and were not downloaded, or their files are damaged."""


@dataclass(frozen=True)
class Source:
    """Files of an image data set, and how to download and read them.

    Arguments:
        name: Name of the data set.
        files: For each split, the files that it needs, as paths below the root.
        reader: Maps (root, split) to images, uint8 of shape (N, C, H, W), and labels, int64 of shape (N,).
        fetcher: Downloads the files to the root. None if they have to be put there by hand.
    """

    name: str
    files: Mapping[Split, tuple[str, ...]]
    reader: Callable[[Path, Split], tuple[Tensor, Tensor]]
    fetcher: Callable[[Path], Any] | None = None

    def fetch(self, root: Path | str, split: Split, download: bool = True) -> None:
        """Download the images if they are not on disk.

        Raises:
            MissingImages: They are not on disk, and ``download`` is false or the download failed.
        """
        if not self._missing_files(root, split):
            return
        if not download or self.fetcher is None:
            raise self._error(root, split, "download is off" if self.fetcher else "there is no automatic download")
        try:
            self.fetcher(Path(root))
        except (OSError, RuntimeError, HTTPException) as error:
            raise self._error(root, split, f"the download failed ({type(error).__name__}: {error})") from error

    def read(self, root: Path | str, split: Split) -> tuple[Tensor, Tensor]:
        """Images, uint8 of shape (N, C, H, W), and labels, int64 of shape (N,).

        Raises:
            MissingImages: A file is missing or damaged.
        """
        if self._missing_files(root, split):
            raise self._error(root, split, "they were not downloaded")
        try:
            return self.reader(Path(root), split)
        except DAMAGED as error:
            why = f"{type(error).__name__}: {error}"
            raise MissingImages(
                f"'root' should contain {self.name}, got '{root}' with damaged files ({why}). Replace "
                f"{', '.join(self.files[split])}."
            ) from error

    def _missing_files(self, root: Path | str, split: Split) -> list[str]:
        paths = {name: Path(root) / name for name in self.files[split]}
        return [name for name, path in paths.items() if not (path.exists() or _unpacked(path).exists())]

    def _error(self, root: Path | str, split: Split, why: str) -> MissingImages:
        missing = ", ".join(self._missing_files(root, split))
        return MissingImages(
            f"'root' should contain {self.name}, got '{root}' without {missing}, and {why}. Put the files there, or "
            "pass a folder that contains them."
        )


def idx_source(
    name: str, splits: tuple[Split, ...] = ("train", "test"), fetcher: Callable[[Path], Any] | None = None
) -> Source:
    """Grayscale images in MNIST's idx format, gzipped or not, in torchvision's folder layout."""
    prefix = {"train": "train", "test": "t10k"}

    def files(split: Split) -> tuple[str, str]:
        kinds = ("images-idx3", "labels-idx1")
        images, labels = (f"{name}/raw/{prefix[split]}-{kind}-ubyte.gz" for kind in kinds)
        return images, labels

    def read(root: Path, split: Split) -> tuple[Tensor, Tensor]:
        images, labels = (_read_idx(root / path) for path in files(split))
        return images[:, None], labels.long()

    return Source(name, {split: files(split) for split in splits}, read, fetcher)


def _read_idx(path: Path) -> Tensor:
    path = path if path.exists() else _unpacked(path)
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        data = bytearray(file.read())
    # Header: two zero bytes, the type (8: uint8), the number of dimensions, and each size as a big-endian integer.
    start = 4 + 4 * data[3]
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4)]
    if data[2] != 8 or len(data) != start + math.prod(shape):
        raise ValueError(f"{path.name} is not a complete idx file")
    return torch.frombuffer(data, dtype=torch.uint8, offset=start).view(shape)


def _unpacked(path: Path) -> Path:
    return path.with_suffix("") if path.suffix == ".gz" else path


def _torchvision(name: str) -> Any:
    """The data set class of that name. torchvision is imported late, because only a few sources need it."""
    with optional_packages(name):
        from torchvision import datasets

    return getattr(datasets, name)


def _download(name: str) -> Callable[[Path], Any]:
    return lambda root: _torchvision(name)(root, download=True)


def _cifar_source(name: str, files: tuple[str, ...]) -> Source:
    def read(root: Path, split: Split) -> tuple[Tensor, Tensor]:
        images = _torchvision(name)(root, train=split == "train")
        return torch.from_numpy(images.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(images.targets)

    return Source(name, {"train": files, "test": files}, read, _download(name))


def _read_svhn(root: Path, split: Split) -> tuple[Tensor, Tensor]:
    images = _torchvision("SVHN")(root, split)
    return torch.from_numpy(images.data).contiguous(), torch.from_numpy(images.labels)


def _fetch_svhn(root: Path) -> None:
    for split in ("train", "test"):
        _torchvision("SVHN")(root, split, download=True)


def _read_omniglot(root: Path, split: Split) -> tuple[Tensor, Tensor]:
    with optional_packages("Omniglot"):
        from torchvision.transforms.functional import pil_to_tensor

    images, labels = zip(*_torchvision("Omniglot")(root, background=split == "train"), strict=True)
    # Invert: Omniglot has black strokes on white, MNIST white on black.
    return 255 - torch.stack([pil_to_tensor(image) for image in images]), torch.tensor(labels)


def _fetch_omniglot(root: Path) -> None:
    _torchvision("Omniglot")(root, background=False, download=True)


CIFAR10_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        idx_source("MNIST", fetcher=_download("MNIST")),
        idx_source("FashionMNIST", fetcher=_download("FashionMNIST")),
        idx_source("KMNIST", fetcher=_download("KMNIST")),
        idx_source("notMNIST", ("test",)),
        Source("Omniglot", {"test": ("omniglot-py/images_evaluation.zip",)}, _read_omniglot, _fetch_omniglot),
        _cifar_source("CIFAR10", tuple(f"cifar-10-batches-py/{name}" for name in CIFAR10_BATCHES)),
        _cifar_source("CIFAR100", ("cifar-100-python/train", "cifar-100-python/test")),
        Source("SVHN", {"train": ("train_32x32.mat",), "test": ("test_32x32.mat",)}, _read_svhn, _fetch_svhn),
    )
}
"""The known image data sets, by name."""
