import pytest
import torch

from ebm_lightning.data import Digits, Rings
from ebm_lightning.energies import Energy
from ebm_lightning.partition import quadrature
from tests.conftest import z_score


def test_log_prob_of_rings_is_their_density(seed):
    rings = Rings()
    negative: Energy = lambda x: -rings.log_prob(x)  # noqa: E731
    assert quadrature(negative, rings.support) == pytest.approx(0, abs=1e-4)
    x, y = rings.sample(50_000, torch.Generator().manual_seed(seed))
    for ring, radius in enumerate(rings.radii):
        assert z_score(x[y == ring].square().sum(1), radius**2 + 2 * rings.noise**2) < 5
    # E[p(x)] is the integral of p^2, by quadrature
    squared = quadrature(lambda x: -2 * rings.log_prob(x), rings.support)
    assert z_score(rings.log_prob(x).exp(), torch.tensor(squared).exp().item()) < 5


@pytest.mark.parametrize("data", [Rings(size=64), Digits()], ids=["rings", "digits"])
def test_predictions_are_of_the_test_data(data):
    data.setup("predict")
    assert data.predict_dataloader().dataset is data.test
