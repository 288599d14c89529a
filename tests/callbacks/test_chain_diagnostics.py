import pytest
import torch

from ebm_lightning import GHMC, ChainDiagnostics, ConditionalEBM, ReweightedBuffer, SupportInit
from ebm_lightning.callbacks.chain_diagnostics import at_wall, chain_metrics, duplicates
from ebm_lightning.chains.step import ChainStep
from ebm_lightning.networks import MLP
from ebm_lightning.samplers import State
from tests.helpers import BOX, batches, jem, trainer


def test_metrics_by_hand():
    module = jem()
    module.start_chains()
    module.chains.store(torch.tensor([4]), BOX.sample(1))
    x = torch.tensor([[1.0, -1.0, 0.0, 0.5], [1.0, -1.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.9]])
    gradient = torch.tensor([[3.0, 4.0, 0.0, 0.0]]).expand(3, 4)
    state = State(x, torch.zeros(3), gradient, torch.tensor([True, False, True]))
    step = ChainStep(module.chains, None, state, energy_neg=torch.tensor(1.0), energy_pos=torch.tensor(-2.0))
    result = chain_metrics(module, step)
    expected = {"gradient_norm": 5, "energy_gap": 3, "at_wall": 1 / 3, "duplicates": 1 / 3, "acceptance": 2 / 3}
    expected |= {"age_max": 1, "age_mean": 1 / 30, "step_size": 0.1}
    assert {name: float(value) for name, value in result.items()} == pytest.approx(expected)


def test_walls_and_duplicates():
    assert float(at_wall(torch.tensor([[0.9979, 0.9981, -1.0, 0.0]]), BOX)) == 0.5
    assert duplicates(torch.zeros(4, 2)) == 0.75
    assert duplicates(torch.eye(4)) == 0


ONLY_CLASSES = {"generative_weight": 0.0, "class_conditional_weight": 1.0}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({}, "age_mean"),
        (ONLY_CLASSES, "age_mean"),
        ({"sampler": GHMC(steps=2)}, "acceptance"),
        ({"chains": ReweightedBuffer(24)}, "log_z"),
    ],
)
def test_metrics_are_logged(tmp_path, arguments, name):
    t = trainer(tmp_path, callbacks=[ChainDiagnostics(1)])
    t.fit(jem(**arguments), batches())
    assert {f"chains/{name}", "chains/energy_gap", "chains/at_wall"} <= set(t.callback_metrics)


def test_metrics_that_do_not_apply_are_left_out(tmp_path):
    t = trainer(tmp_path, callbacks=[ChainDiagnostics(1)])
    t.fit(jem(chains=SupportInit()), batches())
    assert "chains/age_mean" not in t.callback_metrics


def test_modules_without_chains_are_refused(tmp_path):
    with pytest.raises(ValueError, match="ChainDiagnostics needs a JEM"):
        trainer(tmp_path, callbacks=[ChainDiagnostics()]).fit(ConditionalEBM(MLP(4, 3), 3), batches())
    with pytest.raises(ValueError, match="'every_n_steps' should be at least 1"):
        ChainDiagnostics(0)
