import torch

from ebm_lightning.chains import ReplayBuffer
from ebm_lightning.chains.step import ChainStep
from ebm_lightning.samplers import State


def test_the_energy_gap_is_negatives_minus_data():
    """Kills: the other sign, a gap before both energies are known."""
    x = torch.zeros(3, 2)
    step = ChainStep(ReplayBuffer(10), torch.arange(3), State(x, torch.zeros(3), x))
    assert step.energy_gap is None
    step.energy_neg = torch.tensor(-2.0)
    assert step.energy_gap is None
    step.energy_pos = torch.tensor(-5.0)
    assert step.energy_gap == 3
    step.energy_neg = None
    assert step.energy_gap is None
