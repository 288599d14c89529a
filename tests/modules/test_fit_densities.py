"""The fit of initial distributions before training: it reads all data once and changes nothing else.

Mutants that these tests kill: a pass over the loader of the run; an order, or a remainder, that depends on the seed;
random numbers of the run; a second fit for the class-conditional chains.
"""

import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from ebm_lightning import JEM, ClassificationRBM
from ebm_lightning.chains import ReplayBuffer
from ebm_lightning.data import Rings, resumable_loader
from ebm_lightning.modules.random_state import seeded_globally
from ebm_lightning.modules.training_data import training_batches
from ebm_lightning.supports import Box, ClassGaussians, Density, Gaussian
from tests.helpers import batches, jem, trainer
from tests.resume.runs import final, noisy, same


def loader(**arguments: Any) -> DataLoader:
    """29 images with the number of the image in the first component."""
    x = torch.linspace(-0.9, 0.9, 29)[:, None].repeat(1, 4)
    return DataLoader(TensorDataset(x, torch.arange(29) % 3), 4, **arguments)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(loader().dataset)


class Batches:
    """An iterable that is not a DataLoader."""

    def __iter__(self):
        return iter(loader())


X = loader().dataset.tensors[0][:, 0]
LOADERS = {
    "in order": lambda: loader(),
    "shuffled": lambda: loader(shuffle=True, drop_last=True),
    "shuffled by a generator": lambda: loader(shuffle=True, generator=torch.Generator().manual_seed(3)),
    "workers": lambda: loader(shuffle=True, num_workers=1),
    "resumable": lambda: resumable_loader(loader().dataset, 4),
    "torchdata": lambda: StatefulDataLoader(loader().dataset, 4, shuffle=True),
    "batches": Batches,
    "stream": lambda: DataLoader(Stream(), 4),
    "a batch each": lambda: DataLoader(list(loader()), batch_size=None, shuffle=True),
}


class Recording(JEM):
    """Records the order of the data and the global random states."""

    def on_train_batch_start(self, batch: list[Tensor], batch_idx: int) -> None:
        self.order = [*getattr(self, "order", []), batch[0][:, 0].tolist()]
        self.numbers = [torch.rand(1).item(), random.random(), np.random.rand()]


def train(folder: Path, batches: Any, initial: Density | None) -> Recording:
    L.seed_everything(1, verbose=False)
    module = jem(chains=ReplayBuffer(30, initial=initial), class_conditional_weight=1.0)
    module.__class__ = Recording
    trainer(folder, max_epochs=2).fit(module, batches)
    return module


@pytest.mark.parametrize("make_loader", LOADERS.values(), ids=LOADERS)
def test_the_fit_only_changes_the_initial_points(make_loader, tmp_path):
    initial = ClassGaussians()
    torch.manual_seed(0)
    without = train(tmp_path, make_loader(), None)
    torch.manual_seed(0)
    fitted = train(tmp_path, make_loader(), initial)
    assert fitted.order == without.order
    assert fitted.numbers == without.numbers
    assert initial.counts.sum() == 29, "images that a loader drops are read too"
    assert torch.allclose(initial.counts @ initial.means[:, 0], X.sum(), atol=1e-5)
    assert fitted.class_chains.initial is fitted.chains.initial is initial


@pytest.mark.parametrize("combined", [False, True])
def test_the_loader_of_the_generative_terms_is_fitted(combined, tmp_path):
    given = {"clf": batches(48, 8), "gen": batches(24, 8)}
    one, two = (jem(chains=ReplayBuffer(30, initial=ClassGaussians())) for _ in range(2))
    trainer(tmp_path).fit(one, batches(24, 8))
    trainer(tmp_path).fit(two, CombinedLoader(given, "min_size") if combined else given)
    assert torch.equal(one.chains.initial.means, two.chains.initial.means)
    assert two.chains.initial.counts.sum() == 24


def test_a_custom_sampler_selects_what_is_read(tmp_path):
    generator = torch.Generator().manual_seed(0)
    given = loader(sampler=SubsetRandomSampler(range(20), generator))
    before = generator.get_state()
    t = trainer(tmp_path)
    t.fit_loop._data_source.instance = given
    with seeded_globally(0):
        seen = torch.cat([x[:, 0] for x, _ in training_batches(t)])
    assert torch.equal(seen, X[:20])
    assert torch.equal(generator.get_state(), before)


