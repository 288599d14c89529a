"""Mixture densities, and the one fitted to data: values, gradients, samples and clusters.

Mutants killed: weights left out of log q, responsibilities without weights, components stacked in another order than
the weights, samples in the order of the components, clusters by k-means only, the variance of all data in
place of that of a cluster.
"""

import math

import pytest
import torch

from ebm_lightning.partition import Normal, ais, quadrature
from ebm_lightning.partition.clusters import clusters
from ebm_lightning.partition.mixture import Mixture, data_base
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Binary, Box, Density, Euclidean, Gaussian
from tests.conftest import z_score

BOX, PLANE = Box(-2, 2, (2,)), Euclidean((2,))
LEFT = Normal(torch.tensor([-1.0, 0.0]), torch.tensor([0.3, 0.5]), BOX)
RIGHT = Normal(torch.tensor([1.0, 0.5]), torch.tensor([0.2, 1.0]), BOX)
MIXTURE = Mixture([LEFT, BOX, RIGHT, Box(-2, 2, (2,), reference=LEFT)], torch.tensor([2.0, 1.0, 4.0, 1.0]))


def test_a_mixture_is_normalized():
    assert abs(quadrature(lambda x: -MIXTURE.log_prob(x), BOX)) < 1e-4


def test_log_prob_is_that_of_the_weighted_components():
    x = BOX.sample(50, generator=make_generator(0, "x"))
    parts = [w * d.log_prob(x).double().exp() for w, d in zip(MIXTURE.weights, MIXTURE.components, strict=True)]
    torch.testing.assert_close(MIXTURE.log_prob(x).exp(), torch.stack(parts).sum(0))
    torch.testing.assert_close(MIXTURE.joint_log_prob(x).exp(), torch.stack(parts, 1))


def test_the_analytic_gradient_is_that_of_autograd():
    x = MIXTURE.sample(50, generator=make_generator(0, "x"))
    log_p, gradient = MIXTURE.log_prob_and_gradient(x)
    expected_log_p, expected_gradient = Density.log_prob_and_gradient(MIXTURE, x)
    torch.testing.assert_close(log_p, expected_log_p)
    torch.testing.assert_close(gradient, expected_gradient)


def test_samples_follow_the_density(seed):
    x = MIXTURE.sample(20_000, generator=make_generator(seed, "x"))
    right = quadrature(lambda x: -MIXTURE.log_prob(x) + 1e4 * (x[:, 0] < 0), BOX)
    assert z_score((x[:, 0] > 0).double(), math.exp(right)) < 5
    squared = math.exp(quadrature(lambda x: -2 * MIXTURE.log_prob(x), BOX))
    assert z_score(MIXTURE.log_prob(x).exp(), squared) < 5
    first, second = x[:10_000, 0].double(), x[10_000:, 0].double()
    assert abs(float(first.mean() - second.mean())) < 5 * float(x[:, 0].std()) * (2 / 10_000) ** 0.5


def test_equal_generators_give_equal_samples_and_leave_the_global_state():
    state = torch.get_rng_state()
    a, b = (MIXTURE.sample(9, generator=make_generator(0, "x")) for _ in range(2))
    assert torch.equal(a, b)
    data_base(a, None, BOX)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("components", "weights", "message"),
    [
        ([], None, "'components' should be at least one density"),
        ([LEFT, Gaussian(0.0, 1.0, (2,))], None, "'components' should have the same domain"),
        ([LEFT, Box(-1, 1, (2,))], None, "'components' should have the same domain"),
        ([Binary((2,))], None, "'components' should be densities of continuous x, got Binary"),
        ([PLANE], None, "'components' should have finite mass"),
        ([LEFT, RIGHT], torch.ones(3), r"'weights' should have shape \(2,\), got \(3,\)"),
        ([LEFT, RIGHT], torch.tensor([1.0, 0.0]), r"'weights' should be .*, got 0\.0"),
    ],
)
def test_mixtures_that_are_no_density_are_refused(components, weights, message):
    with pytest.raises(ValueError, match=message):
        Mixture(components, weights)


def spread_modes(seed: int, modes: int, dimensions: int, points: int = 40):
    centers = 0.2 + 0.6 * torch.rand(modes, dimensions, generator=make_generator(seed, "centers"))
    y = torch.arange(points * modes) % modes
    noise = torch.randn(len(y), dimensions, generator=make_generator(seed, "noise"))
    return (centers[y] + 0.05 * noise).clamp(0, 1), y


