"""Student's t density: its samples, its fit, and what is left of it inside a box.

Mutants killed: a wrong constant, the transpose of the scale, matched moments in place of the likelihood, and precisions
without squares; in a box: the constant of R^D, a single precision for all samples, a grid that ends too early or is too
coarse, and independent components of the same width.
"""

import math

import pytest
import torch
from torch import Tensor

from ebm_lightning.partition import StudentT, quadrature
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Box
from tests.conftest import gaussian_z, z_score


@pytest.mark.parametrize("full", [False, True])
def test_student_t_samples_follow_its_density(full, seed):
    """E[q / p] = 1 for a normal q, and the square of L^-1 (x - mean) scaled to a normal's has its moments."""
    mean, scale = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0])
    if full:
        scale = torch.tensor([[0.5, 0.0], [1.0, 2.0]])
    density = StudentT(mean, scale, 3.0)
    x = density.sample(100_000, generator=make_generator(seed, "x"))
    factor = scale if full else scale.diag()
    gaussian = torch.distributions.MultivariateNormal(mean.double(), scale_tril=factor.double())
    assert z_score((gaussian.log_prob(x.double()) - density.log_prob(x)).exp(), 1.0) < 5
    t = torch.linalg.solve(factor, (x - mean).T).T
    u = torch.distributions.StudentT(3.0)
    assert z_score((t[:, 0].abs() < 1.0).double(), float(_cdf(u, 1.0))) < 5
    large = StudentT(torch.zeros(1), torch.ones(1), 1e7).sample(100_000, generator=make_generator(seed, "normal"))
    assert gaussian_z(large[:, 0], 0.0, 1.0) < 5


def _cdf(density, bound: float) -> Tensor:
    """P(|t| < bound) by the trapezoidal rule."""
    grid = torch.linspace(-bound, bound, 2001, dtype=torch.float64)
    return torch.trapezoid(density.log_prob(grid).exp(), grid)


def test_student_t_checks_its_arguments():
    with pytest.raises(ValueError, match="'dof' should be positive, got"):
        StudentT(torch.zeros(2), torch.ones(2), 0.0)
    with pytest.raises(ValueError, match="'scale' should be positive, got"):
        StudentT(torch.zeros(2), -torch.ones(2), 2.0)


@pytest.mark.parametrize("dimensions", [1, 5, 30])
def test_a_fit_to_samples_of_students_density_finds_its_scale(dimensions, seed):
    """With 2 degrees of freedom the covariance is infinite. Kills: matched moments, and precisions without squares."""
    rng, dof, n = make_generator(seed, "scale"), 2.0, 4000
    root = torch.linalg.cholesky(torch.eye(dimensions, dtype=torch.float64) + 0.5)
    mean = torch.arange(dimensions).double()
    x = StudentT(mean, root, dof).sample(n, generator=rng)
    log_w = torch.where(torch.rand(n, generator=rng) < 0.5, 0.0, -math.inf)  # half of the points count
    fitted = StudentT.fit(x, log_w, dof)
    assert (fitted.mean - mean).abs().max() < 5 * 1.3 * math.sqrt(2 * (dof + 3) / n)
    ratio = torch.linalg.eigvalsh(torch.linalg.solve(root, torch.linalg.solve(root, fitted.scale @ fitted.scale.T).T))
    assert (ratio.log().mean() / 2).abs() < 5 * math.sqrt(2 / n) * 2
    assert ratio.min() > 0.6
    assert ratio.max() < 1.6


@pytest.mark.parametrize(("dof", "near"), [(1.0, (1.0,)), (2.0, (1.0, 2.0, 3.0)), (50.0, (8.0,))])
def test_the_likeliest_degrees_of_freedom_are_found(dof, near, seed):
    """From a fit with 2, whose scale is wrong by a factor of 2.5. Kills: a constant without dof, and one size."""
    exact = StudentT(torch.zeros(6), torch.linspace(0.5, 3, 6), dof)
    x, wrong = exact.sample(4000, generator=make_generator(seed)), StudentT(exact.mean, 2.5 * exact.scale, 2.0)
    found = wrong.with_likeliest_tails(x)
    assert found.dof in near
    assert ((found.scale / exact.scale).log().abs() < 0.2).all()
    assert found.log_prob(x).mean() > wrong.log_prob(x).mean()
    twice = torch.cat([x, 100 * x]), torch.cat([torch.zeros(4000), torch.full((4000,), -math.inf)])
    again = wrong.with_likeliest_tails(*twice)  # half of the points do not count
    assert (again.dof, again.scale.tolist()) == (found.dof, found.scale.tolist())


@pytest.mark.parametrize("dof", [0.3, 1.0, 3.0, 100.0])
@pytest.mark.parametrize("mean", [0.0, 1.5, 7.0, -6.0])
def test_the_density_in_a_box_has_mass_one(dof, mean):
    """By quadrature; also where the box lies far in a tail, as for means of 7 and -6."""
    box = Box(-2, 3, (2,))
    density = StudentT(torch.tensor([mean, 0.4]), torch.tensor([0.5, 1.2]), dof, box)
    assert quadrature(lambda x: -density.log_prob(x), box) == pytest.approx(0.0, abs=1e-5)


def test_the_mass_of_a_cauchy_density_in_an_interval_is_an_arctangent():
    density = StudentT(torch.tensor([1.0]), torch.tensor([2.0]), 1.0, Box(-5, 6, (1,)))
    mass = (math.atan(6 / 2) + math.atan(5 / 2)) / math.pi
    assert float(density.log_prob(torch.ones(1, 1))) == pytest.approx(-math.log(2 * math.pi * mass), abs=1e-9)


@pytest.mark.parametrize("dof", [1.0, 4.0])
def test_samples_in_a_box_are_those_of_the_whole_density_that_lie_inside(dof, seed):
    box, mean, scale = Box(-1, 2, (3,)), torch.tensor([0.0, 1.0, -0.5]), torch.tensor([0.5, 1.0, 2.0])
    x = StudentT(mean, scale, dof, box).sample(50_000, generator=make_generator(seed, "box"))
    whole = StudentT(mean, scale, dof).sample(400_000, generator=make_generator(seed, "whole"))
    inside = whole[box.contains(whole)]
    assert box.contains(x).all()
    n = min(len(x), len(inside))
    for f in (
        lambda x: x[:, 0],
        lambda x: x[:, 2],
        lambda x: x[:, 0] * x[:, 1],
        lambda x: ((x - mean) / scale).square().sum(1),
        lambda x: (((x - mean) / scale).square().sum(1) < 1).double(),
    ):
        assert z_score(f(x[:n]) - f(inside[:n]), 0.0) < 5


def test_a_fit_in_a_box_has_one_scale_per_component(seed):
    box = Box(-20, 20, (2, 2))
    exact = StudentT(torch.ones(2, 2), torch.tensor([[0.5, 1.0], [2.0, 0.1]]), 2.0, box)
    fitted = StudentT.fit(exact.sample(4000, generator=make_generator(seed)), dof=2.0, box=box)
    assert fitted.box is box
    assert fitted.scale.shape == (2, 2)
    assert ((fitted.scale / exact.scale).log().abs() < 0.15).all()
    assert fitted.sample(7).shape == (7, 2, 2)


def test_a_matrix_in_a_box_is_refused():
    with pytest.raises(ValueError, match=r"'scale' should have the shape of 'mean' on a box, \(2,\), got \(2, 2\)"):
        StudentT(torch.zeros(2), torch.eye(2), 2.0, Box(-1, 1, (2,)))
