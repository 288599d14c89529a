"""Images from .npz files."""

import numpy as np
import pytest
import torch

from ebm_lightning.data import CIFAR10, ImageArrays, MissingImages
from tests.data.pictures import made_up, ready, real, write_arrays


def test_grayscale_arrays_get_a_channel(tmp_path):
    images = made_up(12, (9, 7))[0].numpy()
    labels = np.arange(12, dtype=np.uint8) % 4
    np.savez(tmp_path / "gray.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    data = ready(ImageArrays(tmp_path / "gray.npz", 4, 4))
    assert data.support.shape == (1, 9, 7)
    assert (data.num_classes, data.class_names) == (4, ("0", "1", "2", "3"))
    assert torch.equal(data.test.levels[:, 0], torch.from_numpy(images))


def test_color_arrays_are_channels_first(tmp_path):
    data = ready(ImageArrays(write_arrays(tmp_path), val_size=20))
    assert torch.equal(data.test.levels, made_up(12, seed=1)[0])
    assert data.test.levels.is_contiguous()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.zeros((4, 2, 2), dtype=np.float32)}, "x_train is float32"),
        ({"y_train": np.zeros(3, dtype=np.int64)}, r"y_train has shape \(3,\)"),
        ({"y_train": np.array([0, 1, -1, 0])}, "y_train is int64; expected integers from 0"),
        ({"y_train": np.array([0.0, 1, 1, 0])}, "y_train is float64"),
    ],
)
def test_arrays_of_wrong_type_or_shape_are_rejected(change, message, tmp_path):
    good = {"x_train": np.zeros((4, 2, 2), dtype=np.uint8), "y_train": np.arange(4) % 2}
    np.savez(tmp_path / "bad.npz", **(good | change))
    with pytest.raises(MissingImages, match=message):
        ImageArrays(tmp_path / "bad.npz")


def test_missing_and_damaged_array_files_are_rejected(tmp_path):
    with pytest.raises(MissingImages, match=r"'path' should be an .npz file .* got 'nowhere.npz'"):
        ImageArrays("nowhere.npz")
    (tmp_path / "half.npz").write_bytes(write_arrays(tmp_path).read_bytes()[:999])
    with pytest.raises(MissingImages, match=r"'root' should contain half.npz, got .* with damaged files"):
        ImageArrays(tmp_path / "half.npz")


def test_real_color_images_load():
    name = "cifar10-subset/cifar10_subset_10000_2000.npz"
    data = ready(ImageArrays(real(name) / name, val_size=1000))
    assert data.support == CIFAR10.support
    assert data.num_classes == 10
    assert [len(part) for part in (data.train, data.val, data.test)] == [9000, 1000, 2000]
