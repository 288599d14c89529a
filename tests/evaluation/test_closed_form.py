"""Densities in closed form against values by hand, and against sums over all levels.

Mutants that these tests kill: frequencies of classes left out, or of the test data; counts of the test data; smoothing
left out, or one pseudo-count for each level; a density of pixels in place of images; a width of the box left out.
"""

import itertools
import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from ebm_lightning import Box
from ebm_lightning.evaluation.closed_form import Floor, closed_form_floors

BOX = Box(-1.0, 1.0, (2,))
LEVELS = 3
IMAGES = torch.tensor([[0, 0], [0, 1], [2, 1], [2, 2], [2, 2], [1, 0]])
LABELS = torch.tensor([0, 0, 0, 1, 1, 1])
LABELS_2_TO_1 = torch.tensor([0, 0, 0, 0, 1, 1])


def continuous(levels: torch.Tensor) -> torch.Tensor:
    """Midpoints of the levels, in the box."""
    return -1 + 2 * (levels.double() + 0.5) / LEVELS


def masses(images: torch.Tensor) -> torch.Tensor:
    """Smoothed probabilities of levels, shape (2, 3): 0.3 pseudo-counts, mostly spread as the average of the pixels."""
    counts = torch.stack([(images == k).double().sum(0) for k in range(LEVELS)], 1)
    added = 0.1 * LEVELS * (0.95 * counts.sum(0) / counts.sum() + 0.05 / LEVELS)
    return (counts + added) / (counts + added).sum(1, keepdim=True)


def bits(probabilities: torch.Tensor) -> float:
    """Bits per pixel of images with these probabilities as integers."""
    return -float(probabilities.log2().mean()) / 2


def floors(test: torch.Tensor, y_test: torch.Tensor, y: torch.Tensor = LABELS) -> dict[str, Floor]:
    return closed_form_floors((continuous(IMAGES), y), (continuous(test), y_test), BOX, LEVELS)


@pytest.mark.parametrize("y", [LABELS, LABELS_2_TO_1])
def test_histograms_are_those_of_counts(y):
    test, y_test = torch.tensor([[0, 0], [2, 2], [1, 1], [2, 0]]), torch.tensor([0, 1, 1, 0])
    found = floors(test, y_test, y)
    pixel = torch.arange(2)
    assert found["uniform"] == (pytest.approx(math.log2(3)), None)
    of_all = masses(IMAGES)[pixel, test].prod(1)
    assert found["histograms"] == (pytest.approx(bits(of_all)), None)
    prior = y.bincount().double() / 6
    joint = torch.stack([prior[c] * masses(IMAGES[y == c])[pixel, test].prod(1) for c in range(2)], 1)
    accuracy = float((joint.argmax(1) == y_test).double().mean())
    assert found["class histograms"] == (pytest.approx(bits(joint.sum(1))), pytest.approx(accuracy))


def test_gaussians_are_those_of_the_classes():
    test, y_test = torch.tensor([[0, 0], [2, 2], [1, 1]]), torch.tensor([0, 1, 0])
    x, x_test = continuous(IMAGES), continuous(test)
    joint = []
    for c in range(2):
        own = x[c == LABELS]
        normal = MultivariateNormal(own.mean(0), own.T.cov() + 1e-3 * torch.eye(2))
        joint.append(normal.log_prob(x_test) + math.log(0.5))
    joint = torch.stack(joint, 1)
    density = joint.logsumexp(1).exp() * (2 / LEVELS) ** 2  # times the area of a cell
    accuracy = float((joint.argmax(1) == y_test).double().mean())
    found = floors(test, y_test)["class Gaussians"]
    assert found.bits_per_dim == pytest.approx(bits(density), abs=1e-4)
    assert found.accuracy == pytest.approx(accuracy)


def test_probabilities_of_all_images_sum_to_1():
    """2 pixels of 3 levels: 2^(-2 bits) over the 9 images."""
    sums = dict.fromkeys(("uniform", "histograms", "class histograms"), 0.0)
    for image in itertools.product(range(LEVELS), repeat=2):
        found = floors(torch.tensor([image]), torch.tensor([0]))
        for name in sums:
            sums[name] += 2 ** (-2 * found[name].bits_per_dim)
    assert sums == {name: pytest.approx(1.0) for name in sums}
