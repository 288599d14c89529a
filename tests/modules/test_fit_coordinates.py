"""The fit of coordinates before training: once, of the training data alone, and the same everywhere.

Mutants that these tests kill: a fit to validation data, on resume, or by the loader of the run; a fit that draws from
the random state of the run; averaged models without the fit; ranks that read a part of the data, or keep their own fit;
an initial distribution that is fitted to x.
"""

import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch.utils.data import DataLoader

from ebm_lightning import (
    JEM,
    ClassGaussians,
    ConditionalEBM,
    ReplayBuffer,
)
from ebm_lightning.coordinates import Quantiles
from tests.helpers import trainer, weights
from tests.modules.coordinates_models import BOX, Batches, Data, copula, model, net, points, same_coordinates, seeded
from tests.modules.coordinates_script import OwnNoise
from tests.resume.runs import final, same

ROOT = Path(__file__).parent.parent.parent


def test_the_fit_is_to_the_training_data_once(tmp_path):
    module, data = model(), Data()
    expected = Quantiles(BOX, 8).fit(data.x)
    assert not module.coordinates.fitted
    t = trainer(tmp_path)
    t.fit(module, data)
    assert same_coordinates(module.coordinates, expected)
    assert data.loaders == 2, "one for the fit, one for training"
    other = Data()
    other.train = other.other
    trainer(tmp_path).fit(module, other)
    assert same_coordinates(module.coordinates, expected)
    assert other.loaders == 1
    t.save_checkpoint(tmp_path / "m.ckpt")
    again = JEM.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    trainer(tmp_path).fit(again, other)
    assert same_coordinates(again.coordinates, expected)
    assert other.loaders == 2
    assert again.hparams["coordinates"]["init_args"]["num_levels"] == 8


@pytest.mark.parametrize("kind", [ConditionalEBM, JEM])
def test_the_fit_changes_nothing_else(kind, tmp_path):
    """A run ends with the weights of one whose coordinates were fitted before."""
    ends, state = [], {}
    for fitted_before in (False, True):
        L.seed_everything(1, verbose=False)
        coordinates, data = Quantiles(BOX, 8), Data(noisy=True)
        if fitted_before:
            coordinates.load_state_dict(state)
        module = model(coordinates) if kind is JEM else ConditionalEBM(net(), 3, coordinates=coordinates)
        L.seed_everything(2, verbose=False)
        trainer(tmp_path).fit(module, data)
        state = module.coordinates.state_dict()
        ends.append(weights(module))
    assert torch.equal(*ends)


@pytest.mark.parametrize("kind", [list, lambda loader: Batches(*loader)], ids=["loader", "batches"])
def test_data_of_a_loader_or_an_iterable_are_fitted(kind, tmp_path):
    module, loader = model(copula()), DataLoader(points(40, seeded()), 8)
    trainer(tmp_path).fit(module, loader if kind is list else kind(loader))
    x = points(40, seeded()).tensors[0]
    assert torch.equal(module.coordinates.parts[0].cumulative, Quantiles(BOX, 8).fit(x).cumulative)


def test_invalid_data_stop_the_run_before_training(tmp_path):
    bad = Batches((torch.full((4, 2), 2.0), torch.zeros(4).long()))
    with pytest.raises(ValueError, match=r"'x' should be in the box \[-1, 1\]"):
        trainer(tmp_path).fit(model(), bad)
    with pytest.raises(RuntimeError, match="Quantiles coordinates are not fitted yet"):
        trainer(tmp_path).test(model(), Data(), verbose=False)


def test_initial_distributions_are_fitted_in_coordinates(tmp_path):
    initial, data = ClassGaussians(), Data()
    module = model(chains=ReplayBuffer(30, initial=initial))
    trainer(tmp_path, limit_train_batches=0).fit(module, data)
    expected, coordinates = ClassGaussians(), Quantiles(BOX, 8).fit(data.x)
    expected.fit([(coordinates(data.x), data.train.tensors[1])], 3)
    assert torch.allclose(initial.means, expected.means)
    module.support.check(module.chains.x)


@pytest.mark.parametrize("average_first", [True, False])
def test_averaged_models_have_the_fit(average_first, tmp_path):
    """At the sanity check, in validation and after training, up to the rounding errors of an average."""
    seen = []

    class Spy(L.Callback):
        def on_validation_batch_start(self, trainer, pl_module, *_):
            seen.append(pl_module.coordinates.cumulative.clone())

    data = Data()
    expected = Quantiles(BOX, 8).fit(data.x)
    module, callbacks = model(), [EMAWeightAveraging(decay=0.7), Spy()]
    trainer(tmp_path, max_epochs=2, callbacks=callbacks if average_first else callbacks[::-1]).fit(module, data)
    assert len(seen) == 6
    assert all(torch.allclose(table, expected.cumulative, rtol=0, atol=1e-14) for table in seen)
    assert torch.allclose(module.coordinates.cumulative, expected.cumulative, rtol=0, atol=1e-14)


def fit_or_resume(folder: Path, checkpoint: Path | None = None) -> JEM:
    L.seed_everything(0 if checkpoint is None else 999, verbose=False)
    module = model(copula(), data_noise=0.02, seed=None, class_conditional_weight=1.0)
    callbacks: list[L.Callback] = [EMAWeightAveraging(decay=0.5)]
    if checkpoint is None:
        callbacks.append(ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1))
    t = trainer(folder, callbacks=callbacks, enable_checkpointing=not checkpoint, max_epochs=3)
    data = Data(noisy=True)
    t.fit(module, data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    assert data.loaders == (3 if checkpoint is None else 1), "two passes of the fit, or none"
    return module


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_a_resumed_run_fits_nothing_and_ends_bit_equal(tmp_path):
    """Within the first epoch, at its end and within the second, with noise on all data and averaged weights."""
    whole = fit_or_resume(tmp_path)
    for step in (1, 4, 7):
        again = fit_or_resume(tmp_path, tmp_path / f"step={step}.ckpt")
        assert not same(final(again), final(whole)), step
        assert same_coordinates(again.coordinates, whole.coordinates)


@pytest.mark.slow
def test_two_ranks_have_the_same_coordinates(tmp_path):
    """Those of rank 0, which reads all data. Seeds, the noise on the data and the weights of a flow differ."""
    command = [sys.executable, "-m", "tests.modules.coordinates_script", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    a, b = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(a["coordinates"][name], b["coordinates"][name]) for name in a["coordinates"])
    assert torch.equal(a["weights"], b["weights"])
    assert not torch.equal(a["x"], b["x"])
    alone = model()
    trainer(tmp_path).fit(alone, OwnNoise())
    assert torch.equal(alone.coordinates.cumulative, a["coordinates"]["parts.0.cumulative"])
