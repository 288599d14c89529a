"""Noise-contrastive training against an exact density, and what it refuses."""

import functools
import math

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import MALA, Box, ClassGaussians, NoiseContrastiveJEM, ReplayBuffer
from ebm_lightning.networks import MLP
from ebm_lightning.rng import make_generator

BOX = Box(-1, 1, (1,))
GRID = torch.linspace(-1, 1, 2001)[:, None]


def data(seed: int, n: int = 20_000) -> DataLoader:
    """Two triangular densities on [-1, 0] and [0, 1], of mass 1/4 and 3/4."""
    generator = make_generator(seed, "triangles")
    y = (torch.rand(n, generator=generator) < 0.75).long()
    x = torch.rand(n, 2, generator=generator).sum(1) / 2 + y - 1
    return DataLoader(TensorDataset(x[:, None], y), 500)


def log_p(x: torch.Tensor) -> torch.Tensor:
    height = 2 - 4 * (x.abs() - 0.5).abs()
    return (height * torch.where(x < 0, 0.25, 0.75)).log().squeeze(1)


def trainer(epochs: int) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(max_epochs=epochs, devices=1, accelerator="cpu", enable_model_summary=False, **quiet)


def model(**options) -> NoiseContrastiveJEM:
    optimizer = functools.partial(torch.optim.Adam, lr=5e-3)
    return NoiseContrastiveJEM(MLP(1, 2, (64, 64)), 2, BOX, MALA(0.05, 5), optimizer=optimizer, **options)


def test_the_model_becomes_the_density_of_the_data(seed):
    """Mutants: the signs of the two phases, a reference density of mass 2 (its log Z is 0.7), no negative phase."""
    L.seed_everything(seed)
    module = model(chains=ReplayBuffer(20_000, reinit_prob=0.0)).train()
    trainer(15).fit(module, data(seed))
    with torch.no_grad():
        energy = module.eval().energy(GRID).double()
    log_z = float((-energy).logsumexp(0)) + math.log(2 / len(GRID))
    assert abs(log_z - BOX.log_mass) < 0.2
    error = (-energy - log_z - log_p(GRID)).abs() * log_p(GRID).exp()
    assert error.nansum() * 2 / len(GRID) < 0.2


def test_samples_of_the_reference_do_not_move(seed):
    L.seed_everything(seed)
    module = model(chains=ReplayBuffer(1000, reinit_prob=0.0))
    fit = trainer(1)
    fit.fit(module, data(seed, 2000))
    assert module.chain_step is not None
    assert module.chains.age.sum() == 2000
    assert module.sample(10, steps=3).shape == (10, 1)


class Steps(nn.Module):
    """No gradient in x."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((x.detach() * 4).round())


def test_networks_without_gradient_in_x_are_trained(seed):
    L.seed_everything(seed)
    module = NoiseContrastiveJEM(Steps(), 2, BOX, chains=ReplayBuffer(1000, reinit_prob=0.0))
    trainer(1).fit(module, data(seed, 2000))
    assert module.classifier.head.weight.isfinite().all()


def test_other_generative_terms_and_other_initial_points_are_refused():
    with pytest.raises(ValueError, match="'joint_weight' should be 0"):
        model(joint_weight=1.0)
    with pytest.raises(ValueError, match="'initial' ClassGaussians"):
        model(chains=ReplayBuffer(100, 0.0, ClassGaussians()))
