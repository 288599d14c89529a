"""Hyperparameters: plain values in checkpoints, from which every module is built again, and what loggers show.

Mutants killed: derived values passed back to the constructor; arguments of inner constructors passed back; NumPy
scalars stored as objects; long tensors shown to loggers.
"""

import copy
import functools
import io
import threading

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import (
    JEM,
    SADAJEM,
    SGLD,
    Adaptation,
    Box,
    ClassGaussians,
    ClassificationRBM,
    Euclidean,
    Gaussian,
    ReplayBuffer,
)
from ebm_lightning.networks import MLP
from ebm_lightning.partition import Normal
from ebm_lightning.resume.hparams import check_factory, describe, rebuild
from tests.helpers import batches, jem, trainer

BOX = Box(-1, 1, (4,))


class Named(JEM):
    """A subclass that passes its parent's arguments on."""

    def __init__(self, classifier, num_classes, support, *, note: str = "none", **jem_arguments):
        super().__init__(classifier, num_classes, support, **jem_arguments)
        self.note = note


class Deeper(Named):
    def __init__(self, *args, depth: int = 1, **kwargs):
        super().__init__(*args, **kwargs)
        self.depth = depth


class Narrow(JEM):
    """A subclass that builds everything by itself."""

    def __init__(self, width: int = 8):
        super().__init__(MLP(4, 3, (width,)), 3, BOX, SGLD(0.1, 0.01, 2), ReplayBuffer(30))


class Saves(JEM):
    """A subclass that calls ``save_hyperparameters`` too, as Lightning's documentation does."""

    def __init__(self, classifier, num_classes, support, note: str = "none", **jem_arguments):
        super().__init__(classifier, num_classes, support, **jem_arguments)
        self.save_hyperparameters()
        self.note = note


class FromName(JEM):
    """A subclass whose 'classifier' is not a module."""

    def __init__(self, classifier: str = "mlp"):
        super().__init__({"mlp": MLP(4, 3, (8,))}[classifier], 3, BOX)


def saved(module, tmp_path):
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, batches())
    run.save_checkpoint(tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


def loader(x, y) -> DataLoader:
    return DataLoader(TensorDataset(x, y), len(x))


def net() -> MLP:
    return MLP(4, 3, (8,))


SMALL = {"sampler": SGLD(0.1, 0.01, 2), "chains": ReplayBuffer(30)}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: JEM(net(), 3, BOX, **SMALL, energy_l2=0.2), {"energy_l2": 0.2}),
        (lambda: SADAJEM(net(), 3, BOX, **SMALL, rho=0.5, energy_l2=0.2), {"rho": 0.5, "energy_l2": 0.2}),
        (lambda: Named(net(), 3, BOX, **SMALL, note="a", data_noise=0.1), {"note": "a", "data_noise": 0.1}),
        (lambda: Deeper(net(), 3, BOX, depth=2, note="b", energy_l2=0.3), {"depth": 2, "note": "b", "energy_l2": 0.3}),
        (lambda: Narrow(6), {"energy_l2": 0.1}),
        (lambda: Saves(net(), 3, BOX, note="c", energy_l2=0.2), {"note": "c", "energy_l2": 0.2}),
        (lambda: FromName(), {"energy_l2": 0.1}),
    ],
    ids=["JEM", "SADAJEM", "kwargs", "two levels of kwargs", "own constructor", "saves again", "name of a network"],
)
def test_a_module_reloads_with_its_arguments(make, expected, tmp_path):
    module = make()
    path = saved(module, tmp_path)
    again = type(module).load_from_checkpoint(path, weights_only=True)
    for name, value in expected.items():
        assert getattr(again, name) == value
    assert again.sampler == module.sampler
    x = torch.rand(5, 4) * 2 - 1
    assert torch.equal(again(x), module(x))
    twice = type(module).load_from_checkpoint(saved(again, tmp_path), weights_only=True)
    assert twice.sampler == module.sampler


def test_the_rbm_reloads(tmp_path):
    module = ClassificationRBM(6, 4, 2, joint_weight=0.5, seed=1)
    assert "energy_l2" not in module.hparams
    data = loader(torch.bernoulli(torch.full((4, 6), 0.5)), torch.tensor([0, 1, 0, 1]))
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "model.ckpt")
    again = ClassificationRBM.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert (again.joint_weight, again.energy_l2, again.seed) == (0.5, 0.0, 1)


def test_a_network_from_elsewhere_has_to_be_passed(tmp_path):
    path = saved(jem(nn.Sequential(nn.Linear(4, 3))), tmp_path)
    with pytest.raises(ValueError, match=r"Pass it, as in 'load_from_checkpoint\(path, classifier=...\)'"):
        JEM.load_from_checkpoint(path, weights_only=True)
    JEM.load_from_checkpoint(path, weights_only=True, classifier=nn.Sequential(nn.Linear(4, 3)))


