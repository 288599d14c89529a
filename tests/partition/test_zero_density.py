"""An energy of +inf in part of the support is zero density there, and log Z is that of the rest."""

import math

import pytest
import torch
from torch import nn

from ebm_lightning.energies import JointEnergy
from ebm_lightning.partition import ais
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Box, Gaussian

BOX = Box(-2, 2, (2,))


def normal(low, high):
    """The integral of exp(-x^2 / 2) from low to high."""
    return math.sqrt(math.pi / 2) * (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2)))


@pytest.mark.parametrize("resample", [False, True])
@pytest.mark.parametrize(
    ("low", "support", "truth"),
    [
        (0.0, BOX, normal(0, 2) * normal(-2, 2)),
        (1.5, BOX, normal(1.5, 2) * normal(-2, 2)),
        (0.0, Gaussian(0.0, 1.5, (2,)), math.pi),
    ],
)
def test_zero_density_in_part_of_the_support(low, support, truth, resample, seed):
    """Kills: +inf refused; 0 times inf in a weight or in the barrier, which is NaN; dead chains that are left out."""

    def energy(x):
        return torch.where(x[:, 0] > low, 0.5 * x.square().sum(1), math.inf)

    arguments = {"temperatures": 60, "num_chains": 2000, "resample": resample}
    result = ais(energy, support, **arguments, generator=make_generator(seed, "ais"))
    assert abs(result.log_z - math.log(truth)) < 5 * result.std_err + 2e-3
    assert result.std_err < 0.2
    assert math.isfinite(result.ess)
    assert not result.ess_curve.isnan().any()


class Corner(JointEnergy):
    def from_logits(self, logits, x, y=None):
        return torch.where(x[:, 0] > 1.5, super().from_logits(logits, x, y), math.inf)


def test_islands_without_a_living_chain_count_as_zero(seed):
    """Three chains an island, of which most start at zero density. Kills: NaN from the softmax of no weights."""
    energy = Corner(nn.Linear(2, 3), BOX)
    weight, bias = energy.classifier.weight.detach().double(), energy.classifier.bias.detach().double()
    low, high = torch.tensor([1.5, -2.0]), torch.tensor([2.0, 2.0])
    truth = bias + (((weight * high).exp() - (weight * low).exp()) / weight).log().sum(1)  # of each class
    result = ais(energy, BOX, temperatures=10, num_chains=600, chunk_size=3, generator=make_generator(seed, "ais"))
    assert (result.log_weights == -math.inf).any()
    assert abs(result.log_z - float(truth.logsumexp(0))) < 5 * result.std_err + 0.05
    assert result.per_class is not None
    assert float(result.per_class.logsumexp(0)) == pytest.approx(result.log_z, abs=1e-6)
