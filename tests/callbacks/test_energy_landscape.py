"""EnergyLandscape on energies whose gradient is known everywhere."""

import math
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import (
    JEM,
    SGLD,
    Box,
    ClassificationRBM,
    ConditionalEBM,
    DataInit,
    EnergyLandscape,
    Gaussian,
    ReplayBuffer,
    SupportInit,
)
from tests.helpers import trainer

WIDE = Box(-10, 10, (2,))


class Saturating(nn.Module):
    """E(x) = a tanh(b |x|^2), steep near the data, flat beyond."""

    def __init__(self, a: float = 5.0, b: float = 0.5) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a)), b

    def forward(self, x: Tensor) -> Tensor:
        energy = self.a * (self.b * x.square().sum(1)).tanh()
        return (-energy - math.log(2))[:, None].expand(-1, 2)


class Quadratic(Saturating):
    """E(x) = a |x|^2 / 2 - log 2."""

    def forward(self, x: Tensor) -> Tensor:
        return (-self.a * x.square().sum(1) / 2)[:, None].expand(-1, 2)


def data() -> DataLoader:
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    return DataLoader(TensorDataset(x, torch.arange(64) % 2), 32)


def made(net: nn.Module, chains: object = None, **arguments: object) -> JEM:
    settings = {"sampler": SGLD.langevin(0.01, steps=5), "chains": chains or ReplayBuffer(100), "seed": 0}
    return JEM(net, 2, WIDE, **{**settings, **arguments})


def test_norms_match_the_known_gradient():
    x = data().dataset.tensors[0]
    seen = EnergyLandscape(reach=3.0).measure(made(Quadratic(2.0)), x)
    assert torch.allclose(seen.data, 2 * x.norm(dim=1), atol=1e-5)
    assert torch.allclose(seen.energy[:, 0], x.square().sum(1) - math.log(2), atol=1e-4)
    spread = (x - x.mean(0)).square().sum(1).mean().sqrt()
    assert float(seen.distance[-1]) == pytest.approx(3 * float(spread), rel=1e-5)
    assert not seen.norm.isnan().any()
    assert (seen.norm[:, -1] > seen.norm[:, 0]).float().mean() > 0.9


def test_points_outside_the_box_are_left_out():
    seen = EnergyLandscape(reach=50.0).measure(made(Quadratic()), data().dataset.tensors[0])
    assert seen.norm[:, -1].isnan().all()
    assert EnergyLandscape().metrics(seen)["gradient_far"] > 0


@pytest.mark.filterwarnings("ignore:'support' is the box")
def test_a_saturating_energy_warns(tmp_path):
    """Most of the box is on the plateau, where chains start."""
    t = trainer(tmp_path, callbacks=[EnergyLandscape(1)])
    with pytest.warns(UserWarning, match="The gradient vanishes at the chains: for .* % of them"):
        t.fit(made(Saturating()), data(), data())
    assert t.callback_metrics["landscape/lost"] > 0.5
    assert t.callback_metrics["landscape/gradient_chains"] < 1e-3 * t.callback_metrics["landscape/gradient_data"]
    assert (tmp_path / "landscape-rays.png").exists()


@pytest.mark.parametrize("net", [Quadratic(), Saturating()], ids=["quadratic", "saturating"])
@pytest.mark.parametrize("chains", [DataInit(), SupportInit()], ids=["data", "support"])
def test_it_warns_only_where_chains_are_lost(net, chains, tmp_path):
    lost = type(net) is Saturating and isinstance(chains, SupportInit)
    t = trainer(tmp_path, callbacks=[EnergyLandscape(1)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        t.validate(made(net, chains), data(), verbose=False)
    assert any("gradient vanishes" in str(w.message) for w in caught) is lost


def test_a_plain_classifier_has_no_chains(tmp_path):
    t = trainer(tmp_path, callbacks=[EnergyLandscape()])
    (metrics,) = t.test(ConditionalEBM(Quadratic(), 2, Gaussian(0.0, 1.0, (2,))), data(), verbose=False)
    assert "landscape/gradient_data" in metrics
    assert "landscape/lost" not in metrics


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"'reach' should be positive, got 0\."):
        EnergyLandscape(reach=0.0)
    with pytest.raises(ValueError, match="'support' should be continuous for EnergyLandscape, got Binary"):
        trainer(tmp_path, callbacks=[EnergyLandscape()]).test(ClassificationRBM(2, 2, 2), data(), verbose=False)
