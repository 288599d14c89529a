"""log Z as part of a model: its estimate, its verdict, log p(x), checkpoints, and when it is void."""

import copy
import functools
import math
import re

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import (
    JEM,
    AISLogZ,
    ClassificationRBM,
    ConditionalEBM,
    SupportInit,
    Whitening,
    exact_log_z,
)
from ebm_lightning.energies import MixtureLogits
from ebm_lightning.networks import MLP
from ebm_lightning.partition import LogZ, rbm_class_log_z
from ebm_lightning.supports import Binary, Box, Euclidean
from tests.helpers import batches, jem, trainer

PLANE = Box(-1, 1, (2,))
X = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
QUICK = {"temperatures": 20, "num_chains": 200}


def plane_jem(**arguments) -> JEM:
    torch.manual_seed(0)
    return jem(MLP(2, 3, (16,)), support=PLANE, **arguments)


def test_log_prob_is_normalized():
    """Within 5 standard errors of quadrature, whose density sums to 1; log p(x, y) sums to log p(x)."""
    module = plane_jem()
    estimate = module.estimate_log_z(X, temperatures=60, num_chains=400)
    exact = exact_log_z(module.energy, PLANE)
    assert estimate.reliable, estimate.why
    assert abs(estimate.log_z - exact.log_z) < 5 * estimate.std_err
    with torch.no_grad():
        expected = -module.energy(X).double() - estimate.log_z
    found = module.log_prob(X)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected)
    assert torch.equal(module.log_prob(DataLoader(TensorDataset(X), 9)), module.log_prob(X, batch_size=9))


def test_the_stored_estimate_is_the_estimate():
    module = plane_jem()
    estimate, known = module.estimate_log_z(X, **QUICK), module.log_z
    for name in ("log_z", "std_err", "ess", "why", "reliable"):
        assert getattr(known, name) == getattr(estimate, name)
    assert torch.equal(known.per_class, estimate.per_class)
    assert torch.equal(known.prior, estimate.prior)
    again = module.estimate_log_z(X, **QUICK)
    assert again.log_z == estimate.log_z
    assert module.estimate_log_z(X, seed=1, **QUICK).log_z != estimate.log_z
    assert module.estimate_log_z(X, generator=torch.Generator().manual_seed(1), **QUICK).log_z != estimate.log_z


def test_an_unreliable_log_z_warns_with_its_reason():
    module = plane_jem()
    estimate = module.estimate_log_z(temperatures=1, num_chains=20)
    assert not estimate.reliable
    with pytest.warns(UserWarning, match=re.escape(f"log p(x) is unreliable, as log Z is: {estimate.why}")):
        module.log_prob(X)


def test_an_unknown_log_z_names_the_remedy():
    with pytest.raises(RuntimeError, match=re.escape("has no log Z yet. Call model.estimate_log_z(data), or add the")):
        plane_jem().log_prob(X)


def test_checkpoints_contain_log_z_and_training_voids_it(tmp_path):
    module = plane_jem()
    t = trainer(tmp_path)
    t.fit(module, batches(shape=(2,)))
    estimate = module.estimate_log_z(X, **QUICK)
    t.save_checkpoint(tmp_path / "m.ckpt")
    again = JEM.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    assert again.log_z.log_z == estimate.log_z
    assert again.log_z.why == estimate.why
    trainer(tmp_path).fit(again, batches(shape=(2,)))
    with pytest.raises(RuntimeError, match=r"have changed since its log Z was computed\. Call model\.estimate_log_z"):
        again.log_prob(X)
    assert module.log_z.log_z == estimate.log_z


@pytest.mark.filterwarnings("ignore:log Z is unreliable")
def test_the_callback_keeps_its_estimate(tmp_path):
    module, callback = plane_jem(), AISLogZ(1, **QUICK)
    trainer(tmp_path, callbacks=[callback]).test(module, batches(shape=(2,)), verbose=False)
    assert module.log_z.log_z == callback.result.log_z
    trainer(tmp_path, callbacks=[callback]).fit(module, batches(shape=(2,)), batches(shape=(2,)))
    assert module.log_z.log_z == callback.result.log_z, "of the weights at the end"


@pytest.mark.filterwarnings("ignore:log Z is unreliable")
@pytest.mark.parametrize("average_first", [True, False])
def test_with_weight_averaging_log_z_is_that_of_the_average(average_first, tmp_path):
    """Stored in the averaged weights, which the module gets at the end."""
    callback = AISLogZ(1, **QUICK)
    callbacks = [EMAWeightAveraging(decay=0.5), callback]
    module = plane_jem(optimizer=functools.partial(torch.optim.SGD, lr=0.5), chains=SupportInit())
    t = trainer(tmp_path, max_epochs=2, callbacks=callbacks if average_first else callbacks[::-1])
    t.fit(module, batches(shape=(2,)), batches(shape=(2,)))
    assert module.log_z.log_z == callback.result.log_z


