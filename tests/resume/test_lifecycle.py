"""Any order of construct, load, validate, test, predict, save and fit, and searches that train before 'fit' does.

Mutants killed: chains that are saved before they exist; a search whose chains or generator stay; chains that a loaded
model does not show; chains or random states among bare weights; chains that are lost with a process.
"""

import functools

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader

from ebm_lightning import JEM, SADAJEM, SGLD, Box, ClassGaussians, ConditionalEBM, Gaussian, Quantiles, ReplayBuffer
from ebm_lightning.evaluation.checkpoints import load_model
from ebm_lightning.networks import MLP
from tests.helpers import BOX, batches, jem, trainer, weights


class WithRate(JEM):
    """A JEM with a learning rate that a search can set, and a batch size that one can scale."""

    def __init__(self, *args, lr: float = 1e-3, **kwargs):
        super().__init__(*args, **kwargs)
        self.lr = lr
        self.batch_size = 2

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)

    def train_dataloader(self):
        return DataLoader(batches(48).dataset, self.batch_size)

    val_dataloader = train_dataloader


def with_rate(**arguments) -> WithRate:
    torch.manual_seed(0)
    defaults = {"support": BOX, "sampler": SGLD(0.1, 0.01, 3), "chains": ReplayBuffer(60), "seed": 0}
    return WithRate(MLP(4, 3, (8,)), 3, **{**defaults, **arguments})


def saved(module, folder, name="model.ckpt", **arguments):
    """A checkpoint after a validation alone."""
    run = trainer(folder)
    run.validate(module, batches(), verbose=False)
    run.save_checkpoint(folder / name, **arguments)
    return folder / name


def fitted(module, folder, name="model.ckpt", **arguments):
    run = trainer(folder, max_steps=2)
    run.fit(module, batches())
    run.save_checkpoint(folder / name, **arguments)
    return folder / name


def test_a_checkpoint_from_before_training_is_one(tmp_path):
    path = saved(jem(), tmp_path)
    loaded = JEM.load_from_checkpoint(path, weights_only=True)
    with pytest.raises(RuntimeError, match="has no chains yet"):
        _ = loaded.chains.x
    plain, resumed = jem(), jem()
    trainer(tmp_path).fit(plain, batches())
    trainer(tmp_path).fit(resumed, batches(), ckpt_path=path, weights_only=True)
    assert torch.equal(weights(plain), weights(resumed))


@pytest.mark.parametrize("weight", ["generative_weight", "class_conditional_weight"])
def test_a_loaded_model_has_its_chains_and_keeps_them(weight, tmp_path):
    arguments = {"generative_weight": 0.0} | {weight: 1.0}
    name = "class_chains" if weight == "class_conditional_weight" else "chains"
    module = jem(**arguments)
    path = fitted(module, tmp_path)
    loaded = JEM.load_from_checkpoint(path, weights_only=True)
    chains = getattr(module, name)
    for _ in range(2):  # loaded, validated, tested, predicted, saved and loaded again
        assert torch.equal(getattr(loaded, name).x, chains.x)
        assert torch.equal(getattr(loaded, name).age, chains.age)
        run = trainer(tmp_path)
        run.predict(loaded, batches())
        run.test(loaded, batches(), verbose=False)
        loaded = JEM.load_from_checkpoint(saved(loaded, tmp_path, "again.ckpt"), weights_only=True)
    before = loaded.chains.x.clone() if name == "chains" else loaded.class_chains.x.clone()
    trainer(tmp_path, max_steps=1).fit(loaded, batches())
    same = (getattr(loaded, name).x == before).flatten(1).all(1)
    assert 0 < same.sum() == len(before) - 8, "all chains but those of one batch are where they were"


def test_a_second_fit_continues_the_chains(tmp_path):
    module = jem()
    trainer(tmp_path, max_steps=2).fit(module, batches())
    before = module.chains.x.clone()
    trainer(tmp_path, max_steps=1).fit(module, batches())
    assert (module.chains.x == before).flatten(1).all(1).sum() == len(before) - 8


def test_bare_weights_are_small_and_hold_no_chains(tmp_path):
    module = jem(chains=ReplayBuffer(10_000))
    run, bare, whole = trainer(tmp_path, max_steps=2), tmp_path / "bare.ckpt", tmp_path / "whole.ckpt"
    run.fit(module, batches())
    run.save_checkpoint(bare, weights_only=True)
    run.save_checkpoint(whole)
    assert "ranks" not in torch.load(bare, weights_only=True)
    assert bare.stat().st_size < 60_000 < 200_000 < whole.stat().st_size
    assert torch.equal(weights(JEM.load_from_checkpoint(bare, weights_only=True)), weights(module))


def search(kind: str, folder):
    """Run a search as users do, then the fit that follows. Returns the module."""
    module, run = with_rate(), trainer(folder)
    if kind == "Tuner.lr_find":
        Tuner(run).lr_find(module, batches(), num_training=6, update_attr=False)
    elif kind == "Tuner.scale_batch_size":
        Tuner(run).scale_batch_size(module, max_trials=2, steps_per_trial=1)
        module.batch_size = 2
    else:
        finder = {
            "LearningRateFinder": LearningRateFinder(num_training_steps=6, update_attr=False),
            "BatchSizeFinder": BatchSizeFinder(max_trials=2, steps_per_trial=1),
        }
        run = trainer(folder, callbacks=[finder[kind]] if kind in finder else [])
    run.fit(module, *([] if "atch" in kind else [batches()]))
    return module


