"""Whitening: the moments of u, the reference density and the fit in one pass.

Mutants that these tests kill: a covariance about 0 instead of the mean; the inverse root where the root belongs; no
shrinkage, or shrinkage of the variances; a ridge in units of x; batches weighted alike whatever their size.
"""

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ebm_lightning.coordinates import Compose, NormalScores, Quantiles, Whitening
from ebm_lightning.supports import Box
from tests.coordinates.kinds import log_q, plane_data


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the rows, divided by their number."""
    return x.mean(0), torch.cov(x.T, correction=0)


def test_the_covariance_of_u_is_one():
    x = plane_data()
    mean, covariance = moments(Whitening((2,), shrinkage=0, ridge=1e-12).fit(x)(x))
    assert torch.allclose(mean, torch.zeros(2).double(), atol=1e-10)
    assert torch.allclose(covariance, torch.eye(2).double(), atol=1e-9)


@pytest.mark.parametrize("shrinkage", [None, 0, 0.3, 1])
def test_the_reference_is_the_normal_of_the_shrunk_covariance(shrinkage):
    x = plane_data(50)
    mean, covariance = moments(x)
    amount = 2 / (2 + 50) if shrinkage is None else shrinkage
    diagonal = torch.diag(covariance.diagonal())
    shrunk = (1 - amount) * covariance + amount * diagonal + 1e-2 * diagonal.mean() * 2 * torch.eye(2)
    coordinates = Whitening((2,), shrinkage=shrinkage, ridge=1e-2).fit(x)
    exact = MultivariateNormal(mean, shrunk).log_prob(x)
    assert torch.allclose(log_q(coordinates, x), exact)
    assert torch.allclose(coordinates.root, coordinates.root.T)
    assert torch.allclose(coordinates.root @ coordinates.root, shrunk)


def test_more_dimensions_than_data(seed):
    x = torch.randn(20, 5, 12).double()
    coordinates = Whitening((5, 12)).fit(x)
    assert torch.allclose(coordinates.inv(coordinates(x)), x)
    assert coordinates.shrinkage is None
    assert coordinates(x).square().mean() < 3
    new = torch.randn(500, 5, 12).double()
    assert 0.5 < coordinates(new).square().mean() < 3, "data of the same distribution are not stretched"
    unshrunk = Whitening((5, 12), shrinkage=0).fit(x)
    assert torch.allclose(unshrunk.inv(unshrunk(new)), new)
    assert unshrunk(new).square().mean() > 100


def test_the_fit_does_not_depend_on_batches(seed):
    x = plane_data() + 50
    whole = Whitening((2,)).fit(x)
    for parts in (x.split(1), x.split(7), (x[:499], x[499:]), (x[:3], x[3:30], x[30:])):
        again = Whitening((2,)).fit(parts)
        assert torch.allclose(again.mean, whole.mean, rtol=1e-12)
        assert torch.allclose(again.root, whole.root, rtol=1e-10)


def test_data_far_from_0_have_the_same_map():
    x = plane_data()
    near, far = Whitening((2,)).fit(x.split(60)), Whitening((2,)).fit((x + 1e6).split(60))
    assert torch.allclose(far(x + 1e6), near(x), atol=1e-6)
    assert float(far.log_det - near.log_det) == pytest.approx(0, abs=1e-7)


def test_constant_components_are_stretched_to_a_bound():
    """To the standard deviation of the ridge, 1e-4 of the mean variance."""
    x = torch.cat([plane_data(), torch.full((500, 1), 7.0).double()], 1)
    coordinates = Whitening((3,)).fit(x)
    scale = (1e-4 * moments(x)[1].diagonal().mean()).sqrt()
    shifted = x + torch.tensor([0, 0, 1.0]).double() * scale
    assert torch.allclose((coordinates(shifted) - coordinates(x))[:, 2], torch.ones(500).double())
    assert torch.allclose(coordinates.inv(coordinates(shifted)), shifted)
    constant = Whitening((3,)).fit(torch.full((5, 3), 2.0))
    assert constant.inv(constant(torch.full((5, 3), 2.0))).eq(2).all()


def test_a_copula_has_normal_scores_of_covariance_one(seed):
    """Of pixels with levels: the marginals are those of the histograms, and correlations are in the reference."""
    box = Box(0, 1, (2,))
    z = torch.randn(4000, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
    x = ((torch.special.ndtr(z) * 8).floor() + torch.rand(4000, 2)).double() / 8
    marginals = Quantiles(box, 8).fit(x)
    copula = Compose([Quantiles(box, 8), NormalScores((2,)), Whitening((2,))]).fit(x.split(500))
    mean, covariance = moments(copula(x))
    assert mean.abs().max() < 0.02
    assert (covariance - torch.eye(2)).abs().max() < 0.05
    assert log_q(copula, x).mean() > log_q(marginals, x).mean() + 0.2, "mutual information of the pair"


def test_a_composition_is_its_parts_in_order():
    box = Box(0, 1, (2,))
    parts = [Quantiles(box, 8), NormalScores((2,)), Whitening((2,))]
    x = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)).double()
    copula = Compose(parts).fit(x)
    a = parts[0](x)
    b = parts[1](a)
    c = parts[2](b)
    assert torch.equal(copula(x), c)
    steps = [p.log_abs_det_jacobian(*pair) for p, pair in zip(parts, ((x, a), (a, b), (b, c)), strict=True)]
    assert torch.allclose(copula.log_abs_det_jacobian(x, c), sum(steps))
    assert torch.equal(Whitening((2,)).fit(b).root, parts[2].root), "fitted to the values of the previous parts"


def test_a_composition_of_float32_data_is_as_exact_as_of_float64(seed):
    """Values between the parts are in float64: rounded to float32, u near 1 would have no normal score."""
    box = Box(-1, 1, (3,))
    x = (torch.randn(3000, 3) * 0.1).clamp(-0.99, 0.99)
    x[0] = 0.9999999
    copula = Compose([Quantiles(box, 64), NormalScores((3,)), Whitening((3,))]).fit(x)
    u, exact = copula(x), copula(x.double())
    assert (u - exact).abs().max() < 1e-5
    assert torch.allclose(copula.inv(u), x, atol=1e-4)
    assert torch.equal(copula.log_abs_det_jacobian(x, u), copula.log_abs_det_jacobian(x.double(), exact))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"'shrinkage' should be in \[0, 1\] or None, got 1.5"):
        Whitening((2,), shrinkage=1.5)
    with pytest.raises(ValueError, match="'ridge' should be positive, got 0"):
        Whitening((2,), ridge=0)
    with pytest.raises(ValueError, match="'batches' should hold at least 2 data for Whitening, got 1"):
        Whitening((2,)).fit(torch.zeros(1, 2))