@pytest.mark.parametrize("modes", [1, 3, 10])
def test_clusters_of_unlabeled_data_are_found(modes, seed):
    x, _ = spread_modes(seed, modes, 64)
    found = clusters(x)
    assert sorted(map(len, found)) == [40] * modes
    base = data_base(x, None, Box(0, 1, (64,)))
    widths = torch.stack([component.std.mean() for component in base.components[:-1]])
    assert len(widths) == modes
    assert (widths - 0.05).abs().max() < 0.005


def test_a_class_with_clusters_is_divided_and_one_without_stays_whole(seed):
    x, y = spread_modes(seed, 3, 64)
    assert sorted(map(len, clusters(x, (y == 2).long()))) == [40, 40, 40]
    assert sorted(map(len, clusters(x, y))) == [40, 40, 40]


@pytest.mark.parametrize("spikes", [1, 2, 3])
def test_dense_groups_are_found_on_a_wide_background(spikes, seed):
    """k-means divides the background, which has most of the squared distance, and merges the groups with its points."""
    rng = make_generator(seed, "spikes")
    background = torch.rand(70, 60, generator=rng)
    centers = 0.3 + 0.4 * torch.rand(spikes, 60, generator=rng)
    dense = [center + 0.025 * torch.randn(230 // spikes, 60, generator=rng) for center in centers]
    found = clusters(torch.cat([background, *dense])[torch.randperm(70 + 230 // spikes * spikes, generator=rng)])
    assert sorted(map(len, found)) == sorted([70, *map(len, dense)])


def test_the_reference_has_its_weight_and_a_plane_gets_a_wide_normal(seed):
    x, y = spread_modes(seed, 2, 2)
    on_box = data_base(x, y, Box(0, 1, (2,)), reference_weight=0.2)
    assert isinstance(on_box.components[-1], Box)
    assert float(on_box.weights[-1]) == pytest.approx(0.2)
    assert not any(
        isinstance(component, Box) for component in data_base(x, y, Box(0, 1, (2,)), reference_weight=0).components
    )
    wide = data_base(x, y, PLANE).components[-1]
    assert isinstance(wide, Normal)
    torch.testing.assert_close(wide.std, 2 * x.double().std(0))


def test_constant_pixels_and_single_points_have_a_positive_width():
    x = torch.zeros(20, 8)
    x[:, 0] = torch.linspace(0.1, 0.9, 20)
    labels = torch.tensor([0] * 19 + [1])
    base = data_base(x, labels, Box(0, 1, (8,)))
    assert base.log_prob(x).isfinite().all()


@pytest.mark.parametrize(
    ("data", "labels", "options", "message"),
    [
        (torch.full((4, 2), 5.0), None, {}, "'data' should be in the box"),
        (torch.zeros(1, 2), None, {}, "'data' should be at least 2 points, got 1"),
        (torch.zeros(4, 2), torch.zeros(3), {}, r"'labels' should have shape \(4,\), got \(3,\)"),
        (torch.zeros(4, 2), None, {"reference_weight": 1.0}, r"'reference_weight' should be in \[0, 1\), got 1.0"),
    ],
)
def test_data_that_do_not_fit_the_support_are_refused(data, labels, options, message):
    with pytest.raises(ValueError, match=message):
        data_base(data, labels, BOX, **options)


def spikes(x, centers, std=0.05):
    """Modes of mass e^3 on a plateau of mass 1."""
    squares = (x[:, None] - centers).square().sum(2)
    log_p = 3 - squares / (2 * std**2) - x.shape[1] * math.log(std * math.sqrt(2 * math.pi))
    return -torch.cat([log_p, torch.zeros_like(log_p[:, :1])], 1).logsumexp(1)


@pytest.mark.parametrize("dimensions", [64, pytest.param(784, marks=pytest.mark.slow)])
def test_a_base_fitted_to_data_finds_spikes_on_a_plateau(dimensions, seed):
    """Kills: a reference of weight .5, no shrinkage of variances (784), one normal for all data."""
    x, _ = spread_modes(seed, 3, dimensions, points=100)  # with 40, 784 dimensions are unreliable
    centers = 0.2 + 0.6 * torch.rand(3, dimensions, generator=make_generator(seed, "centers"))
    box = Box(0, 1, (dimensions,))
    base = data_base(x, None, box)
    result = ais(lambda x: spikes(x, centers), box, proposal=base, seed=seed)
    assert result.reliable
    assert abs(result.log_z - math.log(1 + 3 * math.exp(3))) < max(4 * result.std_err, 0.05)


def test_repeated_points_form_clusters(seed):
    """Of 50 points, each 20 times: the 5th neighbor of a point is itself."""
    points = torch.randn(50, 40, generator=make_generator(seed, "x")).repeat(20, 1)
    assert sum(len(part) for part in clusters(points)) == 1000
