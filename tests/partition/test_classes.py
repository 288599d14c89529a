"""log Z of each class, with an error that is NaN where no chain carries the class.

Mutants killed: an error from the effective sample size of the chains; islands counted as equal; the shape of the log
weights instead of the weights; the class error of the whole estimate.
"""

import math

import pytest
import torch
from torch import nn

from ebm_lightning.energies import JointEnergy, MixtureLogits
from ebm_lightning.networks import MLP
from ebm_lightning.partition import Normal, ais, exact_log_z
from ebm_lightning.partition.diagnostics.pareto import largest_reliable_shape, pareto_shape
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Box, Euclidean, Gaussian

PLANE = Euclidean((2,))


def mixture(*weights: float) -> JointEnergy:
    means = torch.tensor([[0.0, 0.0], [6.0, 0.0]])
    return JointEnergy(MixtureLogits(means, 1.0, torch.tensor(weights)), PLANE)


def test_errors_of_classes_cover_the_truth(seed):
    truth, z = torch.tensor([0.9, 0.1]).double().log(), []
    for s in range(20):
        wide = Normal(torch.zeros(2), torch.full((2,), 2.0))
        generator = make_generator(seed, "classes", s)
        estimate = ais(mixture(0.9, 0.1), PLANE, proposal=wide, temperatures=60, num_chains=500, generator=generator)
        z.append((estimate.per_class - truth) / estimate.per_class_std_err)
    z = torch.stack(z)
    assert z.isfinite().all()
    assert (z.abs() < 5).all()
    assert ((z.std(0) > 0.5) & (z.std(0) < 2)).all()


def test_a_class_that_no_chain_reaches_has_no_error(seed):
    """Its log Z is -13.8, and what the chains near the other class see of it says -18 to -15."""
    for s in range(10):
        near = Normal(torch.zeros(2), torch.ones(2))
        generator = make_generator(seed, "rare", s)
        estimate = ais(mixture(1 - 1e-6, 1e-6), PLANE, proposal=near, temperatures=30, generator=generator)
        assert estimate.per_class_std_err.isnan().tolist() == [False, True]


def test_overlapping_classes_have_errors(seed):
    support = Gaussian(0.0, 1.0, (4,))
    estimate = ais(JointEnergy(MLP(4, 5, (8,)), support), support, temperatures=10, num_chains=100)
    assert estimate.per_class_std_err.isfinite().all()
    assert estimate.per_class.logsumexp(0) == pytest.approx(estimate.log_z)


def test_classes_of_linear_logits_are_within_their_errors(seed):
    energy = JointEnergy(nn.Linear(20, 4), Box(-1, 1, (20,)))
    truth = exact_log_z(energy, energy.support)
    estimate = ais(energy, energy.support, temperatures=60, generator=make_generator(seed, "linear"))
    known = estimate.per_class_std_err.isfinite()
    assert known.any()
    off = (estimate.per_class - truth.per_class).abs()[known]
    assert (off < (5 * estimate.per_class_std_err[known]).clamp(min=0.05)).all()


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.8])
def test_the_pareto_shape_is_that_of_generalized_pareto_draws(shape, seed):
    u = torch.rand(4000, 50, dtype=torch.float64)
    found = pareto_shape(((u.pow(-shape) - 1) / shape).log())
    tail = 190
    expected = (tail * shape + 5) / (tail + 10)  # exceedances over a threshold have the same shape
    assert (found.mean() - expected).abs() < 5 * found.std() / math.sqrt(50) + 0.02


def test_weights_with_few_large_ones_are_not_reliable(seed):
    log_w = torch.tensor([0.3, 1.0, 4.0, 6.0]) * torch.randn(1000, 4)
    assert (pareto_shape(log_w) < largest_reliable_shape(1000)).tolist() == [True, True, False, False]
    assert pareto_shape(torch.zeros(1000, 1))[0] == -math.inf
