"""Gaussians fitted to classes: their moments, whose chains start where, and a pass over the data without a trace.

Mutants that these tests kill: the factor transposed; the ridge left out or on the factor; a class's covariance around
the mean of all; labels ignored in the fill, in a draw or in a restart; classes drawn evenly; draws in half precision;
the pass over the run's own loader; its order, or its remainder, from the seed; its random numbers from the run's; the
classes' chains fitted a second time; one rank's images in place of all.
"""

import math
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

from ebm_lightning import JEM, ClassificationRBM, DataInit
from ebm_lightning.chains import ReplayBuffer
from ebm_lightning.data import Rings, resumable_loader
from ebm_lightning.modules.first_pass import training_batches, undisturbed
from ebm_lightning.starts import ClassGaussians, Start
from ebm_lightning.streams import make_generator
from ebm_lightning.supports import Binary, Box, Euclidean
from tests.conftest import z_score
from tests.helpers import batches, jem, trainer
from tests.runs import final, noisy, same

D, K = 3, 2
COUNTS = (300, 100)


def data(seed: int) -> tuple[Tensor, Tensor]:
    """Correlated classes, apart from each other; the last component never varies."""
    mix = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [0.0, 0.0, 0.0]])
    y = torch.cat([torch.full((n,), c) for c, n in enumerate(COUNTS)])
    x = torch.randn(len(y), D, generator=make_generator(seed, "data")) @ mix.T
    x[y == 1] = x[y == 1].flip(1) * 0.5 + 4
    order = torch.randperm(len(y), generator=make_generator(seed, "order"))
    return x[order], y[order]


def fitted(seed: int, ridge: float = 0.01) -> ClassGaussians:
    x, y = data(seed)
    start = ClassGaussians(ridge)
    start.fit(zip(x.split(7), y.split(7), strict=True), K)
    return start


def test_the_fit_is_that_of_each_class(seed):
    x, y = data(seed)
    start = fitted(seed)
    assert start.counts.tolist() == list(COUNTS)
    for c in range(K):
        own = x[y == c].double()
        covariance = own.T.cov() + 0.01 * torch.eye(D)
        assert torch.allclose(start.means[c].double(), own.mean(0), atol=1e-6)
        assert torch.allclose((start.factors[c] @ start.factors[c].T).double(), covariance, atol=1e-6)
    assert start.factors.dtype == start.means.dtype == torch.float32


def test_large_offsets_cost_no_digits():
    x, y = data(0)
    start = ClassGaussians(0.01)
    start.fit([(x.double() + 1000, y)], K)
    assert torch.allclose(start.factors, fitted(0).factors, atol=1e-5)


def test_draws_have_the_moments_of_their_class(seed):
    start, n = fitted(seed), 20_000
    labels = torch.arange(n) % K
    x = start.sample(n, labels, make_generator(seed, "draw"))
    for c in range(K):
        own = (x[labels == c] - start.means[c]).double()
        covariance = (start.factors[c] @ start.factors[c].T).double()
        for i in range(D):
            assert z_score(own[:, i], 0) < 5
            assert z_score(own[:, i] ** 4, float(3 * covariance[i, i] ** 2)) < 5
            for j in range(i + 1):
                assert z_score(own[:, i] * own[:, j], float(covariance[i, j])) < 5


def test_unlabelled_draws_take_the_classes_as_often_as_the_data(seed):
    start, n = fitted(seed), 10_000
    x = start.sample(n, generator=make_generator(seed, "draw"))
    share = int((x[:, 2] > 2).sum())  # the second class lies at 4
    assert abs(share - n / 4) < 5 * math.sqrt(n * 0.25 * 0.75)


def test_draws_are_never_in_half_precision(seed):
    start = fitted(seed)
    expected = start.sample(50, generator=make_generator(seed))
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert torch.equal(start.sample(50, generator=make_generator(seed)), expected)


def test_images_keep_their_shape():
    x, y = torch.rand(40, 1, 2, 3), torch.arange(40) % 2
    start = ClassGaussians()
    start.fit([(x, y)], 2)
    assert start.sample(5).shape == (5, 1, 2, 3)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: ClassGaussians(-1e-4), "'ridge' should be 0 or positive, got -0.0001"),
        (lambda: ClassGaussians().fit([], 2), "'batches' should hold images to fit ClassGaussians to, got none"),
        (
            lambda: ClassGaussians().fit([(torch.rand(5, 2), torch.tensor([0, 0, 1, 2, 2]))], 3),
            "'batches' should hold at least 2 images of each class for ClassGaussians, got 1 of class 1",
        ),
        (lambda: fitted(0, ridge=0.0), "'ridge' should be larger, got 0.0: the covariance of class 0 is singular"),
        (
            lambda: ReplayBuffer(4, start=fitted(0)).setup(Binary((3,))),
            "'start' should be None on Binary, .* got ClassGaussians",
        ),
    ],
)
def test_bad_arguments(action, message):
    with pytest.raises(ValueError, match=message):
        action()


