import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import SGLD, Box, ConditionalEBM, Refinement
from tests.helpers import trainer


class Bumps(nn.Module):
    """Two classes, at -1 and 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([-(x + 1).square(), -(x - 1).square()], 1)


def test_noiseless_steps_match_gradient_descent_by_hand(tmp_path):
    net = Bumps()
    x = torch.tensor([[-2.0], [-0.1], [0.3], [3.0]])
    y = torch.tensor([0, 0, 0, 1])
    module, data = ConditionalEBM(net, 2, Box(-9, 9, (1,))), DataLoader(TensorDataset(x, y), 4)
    callback = Refinement([0, 1, 30], SGLD(0.1, 0.0))
    (metrics,) = trainer(tmp_path, callbacks=[callback]).test(module, data, verbose=False)

    z, energies = x.clone(), []
    for _ in range(31):
        z.requires_grad_()
        energy = -net(z).logsumexp(1)
        energies.append(energy.detach())
        z = (z - 0.1 * torch.autograd.grad(energy.sum(), z)[0]).detach()
    for k in (0, 1, 30):
        change = float((energies[k] - energies[0]).mean())
        assert metrics[f"refine/energy_change_{k}"] == pytest.approx(change, abs=1e-5)
        assert metrics[f"refine/accuracy_{k}"] == 0.75
    assert metrics["refine/energy_change_0"] == 0
    assert metrics["refine/images"] == 4


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"'steps' should be 0 or positive, got -1\."):
        Refinement([-1])
    with pytest.raises(ValueError, match="'steps' should contain at least one number"):
        Refinement([])
