"""Real out-of-distribution images, converted to the shape of a model's own.

Mutants that these tests kill: resizing without antialiasing; the mean of the color channels instead of their luma;
noise of 256 levels where the model's images have 17; noise or a choice that differs between calls or depends on
``size``.
"""

import logging

import pytest
import torch
import torch.nn.functional as F

from ebm_lightning.data import CIFAR10, MNIST, OOD_PAIRS, SOURCES, MissingImages, ood_image_sets, ood_images
from ebm_lightning.supports import Box, Euclidean
from tests.conftest import z_score
from tests.data.pictures import made_up, real, write_arrays, write_idx

GRAY, COLOR = Box(-1.0, 1.0, (1, 28, 28)), Box(0.0, 1.0, (3, 32, 32))


def levels_of(x, num_levels=256):
    return (x * num_levels).floor().clamp(max=num_levels - 1)


def same_images(found, expected):
    """Whether both contain the same images. The order is random, so sort both by their pixels."""
    return torch.equal(found.flatten(1).unique(dim=0), expected.flatten(1).unique(dim=0))


def test_images_of_the_same_shape_keep_their_levels(tmp_path):
    levels, _ = write_idx(tmp_path, "FashionMNIST")["test"]
    x = ood_images("FashionMNIST", GRAY, tmp_path, download=False)
    GRAY.check(x)
    assert same_images(levels_of((x + 1) / 2), levels.float())
    u = ((x + 1) / 2 * 256).remainder(1)
    assert z_score(u.flatten()[:5000], 0.5) < 5


def test_images_are_resized_with_antialiasing_and_expanded_to_color(tmp_path):
    levels, _ = write_idx(tmp_path)["test"]
    for side in (8, 32):
        box = Box(0.0, 1.0, (3, side, side))
        x = ood_images("MNIST", box, tmp_path, download=False)
        box.check(x)
        expected = F.interpolate(levels.float(), (side, side), mode="bilinear", antialias=True).round()
        assert same_images(levels_of(x)[:, :1], expected)
        assert torch.equal(levels_of(x), levels_of(x)[:, :1].expand(-1, 3, -1, -1))
        assert not torch.equal(x[:, 0], x[:, 1]), "independent noise for each channel"


def test_color_is_converted_to_luma(tmp_path):
    path = write_arrays(tmp_path)
    x = ood_images(path.name, Box(0.0, 1.0, (1, 8, 8)), tmp_path)
    luma = (made_up(12, seed=1)[0] * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    found, expected = (v.flatten(1).sort(0).values for v in (levels_of(x), luma))
    assert (found - expected).abs().max() <= 1.1


def test_noise_has_the_width_of_the_models_levels(tmp_path):
    levels, _ = write_idx(tmp_path)["test"]
    x = ood_images("MNIST", Box(0.0, 1.0, (1, 28, 28)), tmp_path, num_levels=17)
    assert same_images(levels_of(x, 17), (levels.float() * 17 / 256).floor())
    assert z_score((x * 17).remainder(1).flatten()[:5000], 0.5) < 5


def test_choice_is_deterministic_and_leaves_the_global_random_state(tmp_path):
    write_idx(tmp_path)
    state = torch.get_rng_state()
    few = ood_images("MNIST", GRAY, tmp_path, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert few.shape == (5, 1, 28, 28)
    assert torch.equal(ood_images("MNIST", GRAY, tmp_path, 5), few)
    assert not torch.equal(ood_images("MNIST", GRAY, tmp_path, 5, seed=1), few)
    assert torch.equal(ood_images("MNIST", GRAY, tmp_path, 12)[:5].add(1).mul(128).floor(), few.add(1).mul(128).floor())


def test_missing_sets_are_skipped_with_a_message(tmp_path, caplog):
    write_idx(tmp_path, "notMNIST")
    with caplog.at_level(logging.INFO):
        sets = ood_image_sets(OOD_PAIRS["MNIST"], MNIST.support, tmp_path, 5, download=False)
    assert list(sets) == ["notMNIST"]
    assert "FashionMNIST is skipped: 'root' should contain FashionMNIST" in caplog.text
    with pytest.raises(MissingImages, match="'root' should contain SVHN"):
        ood_images("SVHN", CIFAR10.support, tmp_path, download=False)


@pytest.mark.parametrize(
    ("name", "like", "message"),
    [
        ("ImageNet", GRAY, "'name' should be one of MNIST, .* or end with .npz, got 'ImageNet'"),
        ("MNIST", Euclidean((1, 28, 28)), r"'like' should be a Box of shape \(1, H, W\) or \(3, H, W\), got Euclidean"),
        ("MNIST", Box(0, 1, (784,)), "'like' should be a Box"),
        ("MNIST", Box(0, 1, (2, 28, 28)), "'like' should be a Box"),
    ],
)
def test_unknown_names_and_shapes_are_rejected(name, like, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ood_images(name, like, tmp_path)


def test_ood_pairs_name_known_sources():
    for name, others in OOD_PAIRS.items():
        assert {name, *others} <= SOURCES.keys()
        assert name not in others


def test_real_images_are_converted_to_the_shape_of_the_box():
    root = real("FashionMNIST/raw", "notMNIST/raw")
    for name in ("FashionMNIST", "notMNIST"):
        COLOR.check(ood_images(name, COLOR, root, 200, download=False))