def test_random_states_are_restored(seed):
    L.seed_everything(seed + 1, verbose=False)
    expected = torch.rand(1), random.random(), np.random.rand()
    L.seed_everything(seed + 1, verbose=False)
    drawn = []
    for _ in range(2):
        with seeded_globally(0):
            drawn.append((torch.rand(1), random.random(), np.random.rand()))
        assert torch.initial_seed() == seed + 1
    assert drawn[0] == drawn[1] != expected
    assert (torch.rand(1), random.random(), np.random.rand()) == expected


class NoisyRings(Rings):
    """Rings with noise from the global random state. Counts its loaders."""

    loaders = 0

    def train_dataloader(self) -> DataLoader:
        self.loaders += 1
        return resumable_loader(self.train, self.batch_size, self.trainer, collate_fn=self.collate)

    def collate(self, items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        x = torch.stack([x for x, _ in items])
        return self.support.clamp(x + 0.1 * torch.randn(x.shape)), torch.stack([y for _, y in items])


def fit_or_resume(folder: Path, checkpoint: Path | None = None, **settings: Any) -> JEM:
    L.seed_everything(0 if checkpoint is None else 999, verbose=False)
    module = noisy(chains=ReplayBuffer(48, 0.3, ClassGaussians()))
    saver = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    callbacks = [saver] if checkpoint is None else []
    t = trainer(folder, callbacks=callbacks, enable_checkpointing=not checkpoint, max_epochs=3, **settings)
    data = NoisyRings(size=66, batch_size=16)
    t.fit(module, data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    assert data.loaders == 2, "one for the fit, one for training"
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_a_resumed_run_fits_the_same_gaussians_and_ends_bit_equal(tmp_path):
    """From each step, under another seed, with an incomplete last batch in every epoch and noise on all images."""
    uninterrupted = fit_or_resume(tmp_path)
    for path in sorted(tmp_path.glob("*.ckpt")):
        again = fit_or_resume(tmp_path, path)
        assert not same(final(again), final(uninterrupted)), path.name
        assert torch.equal(again.chains.initial.factors, uninterrupted.chains.initial.factors)
        assert torch.equal(again.chains.initial.means, uninterrupted.chains.initial.means)
    assert "initial" not in str(torch.load(path, weights_only=True)["ranks"])


def test_a_checkpoint_rebuilds_the_unfitted_distribution(tmp_path):
    module = jem(chains=ReplayBuffer(30, 0.1, ClassGaussians(1e-3)))
    t = trainer(tmp_path)
    t.fit(module, batches())
    t.save_checkpoint(tmp_path / "m.ckpt")
    again = JEM.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    assert isinstance(again.chains.initial, ClassGaussians)
    assert again.chains.initial.ridge == 1e-3
    assert again.hparams == module.hparams
    trainer(tmp_path, limit_train_batches=0).fit(again, batches())
    assert torch.equal(again.chains.x, module.chains.x)


def test_a_checkpoint_can_only_name_a_density():
    for path in ("subprocess.Popen", "ebm_lightning.SGLD", "torch.nn.Linear"):
        inner = {"class_path": path, "init_args": {}}
        with pytest.raises(ValueError, match=r"'chains' should be given: .* cannot be rebuilt .* as a Density"):
            jem(chains={"class_path": "ebm_lightning.chains.ReplayBuffer", "init_args": {"initial": inner}})


@pytest.mark.parametrize("initial", [Box(-0.5, 0.5, (4,)), Gaussian(0.1, 0.5, (4,))], ids=["box", "gaussian"])
def test_a_support_is_rebuilt_as_an_initial_distribution(initial):
    module = jem(chains=ReplayBuffer(30, 0.1, initial))
    again = jem(chains=module.hparams["chains"])
    assert type(again.chains.initial) is type(initial)
    assert vars(again.chains.initial) == vars(initial)


def test_invalid_data_stop_the_run_before_training(tmp_path):
    module = jem(chains=ReplayBuffer(30, initial=ClassGaussians()))
    with pytest.raises(ValueError, match="'x' should be in the box"):
        trainer(tmp_path).fit(module, [(torch.full((4, 4), 2.0), torch.zeros(4).long())])
    rbm = ClassificationRBM(4, 2, 3, chains=ReplayBuffer(30, initial=ClassGaussians()))
    with pytest.raises(ValueError, match="'initial' should be None on Binary"):
        trainer(tmp_path).fit(rbm, [(torch.zeros(6, 4), torch.arange(6) % 3)])
