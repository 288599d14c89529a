"""Initial points of chains.

Mutants that these tests kill: points outside the support; samples of the support that are clamped; random numbers of
the global state.
"""

import pytest
import torch

from ebm_lightning import ClassGaussians
from ebm_lightning.chains.initial import initial_points
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Binary, Box, Euclidean
from tests.supports.test_class_gaussians import D, fitted


def test_initial_points_are_clamped_to_the_support(seed):
    initial, box = fitted(seed), Box(-3, 4.5, (D,))
    samples = initial.sample(500, generator=make_generator(seed))
    assert not box.contains(samples).all()
    points = initial_points(initial, box, 500, generator=make_generator(seed))
    assert torch.equal(points, box.clamp(samples))
    assert torch.equal(initial_points(initial, Euclidean((D,)), 500, generator=make_generator(seed)), samples)


def test_initial_points_are_from_the_support_by_default(seed):
    box, corners = Box(-3, 4.5, (D,)), Binary((D,))
    for support in (box, corners):
        expected = support.sample(5, generator=make_generator(seed))
        for initial in (None, support):
            assert torch.equal(initial_points(initial, support, 5, generator=make_generator(seed)), expected)
    with pytest.raises(ValueError, match="'initial' should be None on Binary, which is discrete, got ClassGaussians"):
        initial_points(ClassGaussians(), corners, 5)
    with pytest.raises(ValueError, match="'support' should have finite mass"):
        initial_points(None, Euclidean((D,)), 5)
