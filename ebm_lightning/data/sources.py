"""Where sets of real images are on disk, how they come there, and how they are read."""

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
from torchvision import datasets

Split = Literal["train", "test"]


DAMAGED = (OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError, zipfile.BadZipFile, zlib.error)


class MissingImages(RuntimeError):
    """A set of images is neither on disk nor to be had."""


@dataclass(frozen=True)
class Source:
    """A set of real images.

    Arguments:
        name: What it is called.
        files: Paths below the root that each split needs.
        reader: (root, split) -> integer images, shape (N, C, H, W), uint8, and labels, shape (N,), int64.
        fetcher: root -> whatever; downloads the files. None if nothing does.
    """

    name: str
    files: Mapping[Split, tuple[str, ...]]
    reader: Callable[[Path, Split], tuple[Tensor, Tensor]]
    fetcher: Callable[[Path], Any] | None = None

    def fetch(self, root: Path | str, split: Split, download: bool = True) -> None:
        """Download the images unless they are there.

        Raises:
            MissingImages: They are not there, and ``download`` is false or failed.
        """
        if not self._absent(root, split):
            return
        if not download or self.fetcher is None:
            raise self._missing(root, split, "nothing was downloaded" if self.fetcher else "no download is known")
        try:
            self.fetcher(Path(root))
        except (OSError, RuntimeError, HTTPException) as error:
            raise self._missing(root, split, f"the download failed ({type(error).__name__}: {error})") from error

    def read(self, root: Path | str, split: Split) -> tuple[Tensor, Tensor]:
        """Images, shape (N, C, H, W), uint8, and labels, shape (N,), int64.

        Raises:
            MissingImages: A file is not there, or is damaged.
        """
        if self._absent(root, split):
            raise self._missing(root, split, "nothing was downloaded")
        try:
            return self.reader(Path(root), split)
        except DAMAGED as error:
            raise MissingImages(
                f"'root' should hold {self.name}, got '{root}' with damaged files ({type(error).__name__}: {error}). "
                f"Replace {', '.join(self.files[split])}."
            ) from error

    def _absent(self, root: Path | str, split: Split) -> list[str]:
        paths = {name: Path(root) / name for name in self.files[split]}
        return [name for name, path in paths.items() if not (path.exists() or _unpacked(path).exists())]

    def _missing(self, root: Path | str, split: Split, why: str) -> MissingImages:
        return MissingImages(
            f"'root' should hold {self.name}, got '{root}' without {', '.join(self._absent(root, split))}, and {why}. "
            "Put the files there, or name a folder that has them."
        )


def idx(
    name: str, splits: tuple[Split, ...] = ("train", "test"), fetcher: Callable[[Path], Any] | None = None
) -> Source:
    """Grey images in the files that MNIST came in, packed or not, laid out as torchvision does."""
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
    # Two zeros, the type (8: bytes), the number of dimensions, and each of them as a big-endian integer.
    start = 4 + 4 * data[3]
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4)]
    if data[2] != 8 or len(data) != start + math.prod(shape):
        raise ValueError(f"{path.name} is no whole idx file")
    return torch.frombuffer(data, dtype=torch.uint8, offset=start).view(shape)


def _unpacked(path: Path) -> Path:
    return path.with_suffix("") if path.suffix == ".gz" else path


def _read_cifar(dataset: type[Any]) -> Callable[[Path, Split], tuple[Tensor, Tensor]]:
    def read(root: Path, split: Split) -> tuple[Tensor, Tensor]:
        images = dataset(root, train=split == "train")
        return torch.from_numpy(images.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(images.targets)

    return read


def _read_svhn(root: Path, split: Split) -> tuple[Tensor, Tensor]:
    images = datasets.SVHN(root, split)
    return torch.from_numpy(images.data).contiguous(), torch.from_numpy(images.labels)


def _fetch_svhn(root: Path) -> None:
    for split in ("train", "test"):
        datasets.SVHN(root, split, download=True)


def _read_omniglot(root: Path, split: Split) -> tuple[Tensor, Tensor]:
    from torchvision.transforms.functional import pil_to_tensor

    images, labels = zip(*datasets.Omniglot(root, background=split == "train"), strict=True)
    # Black strokes on white, unlike MNIST's.
    return 255 - torch.stack([pil_to_tensor(image) for image in images]), torch.tensor(labels)


CIFAR10_FILES = tuple(
    f"cifar-10-batches-py/{name}" for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
)
CIFAR100_FILES = ("cifar-100-python/train", "cifar-100-python/test")

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        idx("MNIST", fetcher=lambda root: datasets.MNIST(root, download=True)),
        idx("FashionMNIST", fetcher=lambda root: datasets.FashionMNIST(root, download=True)),
        idx("KMNIST", fetcher=lambda root: datasets.KMNIST(root, download=True)),
        idx("notMNIST", ("test",)),
        Source(
            "Omniglot",
            {"test": ("omniglot-py/images_evaluation.zip",)},
            _read_omniglot,
            lambda root: datasets.Omniglot(root, background=False, download=True),
        ),
        Source(
            "CIFAR10",
            {"train": CIFAR10_FILES, "test": CIFAR10_FILES},
            _read_cifar(datasets.CIFAR10),
            lambda root: datasets.CIFAR10(root, download=True),
        ),
        Source(
            "CIFAR100",
            {"train": CIFAR100_FILES, "test": CIFAR100_FILES},
            _read_cifar(datasets.CIFAR100),
            lambda root: datasets.CIFAR100(root, download=True),
        ),
        Source(
            "SVHN",
            {"train": ("train_32x32.mat",), "test": ("test_32x32.mat",)},
            _read_svhn,
            _fetch_svhn,
        ),
    )
}
"""Every set that torchvision or an idx file gives, by name."""
