"""Training in coordinates, with labeled and unlabeled data.

Mutants that these tests kill: an optimizer that moves a flow; noise and checks in u; unlabeled data that enter
log p(x, y), or the cross-entropy; coordinates that are fitted to the labeled data alone.
"""

import functools

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import (
    JEM,
    SADAJEM,
    SGLD,
    Box,
    ConditionalEBM,
    ReplayBuffer,
)
from ebm_lightning.coordinates import Compose, NormalScores, Quantiles, Whitening
from ebm_lightning.supports import Gaussian
from tests.coordinates.kinds import small_flow
from tests.helpers import trainer, weights
from tests.modules.coordinates_models import (
    BOX,
    Batches,
    Data,
    Exact,
    N,
    gradient,
    line_model,
    model,
    net,
    points,
    same_coordinates,
    seeded,
)


def test_a_flow_is_not_trained_further(tmp_path):
    """By an optimizer with weight decay that has its weights, under settings that keep gradients of 0."""
    flow = small_flow()
    after_fit = {}

    class Spy(L.Callback):
        def on_train_start(self, trainer, pl_module):
            after_fit.update({name: p.clone() for name, p in flow.named_parameters()})

    class Zeroing(JEM):
        def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
            optimizer.zero_grad(set_to_none=False)

    optimizer = functools.partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5)
    coordinates = Compose([Whitening((2,)), flow])
    chains, sampler = ReplayBuffer(30), SGLD(0.01, 0.05, 2)
    module = Zeroing(net(), 3, None, sampler, chains, optimizer=optimizer, coordinates=coordinates)
    before = weights(module.classifier)
    trainer(tmp_path, callbacks=[Spy()]).fit(module, Data())
    assert not torch.equal(weights(module.classifier), before)
    assert len(after_fit) > 3
    assert all(torch.equal(p, after_fit[name]) for name, p in flow.named_parameters())


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_sadajem_trains_in_coordinates(rho, tmp_path):
    torch.manual_seed(0)
    coordinates = Compose([Quantiles(BOX, 8), NormalScores((2,)), small_flow()])
    module = SADAJEM(net(), 3, sampler=SGLD(0.01, 0.05, 2), rho=rho, coordinates=coordinates, joint_weight=1.0, seed=0)
    trainer(tmp_path, max_epochs=2).fit(module, Data())
    assert weights(module).isfinite().all()
    assert isinstance(module.support, Gaussian)
    BOX.check(module.sample(20))


def test_a_classifier_is_trained_in_coordinates(tmp_path):
    module, data = ConditionalEBM(net(), 3, coordinates=Quantiles(BOX, 8)), Data()
    t = trainer(tmp_path)
    t.fit(module, data)
    assert same_coordinates(module.coordinates, Quantiles(BOX, 8).fit(data.x))
    x = data.other.tensors[0]
    module.eval()
    assert torch.equal(module(x), module.classifier(module.coordinates(x)))
    outputs = torch.cat([batch["energy"] for batch in t.predict(module, DataLoader(x, 12))])
    assert torch.allclose(outputs, module.energy(x))


def test_noise_and_checks_are_of_x(tmp_path):
    module, data = model(data_noise=0.5), Data()
    trainer(tmp_path, limit_train_batches=0).fit(module, data)
    x, _ = module.training_batch((data.x, data.train.tensors[1]), 0)
    BOX.check(x)
    assert (x < -0.9).any()
    assert (x - data.x).abs().mean() > 0.2
    with pytest.raises(ValueError, match=r"'x' should be in the box \[-1, 1\]"):
        module.training_batch((data.x - 1, data.train.tensors[1]), 0)
    with pytest.raises(ValueError, match=r"'x' should be in the box \[-1, 1\]"):
        trainer(tmp_path).predict(module, DataLoader(data.x - 1, 12))
    assert module.domain == BOX
    assert module.support == Box(0.0, 1.0, (2,))
    assert module.support.contains(module.chains.x).all()


@pytest.mark.parametrize("batch", ["a tensor", "a list of one", "labels of -1"])
def test_unlabeled_data_train_log_p_of_x_alone(batch, tmp_path):
    """The run is that of the same data with labels, which log p(x) does not read."""

    def gen(kind: str) -> DataLoader:
        x, y = points(40, seeded()).tensors
        sets = {"a tensor": x, "a list of one": TensorDataset(x), "labels of -1": TensorDataset(x, -torch.ones_like(y))}
        return DataLoader(sets.get(kind, TensorDataset(x, y)), 10)

    ends = []
    for kind in ("labels", batch):
        L.seed_everything(0, verbose=False)
        module = model(conditional_weight=2.0)
        trainer(tmp_path).fit(module, {"clf": DataLoader(points(20, seeded()), 5), "gen": gen(kind)})
        ends.append(weights(module))
    assert torch.equal(*ends)
    expected = Quantiles(BOX, 8).fit(points(40, seeded()).tensors[0])
    assert same_coordinates(module.coordinates, expected), "fitted to the data of the generative terms"


def test_the_terms_of_labeled_and_unlabeled_data(seed):
    """Cross-entropy of the first alone, energies of the second alone."""
    module = line_model(sampler=Exact())
    module.classifier.double()
    module.start_chains()
    x, y = torch.rand(9, 1).double(), torch.randint(3, (9,))
    x_gen = (torch.rand(N, 1) * 2 - 1.5).double()
    batch = module.training_batch({"clf": (x, y), "gen": x_gen}, 0)
    terms = module.loss_terms(*batch)
    assert torch.allclose(terms["clf"][1], nn.functional.cross_entropy(module(x), y))
    alone = module.loss_terms(x_gen, torch.zeros(N).long())["gen"][1]
    assert torch.allclose(gradient(terms["gen"][1], module), gradient(alone, module))


def test_batches_with_two_parts_from_one_loader(tmp_path):
    x, y = points(20, seeded()).tensors
    module = model()
    trainer(tmp_path).fit(module, Batches({"clf": (x[:5], y[:5]), "gen": x}))
    assert module.coordinates.fitted


@pytest.mark.parametrize("weight", ["joint_weight", "class_conditional_weight"])
def test_terms_with_labels_refuse_unlabeled_data(weight, tmp_path):
    loaders = {"clf": DataLoader(points(20, seeded()), 5), "gen": DataLoader(points(20, seeded()).tensors[0], 5)}
    with pytest.raises(ValueError, match=r"'joint_weight' and 'class_conditional_weight' should be 0 .* unlabeled"):
        trainer(tmp_path).fit(model(**{weight: 1.0}), loaders)
    x, y = points(20, seeded()).tensors
    with pytest.raises(ValueError, match="'y' should be labels from 0 to 2, got -1"):
        trainer(tmp_path).fit(model(Quantiles(BOX, 8).fit(x)), Batches((x, -torch.ones_like(y))))