def test_use_before_it_is_fitted():
    for action in (lambda: ClassGaussians().sample(3), lambda: ReplayBuffer(4, start=ClassGaussians()).setup(BOX)):
        with pytest.raises(RuntimeError, match=r"not fitted yet\. Call 'fit"):
            action()


# Chains that start there.

BOX = Box(-3, 4.5, (D,))


class Marks(Start):
    """Each chain starts at its label; without one at 7, outside the box."""

    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        return torch.full((n, D), 7.0) if labels is None else labels[:, None].float().expand(n, D).clone()


def test_chains_of_a_class_start_and_restart_in_their_class(seed):
    chains = ReplayBuffer(12, 1.0, Marks())
    chains.setup(Box(-1, 5, (D,)), 3, make_generator(seed))
    assert torch.equal(chains.x[:, 0].long(), torch.arange(12) % 3)
    labels = torch.tensor([2, 0, 2, 1])
    chains.x.fill_(4.0)
    x, index = chains.draw(4, labels, make_generator(seed))
    assert torch.equal(x[:, 0].long(), labels)
    chains.restart(index)
    assert torch.equal(chains.x[index, 0].long(), labels)
    assert (chains.x == 4).all(1).sum() == 8


def test_places_outside_the_support_move_to_its_wall(seed):
    chains = ReplayBuffer(12, 1.0, Marks())
    chains.setup(Box(-1, 5, (D,)), None, make_generator(seed))
    assert (chains.x == 5).all()
    assert (chains.draw(3)[0] == 5).all()
    start = fitted(seed)
    chains = ReplayBuffer(500, 0.0, start)
    chains.setup(BOX, None, make_generator(seed))
    drawn = start.sample(500, None, make_generator(seed))
    assert not BOX.contains(drawn).all()
    assert torch.equal(chains.x, BOX.clamp(drawn))
    ReplayBuffer(4, start=start).setup(Euclidean((D,)))  # which has nothing of its own to start from


def test_slots_that_a_saved_run_leaves_free_start_there_too():
    chains = ReplayBuffer(12, 0.0, Marks())
    chains.setup(Box(-1, 5, (D,)), 3, make_generator(0))
    chains.deal([{"x": torch.full((6, D), 4.0), "age": torch.ones(6).long()}], 0, 2)
    assert chains.x[3:, 0].tolist() == [0, 1, 2] * 3
    assert (chains.x[:3] == 4).all()


# The pass over the training data.


def loader(**arguments: Any) -> DataLoader:
    """29 images, whose first component says which they are."""
    x = torch.linspace(-0.9, 0.9, 29)[:, None].repeat(1, 4)
    return DataLoader(TensorDataset(x, torch.arange(29) % 3), 4, **arguments)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(loader().dataset)


class Batches:
    """What is no DataLoader at all."""

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


class Seen(JEM):
    def on_train_batch_start(self, batch: list[Tensor], batch_idx: int) -> None:
        self.order = [*getattr(self, "order", []), batch[0][:, 0].tolist()]
        self.numbers = [torch.rand(1).item(), random.random(), np.random.rand()]


def see(folder: Path, given: Any, start: Start | None, epochs: int = 2) -> Seen:
    L.seed_everything(1, verbose=False)
    module = jem(chains=ReplayBuffer(30, start=start), class_conditional_weight=1.0)
    module.__class__ = Seen
    trainer(folder, max_epochs=epochs).fit(module, given)
    return module


@pytest.mark.parametrize("given", LOADERS.values(), ids=LOADERS)
def test_the_pass_changes_nothing_but_where_chains_start(given, tmp_path):
    start = ClassGaussians()
    torch.manual_seed(0)
    plain = see(tmp_path, given(), None)
    torch.manual_seed(0)
    informed = see(tmp_path, given(), start)
    assert informed.order == plain.order
    assert informed.numbers == plain.numbers
    assert start.counts.sum() == 29, "images that a loader drops are read too"
    assert torch.allclose(start.counts @ start.means[:, 0], X.sum(), atol=1e-5)
    assert informed.class_chains.start is informed.chains.start is start


@pytest.mark.parametrize("combined", [False, True])
def test_of_two_loaders_the_generative_one_is_fitted(combined, tmp_path):
    given = {"clf": batches(48, 8), "gen": batches(24, 8)}
    alone, split = (jem(chains=ReplayBuffer(30, start=ClassGaussians())) for _ in range(2))
    trainer(tmp_path).fit(alone, batches(24, 8))
    trainer(tmp_path).fit(split, CombinedLoader(given, "min_size") if combined else given)
    assert torch.equal(alone.chains.start.means, split.chains.start.means)
    assert split.chains.start.counts.sum() == 24