@pytest.mark.filterwarnings("ignore::UserWarning")  # a suggestion needs more steps
@pytest.mark.parametrize("kind", ["LearningRateFinder", "Tuner.lr_find", "Tuner.scale_batch_size", "BatchSizeFinder"])
def test_searches_train_and_leave_nothing_behind(kind, tmp_path):
    found = search(kind, tmp_path)
    assert torch.isfinite(weights(found)).all()
    if "atch" in kind:
        return  # another batch size gives another run
    plain = search("none", tmp_path)
    assert torch.equal(weights(found), weights(plain))
    assert torch.equal(found.chains.x, plain.chains.x)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_searches_fit_coordinates_and_densities_first(tmp_path):
    coordinates = Quantiles(BOX, 4)
    module = with_rate(chains=ReplayBuffer(60, initial=ClassGaussians()), coordinates=coordinates, support=None)
    run = trainer(tmp_path, callbacks=[LearningRateFinder(num_training_steps=6, update_attr=False)])
    run.fit(module, batches(48))
    assert coordinates.fitted
    assert module.chains.initial.fitted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("strategy", "devices"), [("ddp_spawn", 1), ("ddp_fork", 2), ("ddp_notebook", 2)])
def test_chains_come_back_from_processes(strategy, devices, tmp_path):
    module = jem()
    trainer(tmp_path, max_steps=2, strategy=strategy, devices=devices).fit(module, batches(48))
    first = module.chains.x.clone()
    assert len(first) == 30 * devices
    run = trainer(tmp_path, max_steps=1, strategy=strategy, devices=devices)
    run.fit(module, batches(48))
    assert (module.chains.x == first).flatten(1).all(1).sum() == len(first) - 8 * devices
    run.save_checkpoint(tmp_path / "model.ckpt")
    assert torch.equal(JEM.load_from_checkpoint(tmp_path / "model.ckpt").chains.x, module.chains.x)


# Arguments.


def test_scalars_of_numpy_and_torch_resume(tmp_path):
    """Kills: a scalar kept by any constructor, an optimizer's learning rate that ``weights_only=True`` refuses."""

    def make() -> JEM:
        return JEM(
            MLP(4, 3, (8,)),
            torch.tensor([0, 2]).max() + 1,
            Box(np.float64(-1), torch.tensor(1.0), (np.int64(4),)),
            SGLD(np.logspace(-1, 0, 2)[0], np.float32(0.01), torch.tensor(2)),
            ReplayBuffer(np.int64(30), np.float32(0.05)),
            conditional_weight=np.float64(1),
            energy_l2=torch.tensor(0.1),
            seed=np.int64(3),
            optimizer=functools.partial(torch.optim.Adam, lr=np.float64(1e-3)),
        )

    module = make()
    numbers = (module.num_classes, module.seed, module.energy_l2, module.support.low, module.support.shape[0])
    numbers += (module.sampler.step_size, module.sampler.steps, module.chains.size, module.conditional_weight)
    assert {type(number) for number in numbers} == {int, float}
    path = fitted(module, tmp_path)
    trainer(tmp_path, max_steps=3).fit(make(), batches(), ckpt_path=path, weights_only=True)
    assert JEM.load_from_checkpoint(path, weights_only=True).sampler == module.sampler


def test_a_learning_rate_of_numpy_in_an_own_optimizer_resumes(tmp_path):
    path = fitted(with_rate(lr=np.float64(1e-3)), tmp_path)
    trainer(tmp_path, max_steps=3).fit(with_rate(), batches(), ckpt_path=path, weights_only=True)


def test_a_large_reference_is_cheap(tmp_path):
    mean = torch.zeros(3, 64, 64)
    module = JEM(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(mean.numel(), 3)),
        3,
        Gaussian(mean, torch.ones_like(mean), mean.shape),
        SGLD.jem(1),
        ReplayBuffer(10),
    )
    assert module.hparams_initial["support"]["init_args"]["mean"] == "torch.float32 of shape (3, 64, 64)"
    path = fitted_on_images(module, tmp_path)
    again = JEM.load_from_checkpoint(path, weights_only=True, classifier=module.classifier)
    assert torch.equal(again.support.mean, mean)


def fitted_on_images(module, folder):
    run = trainer(folder, max_steps=1)
    run.fit(module, batches(8, 4, (3, 64, 64)))
    run.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt"


class Mine(SADAJEM):
    def __init__(self, *args, extra: int = 1, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = extra


def test_the_saved_class_is_loaded(tmp_path):
    module = Mine(MLP(4, 3, (8,)), 3, BOX, SGLD(0.1, 0.01, 2), ReplayBuffer(30), extra=4)
    loaded = load_model(fitted(module, tmp_path))
    assert (type(loaded), loaded.extra, loaded.rho) == (Mine, 4, 2.0)
    assert type(load_model(fitted(ConditionalEBM(MLP(4, 3, (8,)), 3), tmp_path))) is ConditionalEBM


def test_a_class_that_is_not_imported_is_named(tmp_path):
    path = fitted(jem(), tmp_path)
    checkpoint = torch.load(path, weights_only=True) | {"class_path": "elsewhere.Mine"}
    torch.save(checkpoint, path)
    with pytest.warns(UserWarning, match=r"is of the class elsewhere.Mine, which is not imported: .* as JEM"):
        assert type(load_model(path)) is JEM
