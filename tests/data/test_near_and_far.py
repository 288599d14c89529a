"""Data sets with near and far sets, and made textures."""

import pytest
import torch

from ebm_lightning.data.near_and_far import near_and_far
from ebm_lightning.data.textures import textures
from ebm_lightning.supports import Box


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 20)])
def test_textures_fill_the_box(shape):
    box = Box(-1.0, 1.0, shape)
    x = textures(60, box, torch.Generator().manual_seed(0))
    assert x.shape == (60, *shape)
    assert box.contains(x).all()
    assert (x[:, 0].flatten(1).amin(1) == -1).all()
    assert x.flatten(1).std(1).min() > 0.1
    assert torch.equal(x, textures(60, box, torch.Generator().manual_seed(0)))


def test_digits_need_no_folder():
    state = torch.get_rng_state()
    sets = near_and_far("digits", size=50)
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(part[0]) for part in (sets.train, sets.val, sets.test)] == [1077, 270, 450]
    assert {name: len(x) for name, x in {**sets.near, **sets.far}.items()} == {
        "transposed": 50,
        "means of two": 50,
        "textures": 50,
        "noise": 50,
    }
    assert all(sets.support.contains(x).all() for x in {**sets.near, **sets.far}.values())


def test_other_data_need_a_folder():
    with pytest.raises(ValueError, match="'root' should be the folder with the images of MNIST"):
        near_and_far("MNIST")