def test_what_a_sampler_of_the_users_leaves_out_is_not_read(tmp_path):
    generator = torch.Generator().manual_seed(0)
    given = loader(sampler=SubsetRandomSampler(range(20), generator))
    before = generator.get_state()
    t = trainer(tmp_path)
    t.fit_loop._data_source.instance = given
    with undisturbed(torch.device("cpu")):
        seen = torch.cat([x[:, 0] for x, _ in training_batches(t)])
    assert torch.equal(seen, X[:20])
    assert torch.equal(generator.get_state(), before)


def test_random_states_are_as_they_were(seed):
    L.seed_everything(seed + 1, verbose=False)
    expected = torch.rand(1), random.random(), np.random.rand()
    L.seed_everything(seed + 1, verbose=False)
    drawn = []
    for _ in range(2):
        with undisturbed(torch.device("cpu")):
            drawn.append((torch.rand(1), random.random(), np.random.rand()))
        assert torch.initial_seed() == seed + 1
    assert drawn[0] == drawn[1] != expected
    assert (torch.rand(1), random.random(), np.random.rand()) == expected


class Reads(Rings):
    """Rings with noise from the global random state, and a count of who asked for a loader."""

    asked = 0

    def train_dataloader(self) -> DataLoader:
        self.asked += 1
        return resumable_loader(self.train, self.batch_size, self.trainer, collate_fn=self.collate)

    def collate(self, items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        x = torch.stack([x for x, _ in items])
        return self.support.clamp(x + 0.1 * torch.randn(x.shape)), torch.stack([y for _, y in items])


def go(folder: Path, checkpoint: Path | None = None, **settings: Any) -> JEM:
    L.seed_everything(0 if checkpoint is None else 999, verbose=False)
    module = noisy(chains=ReplayBuffer(48, 0.3, ClassGaussians()))
    saver = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    callbacks = [saver] if checkpoint is None else []
    t = trainer(folder, callbacks=callbacks, enable_checkpointing=not checkpoint, max_epochs=3, **settings)
    data = Reads(size=66, batch_size=16)
    t.fit(module, data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    assert data.asked == 2, "one loader for the pass, one for training"
    return module


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_a_run_that_goes_on_fits_the_same_gaussians_and_ends_bit_equal(tmp_path):
    """From each step, under another seed, with images left over by every epoch and noise on all."""
    whole = go(tmp_path)
    for path in sorted(tmp_path.glob("*.ckpt")):
        again = go(tmp_path, path)
        assert not same(final(again), final(whole)), path.name
        assert torch.equal(again.chains.start.factors, whole.chains.start.factors)
        assert torch.equal(again.chains.start.means, whole.chains.start.means)
    assert "start" not in str(torch.load(path, weights_only=True)["ranks"])


def test_it_comes_back_from_a_checkpoint_by_its_constructor(tmp_path):
    module = jem(chains=ReplayBuffer(30, 0.1, ClassGaussians(1e-3)))
    t = trainer(tmp_path)
    t.fit(module, batches())
    t.save_checkpoint(tmp_path / "m.ckpt")
    again = JEM.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    assert isinstance(again.chains.start, ClassGaussians)
    assert again.chains.start.ridge == 1e-3
    assert again.hparams == module.hparams
    trainer(tmp_path, limit_train_batches=0).fit(again, batches())
    assert torch.equal(again.chains.x, module.chains.x)


def test_older_checkpoints_name_the_buffer_by_its_path_of_then():
    old = {"class_path": "ebm_lightning.chains.ReplayBuffer", "init_args": {"size": 30, "reinit_prob": 0.1}}
    chains = jem(chains=old).chains
    assert isinstance(chains, ReplayBuffer)
    assert (chains.size, chains.start) == (30, None)
    assert isinstance(jem(chains={"class_path": "ebm_lightning.chains.DataInit", "init_args": {}}).chains, DataInit)


def test_a_checkpoint_cannot_name_what_a_buffer_holds():
    for path in ("subprocess.Popen", "ebm_lightning.supports.Box", "torch.nn.Linear"):
        inner = {"class_path": path, "init_args": {}}
        with pytest.raises(ValueError, match=r"'chains' should be given: .* cannot be rebuilt .* as a Start"):
            jem(chains={"class_path": "ebm_lightning.chains.ReplayBuffer", "init_args": {"start": inner}})


def test_data_that_cannot_be_fitted_stops_the_run_before_it_starts(tmp_path):
    module = jem(chains=ReplayBuffer(30, start=ClassGaussians()))
    with pytest.raises(ValueError, match="'x' should be in the box"):
        trainer(tmp_path).fit(module, [(torch.full((4, 4), 2.0), torch.zeros(4).long())])
    rbm = ClassificationRBM(4, 2, 3, chains=ReplayBuffer(30, start=ClassGaussians()))
    with pytest.raises(ValueError, match="'start' should be None on Binary"):
        trainer(tmp_path).fit(rbm, [(torch.zeros(6, 4), torch.arange(6) % 3)])
