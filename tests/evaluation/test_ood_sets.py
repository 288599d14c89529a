import pytest
import torch

from ebm_lightning.evaluation.ood_sets import OOD_SETS, interpolated, inverted, noise, shuffled
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Box, Euclidean

BOX = Box(-1, 1, (3, 8, 8))


@pytest.fixture
def x(seed) -> torch.Tensor:
    return BOX.sample(5)


@pytest.mark.parametrize("name", OOD_SETS)
def test_sets_stay_in_the_box_and_do_not_change_the_data(name, x):
    before = x.clone()
    made = OOD_SETS[name](x, BOX, make_generator(0))
    again = OOD_SETS[name](x, BOX, make_generator(0))
    assert made.shape == x.shape
    assert BOX.contains(made).all()
    assert not (made == x).flatten(1).all(1).any()
    assert torch.equal(x, before)
    assert torch.equal(made, again)


def test_shuffling_keeps_the_pixels_of_an_image_and_their_channels(x):
    made = shuffled(x, BOX, make_generator(0))
    for image, mixed in zip(x, made, strict=True):
        assert sorted(map(tuple, image.flatten(1).T.tolist())) == sorted(map(tuple, mixed.flatten(1).T.tolist()))


def test_each_image_is_shuffled_in_a_different_order():
    x = torch.arange(64.0).view(1, 1, 8, 8).expand(4, -1, -1, -1)
    assert len(shuffled(x, BOX, make_generator(0)).flatten(1).unique(dim=0)) == 4


def test_images_are_interpolated_with_another_image():
    x = torch.tensor([0.0, 2.0, 8.0]).view(3, 1, 1, 1)
    assert sorted(interpolated(x, BOX, make_generator(0)).flatten().tolist()) == [1, 4, 5]


def test_noise_is_uniform_and_inversion_mirrors_in_the_center_of_the_box():
    x = torch.zeros(1000, 3, 8, 8)
    assert noise(x, BOX, make_generator(0)).mean().abs() < 0.01
    assert inverted(torch.tensor([0.2]), Box(0, 1, (1,)), make_generator(0)).item() == pytest.approx(0.8)
    with pytest.raises(ValueError, match="'support' should be a Box or Binary for inverted images, got Euclidean"):
        inverted(x, Euclidean(), make_generator(0))
