"""Gaussians fitted to classes: their fit, density and samples.

Mutants that these tests kill: a transposed factor; no ridge, or a ridge on the factor; a covariance around the mean of
all classes; samples that ignore labels; classes with equal probability; samples in half precision; a density without
its class probabilities or its determinant; shrinkage towards the covariance of all data, or by weights that are not
those of the classes; a posterior without normalization; products of coordinates in place of differences from the mean;
a state without the shape, or inverses that stay those of an earlier fit; half-precision tables.
"""

import contextlib
import copy
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from ebm_lightning import ClassGaussians
from ebm_lightning.rng import make_generator
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


def fitted(seed: int, ridge: float = 0.01, shrinkage: float = 0.0) -> ClassGaussians:
    x, y = data(seed)
    initial = ClassGaussians(ridge, shrinkage)
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
        (lambda: ClassGaussians(shrinkage=1.1), "'shrinkage' should be in"),
        (lambda: ClassGaussians(passes=0), "'passes' should be at least 1, got 0"),
        (
            lambda: ClassGaussians().fit([(torch.rand(5, 2), torch.tensor([0, 0, -1, 1, 1]))], 2),
            "'batches' should have a label for each image for ClassGaussians, got unlabeled ones",
        ),
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


def mixture(seed: int, shrinkage: float = 0.0) -> MixtureSameFamily:
    """The same distribution, from the data and not from the fit."""
    x, y = data(seed)
    of_class = [x[y == c].double() for c in range(K)]
    means = torch.stack([rows.mean(0) for rows in of_class])
    covariances = torch.stack([rows.T.cov() for rows in of_class])
    within = (covariances[0] * COUNTS[0] + covariances[1] * COUNTS[1]) / sum(COUNTS)
    covariances = (1 - shrinkage) * covariances + shrinkage * within + 0.01 * torch.eye(D)
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


# Shrinkage, and the classifier.


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_the_joint_density_is_that_of_each_class(shrinkage, seed):
    gaussians, expected = fitted(seed, shrinkage=shrinkage), mixture(seed, shrinkage)
    x = torch.cat([data(seed)[0][:50], 3 * torch.randn(50, D)])
    by_class = expected.component_distribution.log_prob(x.double()[:, None]) + torch.tensor([0.75, 0.25]).double().log()
    joint = gaussians.log_joint(x)
    assert joint.dtype == torch.float64
    torch.testing.assert_close(joint, by_class, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(gaussians(x), by_class.log_softmax(1).float(), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(gaussians(x).logsumexp(1), torch.zeros(100), atol=1e-6, rtol=0)
    assert gaussians(x).dtype == torch.float32
    assert gaussians(x.double()).dtype == torch.float64


def test_with_full_shrinkage_the_posterior_is_linear(seed):
    gaussians, x = fitted(seed, shrinkage=1.0), 5 * torch.randn(2, D)
    assert torch.allclose(*gaussians.factors)
    log_odds = [float(gaussians(p[None]).diff()) for p in (x[0], x[1], x.mean(0))]
    assert log_odds[2] == pytest.approx((log_odds[0] + log_odds[1]) / 2, rel=1e-3, abs=1e-2)


def test_the_gradient_of_the_posterior_flows_to_x_alone(seed):
    gaussians, x = fitted(seed), data(seed)[0][:5].requires_grad_()
    gaussians(x)[:, 0].sum().backward()
    assert x.grad.abs().sum() > 0
    assert not list(gaussians.parameters())


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_offsets_cost_the_rounding_of_x_alone(offset, seed):
    """In float32, x + 1000 is a multiple of 6e-5. The density is that of the rounded x, up to 1e-3 of its value."""
    x, y = data(seed)
    moved = x + offset
    gaussians = ClassGaussians(0.01)
    gaussians.fit([(moved, y)], K)
    means = torch.stack([moved[y == c].double().mean(0) for c in range(K)])
    covariances = torch.stack([moved[y == c].double().T.cov() + 0.01 * torch.eye(D) for c in range(K)])
    prior = Categorical(torch.tensor(COUNTS).double())
    expected = MixtureSameFamily(prior, MultivariateNormal(means, covariances)).log_prob(moved.double())
    assert (gaussians.log_prob(moved) - expected).abs().max() < (0.05 if offset else 1e-3)
    assert (gaussians.log_prob(moved) - expected).abs().mean() < 5e-3


# The state.


def test_the_fit_is_part_of_the_state(seed):
    x, again = data(seed)[0][:20], ClassGaussians()
    images = ClassGaussians(0.1)
    images.fit([(torch.rand(40, 1, 2, 3), torch.arange(40) % 4)], 4)
    gaussians = fitted(seed)
    for source, probe in ((gaussians, x), (images, torch.rand(5, 1, 2, 3)), (gaussians, x)):
        again.load_state_dict(source.state_dict())  # of another size than before, too
        assert again.fitted
        assert torch.equal(again.log_joint(probe), source.log_joint(probe))
        one, two = (d.sample(4, generator=make_generator(seed)) for d in (again, source))
        assert torch.equal(one, two)
    assert set(gaussians.state_dict()) == {"_counts", "_means", "_factors", "_shape"}
    again.load_state_dict(ClassGaussians().state_dict())
    assert not again.fitted
    copied = copy.deepcopy(gaussians)
    copied.fit([(torch.rand(40, 2), torch.arange(40) % 2)], 2)
    assert torch.equal(gaussians.log_joint(x), fitted(seed).log_joint(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tables_keep_their_type(dtype, seed):
    gaussians, x = fitted(seed), data(seed)[0][:20]
    expected = gaussians.log_joint(x)
    gaussians.to(dtype)
    assert torch.equal(gaussians.log_joint(x), expected)
    assert gaussians.state_dict()["_shape"].dtype == torch.long
    half = gaussians(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half - gaussians(x.bfloat16().float())).abs().max() < 0.02 * half.abs().max()


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_samples_have_the_default_type_or_float32(default, seed):
    """``Trainer(precision="64-true")`` changes it during training."""
    gaussians = fitted(seed)
    expected = gaussians.sample(5, generator=make_generator(seed))
    torch.set_default_dtype(default)
    try:
        x = gaussians.sample(5, generator=make_generator(seed))
        assert x.dtype == (torch.float32 if default == torch.bfloat16 else default)
        assert torch.equal(x, expected.to(x.dtype))
    finally:
        torch.set_default_dtype(torch.float32)


def test_all_tables_move_to_the_device_of_x(seed, monkeypatch):
    """Also in inference mode, after which gradients still work."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # unknown on "meta"
    gaussians, x = fitted(seed), torch.zeros(3, D, device="meta")
    with torch.inference_mode():
        assert gaussians.log_joint(x).device.type == "meta"
    assert {buffer.device.type for buffer in gaussians.buffers()} == {"meta"}
    assert not any(buffer.is_inference() for buffer in gaussians.buffers())
