"""Real images that are foreign to a model, brought to its shape.

Mutants that these tests kill: resizing without antialiasing; the mean of colours in place of their luma; noise of 256
levels where the model's images have 17; noise or a choice that differs from call to call, or by ``size``.
"""

import logging

import pytest
import torch
import torch.nn.functional as F

from ebm_lightning.data import CIFAR10, MNIST, OOD_PAIRS, SOURCES, MissingImages, ood_image_sets, ood_images
from ebm_lightning.supports import Box, Euclidean
from tests.conftest import z_score
from tests.pictures import made_up, real, write_arrays, write_idx

GREY, COLOUR = Box(-1.0, 1.0, (1, 28, 28)), Box(0.0, 1.0, (3, 32, 32))


def levels_of(x, num_levels=256):
    return (x * num_levels).floor().clamp(max=num_levels - 1)


def in_order(found, expected):
    """Both sorted by their pixels, since the choice comes in an order of its own."""
    return torch.equal(found.flatten(1).unique(dim=0), expected.flatten(1).unique(dim=0))


def test_images_of_the_shape_keep_their_levels(tmp_path):
    levels, _ = write_idx(tmp_path, "FashionMNIST")["test"]
    x = ood_images("FashionMNIST", GREY, tmp_path, download=False)
    GREY.check(x)
    assert in_order(levels_of((x + 1) / 2), levels.float())
    u = ((x + 1) / 2 * 256).remainder(1)
    assert z_score(u.flatten()[:5000], 0.5) < 5


def test_sizes_are_changed_by_antialiased_interpolation_and_grey_becomes_colour(tmp_path):
    levels, _ = write_idx(tmp_path)["test"]
    for side in (8, 32):
        box = Box(0.0, 1.0, (3, side, side))
        x = ood_images("MNIST", box, tmp_path, download=False)
        box.check(x)
        expected = F.interpolate(levels.float(), (side, side), mode="bilinear", antialias=True).round()
        assert in_order(levels_of(x)[:, :1], expected)
        assert torch.equal(levels_of(x), levels_of(x)[:, :1].expand(-1, 3, -1, -1))
        assert not torch.equal(x[:, 0], x[:, 1]), "noise is of each value"


def test_colour_becomes_grey_by_its_luma(tmp_path):
    path = write_arrays(tmp_path)
    x = ood_images(path.name, Box(0.0, 1.0, (1, 8, 8)), tmp_path)
    luma = (made_up(12, seed=1)[0] * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    found, expected = (v.flatten(1).sort(0).values for v in (levels_of(x), luma))
    assert (found - expected).abs().max() <= 1.1


def test_noise_is_that_of_the_models_own_levels(tmp_path):
    levels, _ = write_idx(tmp_path)["test"]
    x = ood_images("MNIST", Box(0.0, 1.0, (1, 28, 28)), tmp_path, num_levels=17)
    assert in_order(levels_of(x, 17), (levels.float() * 17 / 256).floor())
    assert z_score((x * 17).remainder(1).flatten()[:5000], 0.5) < 5


def test_the_choice_is_fixed_and_the_global_random_state_untouched(tmp_path):
    write_idx(tmp_path)
    state = torch.get_rng_state()
    few = ood_images("MNIST", GREY, tmp_path, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert few.shape == (5, 1, 28, 28)
    assert torch.equal(ood_images("MNIST", GREY, tmp_path, 5), few)
    assert not torch.equal(ood_images("MNIST", GREY, tmp_path, 5, seed=1), few)
    assert torch.equal(ood_images("MNIST", GREY, tmp_path, 12)[:5].add(1).mul(128).floor(), few.add(1).mul(128).floor())


def test_of_many_sets_those_that_are_absent_are_left_out_with_a_reason(tmp_path, caplog):
    write_idx(tmp_path, "notMNIST")
    with caplog.at_level(logging.INFO):
        sets = ood_image_sets(OOD_PAIRS["MNIST"], MNIST.support, tmp_path, 5, download=False)
    assert list(sets) == ["notMNIST"]
    assert "FashionMNIST is left out: 'root' should hold FashionMNIST" in caplog.text
    with pytest.raises(MissingImages, match="'root' should hold SVHN"):
        ood_images("SVHN", CIFAR10.support, tmp_path, download=False)


@pytest.mark.parametrize(
    ("name", "like", "message"),
    [
        ("ImageNet", GREY, "'name' should be among MNIST, .* or end with .npz, got 'ImageNet'"),
        ("MNIST", Euclidean((1, 28, 28)), r"'like' should be a Box of shape \(1, H, W\) or \(3, H, W\), got Euclidean"),
        ("MNIST", Box(0, 1, (784,)), "'like' should be a Box"),
        ("MNIST", Box(0, 1, (2, 28, 28)), "'like' should be a Box"),
    ],
)
def test_unknown_names_and_shapes_are_refused(name, like, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ood_images(name, like, tmp_path)


def test_every_pair_can_be_had_somewhere():
    for name, others in OOD_PAIRS.items():
        assert {name, *others} <= SOURCES.keys()
        assert name not in others


def test_real_images_take_the_shape_of_others():
    root = real("FashionMNIST/raw", "notMNIST/raw")
    for name in ("FashionMNIST", "notMNIST"):
        COLOUR.check(ood_images(name, COLOUR, root, 200, download=False))
