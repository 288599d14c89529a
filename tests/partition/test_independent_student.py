"""Student densities of independent components, and the second run that starts from them.

Mutants killed: one precision for all components of a sample, matched moments, the same degrees of freedom for all
components, weights that are ignored, and a second run from elliptical densities alone.
"""

import math

import pytest
import torch

from ebm_lightning import Euclidean, ais
from ebm_lightning.partition import Mixture, Normal, StudentT
from ebm_lightning.partition.diagnostics.second_run import wider_base
from ebm_lightning.partition.independent_student import IndependentStudentT
from ebm_lightning.rng import make_generator
from tests.conftest import z_score

MEAN, SCALE, DOF = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.5, 2.0, 1.0]), torch.tensor([1.0, 3.0, 8.0])
EQUAL = torch.zeros(4000, dtype=torch.float64)


def test_it_is_a_product_of_student_densities(seed):
    density = IndependentStudentT(MEAN, SCALE, DOF)
    reference = torch.distributions.StudentT(DOF.double(), MEAN.double(), SCALE.double())
    x = density.sample(50_000, generator=make_generator(seed, "x"))
    assert x.dtype == torch.float32
    assert torch.allclose(density.log_prob(x), reference.log_prob(x.double()).sum(1))
    t = (x - MEAN) / SCALE
    inside = t.abs() < 1
    for k, share in enumerate((0.5, 0.6090, 0.6533)):  # P(|t| < 1) with 1, 3 and 8 degrees of freedom
        assert z_score(inside[:, k].double(), share) < 5
    assert z_score((inside[:, 0] & inside[:, 2]).double(), 0.5 * 0.6533) < 5, "components are independent"
    image = IndependentStudentT(MEAN.view(1, 1, 3), SCALE.view(1, 1, 3), DOF.view(1, 1, 3))
    assert image.sample(5).shape == (5, 1, 1, 3)
    assert torch.allclose(image.log_prob(x.view(-1, 1, 1, 3)), density.log_prob(x))


def test_a_fit_finds_the_density_of_weighted_samples(seed):
    rng = make_generator(seed, "x")
    x = IndependentStudentT(MEAN, SCALE, DOF).sample(8000, generator=rng)
    x[:4000] += 50  # do not count
    log_w = torch.cat([torch.full((4000,), -math.inf), torch.zeros(4000)])
    fitted = IndependentStudentT.fit(x, log_w)
    assert ((fitted.mean - MEAN).abs() < 5 * 1.5 * SCALE / 4000**0.5).all()
    assert ((fitted.scale / SCALE).log().abs() < 0.2).all()
    assert (fitted.dof.log() - DOF.log()).abs().max() <= math.log(1.5) + 1e-9  # the next on the grid
    assert float(fitted.dof[0]) == 1


def test_a_second_run_starts_from_the_likelier_of_both(seed):
    """And not from independent components where a heavy tail is common to all of them."""
    rng, normal = make_generator(seed, "x"), Normal(torch.zeros(6), torch.ones(6))
    product = IndependentStudentT(torch.zeros(6), torch.ones(6), torch.full((6,), 3.0)).sample(4000, generator=rng)
    common = StudentT(torch.zeros(6), torch.ones(6), 3.0).sample(4000, generator=rng)
    for x, kind in ((product, IndependentStudentT), (common, StudentT)):
        base = wider_base(x, EQUAL, normal, Euclidean((6,)), rng, heavy=True)
        assert isinstance(base, Mixture)
        assert [type(part) for part in base.components] == [Normal, StudentT, StudentT, kind]


@pytest.mark.parametrize("dimensions", [8, 20])
def test_products_of_heavy_tails_are_reliable(dimensions, seed):
    """Laplace densities, whose kurtosis is 3 in each component. Second runs from elliptical densities refused them."""
    result = ais(
        lambda x: x.abs().sum(1),
        Euclidean((dimensions,)),
        proposal=Normal(torch.zeros(dimensions), torch.ones(dimensions)),
        seed=seed,
    )
    assert result.reliable, result.why
    assert abs(result.log_z - dimensions * math.log(2)) < max(5 * result.std_err, 0.05) < 0.5
