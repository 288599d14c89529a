"""Gaussians fitted to classes: their fit, density and samples.

Mutants that these tests kill: a transposed factor; no ridge, or a ridge on the factor; a covariance around the mean of
all classes; samples that ignore labels; classes with equal probability; samples in half precision; a density without
its class probabilities or its determinant.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from ebm_lightning import ClassGaussians
from ebm_lightning.chains.initial import initial_points
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Binary, Box, Euclidean
from tests.conftest import z_score

D, K = 3, 2
COUNTS = (300, 100)


def data(seed: int) -> tuple[Tensor, Tensor]:
    """Correlated, distant classes. The last component of class 0 is constant."""
    mix = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [0.0, 0.0, 0.0]])
    y = torch.cat([torch.full((n,), c) for c, n in enumerate(COUNTS)])
    x = torch.randn(len(y), D, generator=make_generator(seed, "data")) @ mix.T
    x[y == 1] = x[y == 1].flip(1) * 0.5 + 4
    order = torch.randperm(len(y), generator=make_generator(seed, "order"))
    return x[order], y[order]


def fitted(seed: int, ridge: float = 0.01) -> ClassGaussians:
    x, y = data(seed)
    initial = ClassGaussians(ridge)
    initial.fit(zip(x.split(7), y.split(7), strict=True), K)
    return initial


def test_the_fit_is_the_mean_and_covariance_of_each_class(seed):
    x, y = data(seed)
    initial = fitted(seed)
    assert initial.counts.tolist() == list(COUNTS)
    for c in range(K):
        own = x[y == c].double()
        covariance = own.T.cov() + 0.01 * torch.eye(D)
        assert torch.allclose(initial.means[c].double(), own.mean(0), atol=1e-6)
        assert torch.allclose((initial.factors[c] @ initial.factors[c].T).double(), covariance, atol=1e-6)
    assert initial.factors.dtype == initial.means.dtype == torch.float32


def test_large_offsets_do_not_lose_precision():
    x, y = data(0)
    initial = ClassGaussians(0.01)
    initial.fit([(x.double() + 1000, y)], K)
    assert torch.allclose(initial.factors, fitted(0).factors, atol=1e-5)


def test_samples_have_the_moments_of_their_class(seed):
    initial, n = fitted(seed), 20_000
    labels = torch.arange(n) % K
    x = initial.sample(n, labels=labels, generator=make_generator(seed, "draw"))
    for c in range(K):
        own = (x[labels == c] - initial.means[c]).double()
        covariance = (initial.factors[c] @ initial.factors[c].T).double()
        for i in range(D):
            assert z_score(own[:, i], 0) < 5
            assert z_score(own[:, i] ** 4, float(3 * covariance[i, i] ** 2)) < 5
            for j in range(i + 1):
                assert z_score(own[:, i] * own[:, j], float(covariance[i, j])) < 5


def test_unlabeled_samples_have_the_class_frequencies_of_the_data(seed):
    initial, n = fitted(seed), 10_000
    x = initial.sample(n, generator=make_generator(seed, "draw"))
    count = int((x[:, 2] > 2).sum())  # the second class lies at 4
    assert abs(count - n / 4) < 5 * math.sqrt(n * 0.25 * 0.75)


def test_samples_are_never_in_half_precision(seed):
    initial = fitted(seed)
    expected = initial.sample(50, generator=make_generator(seed))
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert torch.equal(initial.sample(50, generator=make_generator(seed)), expected)


def test_images_keep_their_shape():
    x, y = torch.rand(40, 1, 2, 3), torch.arange(40) % 2
    initial = ClassGaussians()
    initial.fit([(x, y)], 2)
    assert initial.sample(5).shape == (5, 1, 2, 3)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: ClassGaussians(-1e-4), "'ridge' should be 0 or positive, got -0.0001"),
        (lambda: ClassGaussians().fit([], 2), "'batches' should hold images to fit ClassGaussians to, got none"),
        (
            lambda: ClassGaussians().fit([(torch.rand(5, 2), torch.tensor([0, 0, 1, 2, 2]))], 3),
            "'batches' should hold at least 2 images of each class for ClassGaussians, got 1 of class 1",
        ),
        (lambda: fitted(0, ridge=0.0), "'ridge' should be larger, got 0.0: the covariance of class 0 is singular"),
    ],
)
def test_bad_arguments(action, message):
    with pytest.raises(ValueError, match=message):
        action()


def test_use_before_it_is_fitted():
    for action in (lambda: ClassGaussians().sample(3), lambda: ClassGaussians().log_prob(torch.zeros(3, D))):
        with pytest.raises(RuntimeError, match=r"not fitted yet\. Call 'fit"):
            action()


# The density.


def mixture(seed: int) -> MixtureSameFamily:
    """The same distribution, from the data and not from the fit."""
    x, y = data(seed)
    of_class = [x[y == c].double() for c in range(K)]
    means = torch.stack([rows.mean(0) for rows in of_class])
    covariances = torch.stack([rows.T.cov() + 0.01 * torch.eye(D) for rows in of_class])
    return MixtureSameFamily(Categorical(torch.tensor(COUNTS).double()), MultivariateNormal(means, covariances))


def test_the_density_is_that_of_the_mixture(seed):
    initial, expected = fitted(seed), mixture(seed)
    x = torch.cat([data(seed)[0], 5 * torch.randn(100, D)])
    log_p = initial.log_prob(x)
    assert log_p.dtype == torch.float64
    torch.testing.assert_close(log_p, expected.log_prob(x.double()), atol=1e-3, rtol=1e-4)
    log_p, gradient = initial.log_prob_and_gradient(x)
    x = x.double().requires_grad_()
    total = expected.log_prob(x).sum()
    torch.testing.assert_close(gradient.double(), torch.autograd.grad(total, x)[0], atol=1e-2, rtol=1e-3)


def test_the_density_of_images_is_that_of_their_pixels():
    x, y = torch.rand(60, 1, 2, 3), torch.arange(60) % 2
    images, rows = ClassGaussians(), ClassGaussians()
    images.fit([(x, y)], 2)
    rows.fit([(x.flatten(1), y)], 2)
    assert torch.equal(images.log_prob(x), rows.log_prob(x.flatten(1)))


def test_the_density_integrates_to_1(seed):
    """In one dimension, by the trapezoidal rule, which converges exponentially here."""
    x, y = data(seed)
    initial = ClassGaussians(0.01)
    initial.fit([(x[:, :1], y)], K)
    grid = torch.linspace(-12, 14, 20_001, dtype=torch.float64)
    assert float(initial.log_prob(grid[:, None]).exp().sum() * 26 / 20_000) == pytest.approx(1, abs=1e-6)


def test_samples_follow_the_density(seed):
    """E_p[r / p] = 1 for a density r, and E_p[r f / p] = E_r[f], if and only if samples have the density p."""
    initial, expected = fitted(seed), mixture(seed)
    x = initial.sample(40_000, generator=make_generator(seed, "density")).double()
    log_p = initial.log_prob(x)
    for c in range(K):
        mean = expected.component_distribution.mean[c]
        inner = MultivariateNormal(mean, 0.7 * expected.component_distribution.covariance_matrix[c])
        ratio = (inner.log_prob(x) - log_p).exp()
        assert z_score(ratio, 1.0) < 5
        for i in range(D):
            variance = float(0.7 * expected.component_distribution.covariance_matrix[c, i, i])
            assert z_score(ratio * (x[:, i] - mean[i]), 0.0) < 5
            assert z_score(ratio * (x[:, i] - mean[i]).square(), variance) < 5


# Initial points.


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