def test_derived_values_go_to_loggers_only(tmp_path):
    module = Named(net(), 3, BOX, sampler=SGLD(0.5, 0.1, 2), chains=ReplayBuffer(30))
    assert "implied_temperature" not in module.hparams
    assert module.hparams_initial["implied_temperature"] == pytest.approx(0.01)
    assert module.hparams_initial["data_noise"] == 0.0  # passed on, so shown
    trainer(tmp_path, max_steps=1, logger=CSVLogger(tmp_path, "log", "")).fit(module, batches())
    assert "implied_temperature: 0.01" in (tmp_path / "log" / "hparams.yaml").read_text()


def test_scalars_are_stored_as_numbers(tmp_path):
    module = Named(net(), 3, BOX, **SMALL, energy_l2=np.float64(0.25), data_noise=np.float32(0.5))
    module.hparams["seen"] = describe(torch.tensor(3))
    assert module.hparams["energy_l2"] == 0.25
    assert type(module.hparams["energy_l2"]) is float
    assert type(module.hparams["data_noise"]) is float
    assert module.hparams["seen"] == 3
    assert describe(np.arange(3)) == [0, 1, 2]
    assert describe({"a": (np.int64(2), torch.tensor(True))}) == {"a": [2, True]}


def test_long_tensors_are_stored_whole_and_shown_by_their_shape(tmp_path):
    """Kills: tensors in the hyperparameters of a checkpoint, or lost, also those within lists and other arguments."""
    mean, base = torch.linspace(-1, 1, 100), Normal(torch.rand(100), torch.ones(100))
    chains = ReplayBuffer(30, initial=base)
    module = JEM(MLP(100, 3, (8,)), 3, Gaussian(mean, 2.0, (100,)), SGLD(0.1, 0.01, 2), chains)
    assert module.hparams_initial["support"]["init_args"]["mean"] == "torch.float32 of shape (100,)"
    data = loader(torch.randn(8, 100), torch.randint(3, (8,)))
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, data)
    for weights_only in (False, True):
        run.save_checkpoint(tmp_path / "model.ckpt", weights_only=weights_only)
        shown = torch.load(tmp_path / "model.ckpt", weights_only=True)["hyper_parameters"]
        assert shown["support"]["init_args"]["mean"] == "torch.float32 of shape (100,)"
        assert len(str(shown)) < 3000
        again = JEM.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
        assert torch.equal(again.support.mean, mean)
        assert torch.equal(again.chains.initial.mean, base.mean)
        assert torch.equal(again.hparams["support"]["init_args"]["mean"], mean)
    again = JEM.load_from_checkpoint(io.BytesIO((tmp_path / "model.ckpt").read_bytes()), weights_only=True)
    assert torch.equal(again.support.mean, mean)
    other = Gaussian(0.0, 1.0, (100,))
    assert JEM.load_from_checkpoint(tmp_path / "model.ckpt", support=other, weights_only=True).support is other


def test_densities_inside_supports_and_chains_are_rebuilt():
    box = Box(-1, 1, (2,))
    for value, kind in (
        (Box(-1, 1, (2,), Normal(torch.zeros(2), torch.ones(2), box)), Box),
        (Euclidean((2,), Normal(torch.zeros(2), torch.ones(2))), Euclidean),
        (ReplayBuffer(10, 0.1, ClassGaussians(0.5)), ReplayBuffer),
    ):
        again = rebuild(describe(value), kind, "value")
        assert describe(again) == describe(value)


def test_an_optimizer_from_a_command_line_is_described():
    class Call:  # stands for the function through which jsonargparse calls a class
        __module__ = "jsonargparse.made_up"

        def __call__(self, instantiate, cls, *args, **kwargs):
            return cls(*args, **kwargs)

    made = functools.partial(Call(), threading.Lock(), torch.optim.Adam, lr=0.1)
    assert describe(made) == {"class_path": "torch.optim.adam.Adam", "init_args": {"lr": 0.1}}
    kept = copy.deepcopy(check_factory("optimizer", made, torch.optim.Optimizer))  # weight averaging copies the module
    assert (kept.func, kept.args, kept.keywords) == (torch.optim.Adam, (), {"lr": 0.1})
    own = functools.partial(Call.__call__, torch.optim.Adam)
    own.func.__module__ = "mine"
    assert check_factory("optimizer", own, torch.optim.Optimizer).args == (torch.optim.Adam,)


def test_a_dataclass_may_be_described_by_its_fields_alone():
    """As a LightningCLI does, whose checkpoints then load without it."""
    assert rebuild({"target": 0.7, "rate": 0.1}, Adaptation, "adaptation") == Adaptation(0.7, 0.1)
