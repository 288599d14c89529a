import pytest
import torch

from ebm_lightning import GHMC, ChainDiagnostics, ConditionalEBM, SupportInit
from ebm_lightning.callbacks.chain_diagnostics import at_wall, duplicates, figures
from ebm_lightning.networks import MLP
from ebm_lightning.samplers import State
from tests.helpers import BOX, batches, jem, trainer


def test_figures_by_hand():
    module = jem()
    module.start_chains()
    module.chains.store(torch.tensor([4]), BOX.sample(1))
    x = torch.tensor([[1.0, -1.0, 0.0, 0.5], [1.0, -1.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.9]])
    gradient = torch.tensor([[3.0, 4.0, 0.0, 0.0]]).expand(3, 4)
    module.last_energies = torch.tensor(-2.0), torch.tensor(1.0)
    result = figures(module, State(x, torch.zeros(3), gradient, torch.tensor([True, False, True])))
    expected = {"gradient_norm": 5, "energy_gap": 3, "at_wall": 1 / 3, "duplicates": 1 / 3, "acceptance": 2 / 3}
    expected |= {"age_max": 1, "age_mean": 1 / 30, "step_size": 0.1}
    assert {name: float(value) for name, value in result.items()} == pytest.approx(expected)


def test_walls_and_duplicates():
    assert float(at_wall(torch.tensor([[0.9979, 0.9981, -1.0, 0.0]]), BOX)) == 0.5
    assert duplicates(torch.zeros(4, 2)) == 0.75
    assert duplicates(torch.eye(4)) == 0


@pytest.mark.parametrize(("arguments", "there"), [({}, "age_mean"), ({"sampler": GHMC(steps=2)}, "acceptance")])
def test_figures_are_logged(tmp_path, arguments, there):
    t = trainer(tmp_path, callbacks=[ChainDiagnostics(1)])
    t.fit(jem(**arguments), batches())
    assert {f"chains/{there}", "chains/energy_gap", "chains/at_wall"} <= set(t.callback_metrics)


def test_figures_that_do_not_apply_are_left_out(tmp_path):
    t = trainer(tmp_path, callbacks=[ChainDiagnostics(1)])
    t.fit(jem(chains=SupportInit()), batches())
    assert "chains/age_mean" not in t.callback_metrics


def test_what_has_no_chains_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ChainDiagnostics needs a JEM"):
        trainer(tmp_path, callbacks=[ChainDiagnostics()]).fit(ConditionalEBM(MLP(4, 3), 3), batches())
    with pytest.raises(ValueError, match="'every_n_steps' should be at least 1"):
        ChainDiagnostics(0)
