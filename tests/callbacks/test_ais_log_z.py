import functools
import math

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import AISLogZ, ClassificationRBM, Euclidean, SupportInit
from ebm_lightning.networks import MLP
from ebm_lightning.partition import exact_log_z
from ebm_lightning.supports import Binary, Box
from tests.helpers import batches, jem, trainer, weights

PLANE = Box(-1, 1, (2,))
pytestmark = pytest.mark.filterwarnings("ignore:log Z is unreliable")  # always so for 20 chains


def plane_jem(**arguments):
    torch.manual_seed(0)
    net = MLP(2, 3, (16,))
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)
    return jem(net, support=PLANE, **arguments)


@pytest.fixture
def loader():
    return batches(shape=(2,))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_metrics_match_quadrature(tmp_path, loader, precision):
    module = plane_jem()
    callback = AISLogZ(temperatures=60, num_chains=400, num_levels=256, directory=tmp_path)
    (metrics,) = trainer(tmp_path, callbacks=[callback], precision=precision).test(module, loader, verbose=False)
    exact = exact_log_z(module.energy, PLANE)
    assert abs(metrics["ais/log_z"] - exact.log_z) < 5 * metrics["ais/std_err"]
    assert metrics["ais/std_err"] < 0.05
    assert metrics["ais/reliable"] == 1
    for y, p in enumerate(exact.prior.tolist()):
        assert metrics[f"ais/prior_{y}"] == pytest.approx(p, abs=0.08)
    with torch.no_grad():
        log_p = -module.energy(loader.dataset.tensors[0]).mean().item() - metrics["ais/log_z"]
    assert metrics["ais/log_likelihood"] == pytest.approx(log_p, abs=1e-4)
    assert metrics["ais/bits_per_dim"] == pytest.approx(-log_p / (2 * math.log(2)) + math.log2(128), abs=1e-3)
    assert (tmp_path / "ais-path.png").exists()


def test_a_uniform_model_has_log2_levels_bits(tmp_path, loader):
    module = plane_jem()
    nn.init.zeros_(module.classifier.layers[-1].weight)
    callback = AISLogZ(temperatures=2, num_chains=40, num_levels=17)
    (metrics,) = trainer(tmp_path, callbacks=[callback]).test(module, loader, verbose=False)
    assert metrics["ais/bits_per_dim"] == pytest.approx(math.log2(17), abs=1e-5)


@pytest.mark.parametrize("average_first", [True, False])
def test_log_z_belongs_to_the_evaluated_weights(tmp_path, loader, average_first):
    """With weight averaging, before or after this callback."""
    seen = {}

    class Spy(AISLogZ):
        def estimate(self, trainer, module):
            seen["weights"] = weights(module)
            return super().estimate(trainer, module)

    callbacks = [EMAWeightAveraging(decay=0.5), Spy(1, temperatures=2, num_chains=20)]
    module = plane_jem(optimizer=functools.partial(torch.optim.SGD, lr=0.5), chains=SupportInit())
    t = trainer(tmp_path, callbacks=callbacks if average_first else callbacks[::-1])
    t.fit(module, loader, loader)
    assert torch.equal(seen["weights"], weights(module)), "after fit the module holds the average"


def test_epochs_between_estimates(tmp_path, loader):
    calls = []

    class Counting(AISLogZ):
        def estimate(self, trainer, module):
            calls.append(trainer.current_epoch)
            return super().estimate(trainer, module)

    callback = Counting(2, temperatures=2, num_chains=20)
    trainer(tmp_path, max_epochs=5, callbacks=[callback]).fit(plane_jem(), loader, loader)
    assert calls == [1, 3]


def test_an_unreliable_estimate_warns(tmp_path, loader):
    module = plane_jem()
    with torch.no_grad():
        module.classifier.layers[-1].weight.mul_(30)
    t = trainer(tmp_path, callbacks=[AISLogZ(temperatures=1, num_chains=20, resample=False)])
    with pytest.warns(UserWarning, match="log Z is unreliable"):
        (metrics,) = t.test(module, loader, verbose=False)
    assert metrics["ais/reliable"] == 0


def test_bad_arguments_and_supports_are_refused(tmp_path, loader):
    with pytest.raises(ValueError, match="'num_chains' should be at least 20"):
        AISLogZ(num_chains=3)
    module = jem(MLP(2, 3), support=Euclidean((2,)), generative_weight=0.0)
    with pytest.raises(ValueError, match=r"'support' should have finite mass, got Euclidean.*'proposal'"):
        trainer(tmp_path, callbacks=[AISLogZ()]).test(module, loader)
    with pytest.raises(ValueError, match="'num_levels' should be None on Euclidean"):
        trainer(tmp_path, callbacks=[AISLogZ(num_levels=2)]).test(module, loader)


@pytest.mark.parametrize("batch_size", [1, 24])
def test_batches_of_any_size_are_evaluated(tmp_path, batch_size):
    callback = AISLogZ(0, 5, 20)
    trainer(tmp_path, callbacks=[callback]).test(jem(), batches(24, batch_size), verbose=False)
    assert callback.result is not None


def test_gray_levels_of_binary_units_are_evaluated(tmp_path):
    module = ClassificationRBM(4, 3, 3, Binary((4,), probabilities=True))
    data = DataLoader(TensorDataset(torch.rand(24, 4), torch.arange(24) % 3), 24)
    callback = AISLogZ(0, 20, 40)
    run = trainer(tmp_path, max_epochs=1, callbacks=[callback])
    run.fit(module, data)
    run.test(module, data, verbose=False)
    assert callback.result is not None