@pytest.mark.filterwarnings("ignore:log Z is unreliable")
def test_each_loader_has_its_own_likelihood_under_one_log_z(tmp_path):
    """Mutant: the energies of both loaders in one list."""
    module = plane_jem()
    near, far = X[:20], X[20:]
    loaders = [DataLoader(TensorDataset(x, torch.zeros(20).long()), 10) for x in (near, far)]
    t = trainer(tmp_path, callbacks=[AISLogZ(num_levels=256, **QUICK)])
    t.test(module, loaders, verbose=False)
    metrics = t.callback_metrics
    for i, x in enumerate((near, far)):
        suffix = f"/dataloader_idx_{i}"
        expected = float(-module.score(x).double().mean().neg() - metrics["ais/log_z"])
        assert float(metrics[f"ais/log_likelihood{suffix}"]) == pytest.approx(expected, abs=1e-4)
        bits = -expected / (2 * math.log(2)) + 7
        assert float(metrics[f"ais/bits_per_dim{suffix}"]) == pytest.approx(bits, abs=1e-4)


def test_data_without_labels_are_evidence(tmp_path):
    module = plane_jem()
    for data in (X, TensorDataset(X), TensorDataset(X, torch.arange(40) % 3), [{"image": X}], X[:5]):
        assert math.isfinite(module.estimate_log_z(data, **QUICK).log_z)
    with pytest.raises(ValueError, match="'y' should be labels from 0 to 2"):
        module.estimate_log_z(TensorDataset(X, torch.arange(40)), **QUICK)


def test_a_model_on_all_of_space_starts_at_its_data():
    """Its log Z is 0. Without data the error asks for a proposal."""
    means = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    module = ConditionalEBM(MixtureLogits(means), 3, Euclidean((2,)))
    own = means.repeat_interleave(100, 0) + torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    estimate = module.estimate_log_z(own, temperatures=60, num_chains=400)
    assert abs(estimate.log_z) < 5 * estimate.std_err
    with pytest.raises(ValueError, match="'proposal'"):
        module.estimate_log_z()


def test_log_prob_is_of_x_under_coordinates(tmp_path):
    """log p(x) has the Jacobian of u = T(x), while log Z is that of u."""
    support = Whitening((2,))
    module = jem(MLP(2, 3, (8,)), support=None, coordinates=support)
    trainer(tmp_path, limit_train_batches=1).fit(module, batches(shape=(2,)))
    estimate = module.estimate_log_z(X, temperatures=60, num_chains=400)
    with torch.no_grad():
        u = module.coordinates(X)
        log_p_u = -module.chain_energy(u).double() - estimate.log_z
        jacobian = module.coordinates.log_abs_det_jacobian(X, u)
    torch.testing.assert_close(module.log_prob(X), log_p_u + jacobian, rtol=1e-5, atol=1e-5)  # energies are float32


def test_an_rbm_knows_its_log_z():
    bits = (torch.rand(40, 6, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    module = ClassificationRBM(6, 3, 3)
    module.rbm.observe(bits, torch.arange(40) % 3)
    estimate = module.estimate_log_z(bits, temperatures=50, num_chains=100)
    exact = float(rbm_class_log_z(module.rbm).detach().logsumexp(0))
    assert abs(estimate.log_z - exact) < 5 * estimate.std_err + 1e-6
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6)
    assert float(module.log_prob(corners).exp().sum()) == pytest.approx(1, abs=5 * estimate.std_err + 1e-6)
    gray = ClassificationRBM(6, 3, 3, Binary((6,), probabilities=True))
    gray.rbm.observe(bits, torch.arange(40) % 3)
    assert math.isfinite(gray.estimate_log_z(0.9 * bits, temperatures=50, num_chains=100).log_z)


def test_an_energy_without_finite_mass_is_not_a_number():
    module = plane_jem()
    module.stored_log_z.store(module.energy, [math.nan, math.nan, 0.0, *[math.nan] * 3], "Z is infinite.")
    assert isinstance(module.log_z, LogZ)
    with pytest.warns(UserWarning, match="Z is infinite"):
        assert module.log_prob(X).isnan().all()


def test_a_copy_keeps_its_log_z():
    module = plane_jem()
    module.estimate_log_z(X, **QUICK)
    assert copy.deepcopy(module).log_z.log_z == module.log_z.log_z
    nn.init.zeros_(module.classifier.layers[-1].bias)
    with pytest.raises(RuntimeError, match="have changed"):
        _ = module.log_z
