"""Digits: splits, noise, augmentation and separate batches for p(x).

Mutants that these tests kill: images that are in two splits; fixed noise in training; augmented images for p(x), or for
validation; equal orders of the two parts; an order, or maps, that do not resume.
"""

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from ebm_lightning.data import Digits
from ebm_lightning.networks import MLP
from tests.helpers import jem, trainer


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = Digits(64)
    data.setup()
    return data


def test_digits_are_split_without_overlap(digits):
    sizes = [len(s) for s in (digits.train, digits.val, digits.test)]
    assert sizes == [1077, 270, 450]
    train = {tuple(x.flatten().tolist()) for x in digits.train.levels}
    assert all(len(s.tensors[1].unique()) == 10 for s in (digits.val, digits.test))
    levels = ((digits.test.tensors[0] + 1) / 2 * 17).floor()
    assert not train & {tuple(x.flatten().tolist()) for x in levels}


def test_training_noise_is_random_and_test_noise_is_fixed(digits):
    again = Digits(64)
    again.setup()
    assert torch.equal(digits.test.tensors[0], again.test.tensors[0])
    a, b = (next(iter(torch.utils.data.DataLoader(digits.train, 8, collate_fn=lambda b: b)))[0] for _ in range(2))
    assert not torch.equal(a, b)
    assert torch.equal(((a + 1) / 2 * 17).floor(), ((b + 1) / 2 * 17).floor())


def test_loaders_yield_images_in_the_box_and_integer_labels(digits):
    for loader in (digits.train_dataloader(), digits.val_dataloader(), digits.test_dataloader()):
        x, y = next(iter(loader))
        digits.support.check(x)
        assert y.dtype == torch.long
    x, y = digits.train[3]
    assert x.shape == (1, 8, 8)


def levels(x: Tensor) -> Tensor:
    return ((x + 1) / 2 * 17).floor()


def in_training_set(x: Tensor, data: Digits) -> Tensor:
    """Whether each image, without its noise, is a training image."""
    known = {tuple(row) for row in data.train.levels.flatten(1).tolist()}
    return torch.tensor([tuple(row) in known for row in levels(x).flatten(1).tolist()])


def set_up(**arguments) -> Digits:
    data = Digits(**arguments)
    data.setup()
    return data


def test_only_the_first_part_of_a_batch_is_augmented():
    data = set_up(batch_size=32, augment="affine", separate_batch_size=48)
    batch = next(iter(data.train_dataloader()))[0]
    (x, y), (x_gen, y_gen) = batch["clf"], batch["gen"]
    assert (len(x), len(y), len(x_gen), len(y_gen)) == (32, 32, 48, 48)
    assert in_training_set(x_gen, data).all()
    assert in_training_set(x, data).float().mean() < 0.1
    for part in (x, x_gen):
        data.support.check(part)
    for split in (data.val, data.test):
        again = set_up()
        assert torch.equal(split.tensors[0], (again.val if split is data.val else again.test).tensors[0])


def test_labels_belong_to_the_images_of_both_parts():
    data = set_up(batch_size=64, separate_batch_size=64)
    known = {tuple(x.flatten().tolist()): int(y) for x, y in zip(data.train.levels, data.train.labels, strict=True)}
    batch = next(iter(data.train_dataloader()))[0]
    for x, y in batch.values():
        assert [known[tuple(row)] for row in levels(x).flatten(1).tolist()] == y.tolist()
    (x, _), (x_gen, _) = batch.values()
    assert not torch.equal(levels(x), levels(x_gen)), "an order of its own"


def test_the_default_has_one_part_without_augmentation():
    data = set_up()
    x, _ = next(iter(data.train_dataloader()))
    assert in_training_set(x, data).all()
    assert len(data.train_dataloader()) == 1077 // 64


def test_bad_arguments():
    with pytest.raises(ValueError, match="'augment' should be 'none' or 'affine', got 'flip'"):
        Digits(augment="flip")
    with pytest.raises(ValueError, match="'separate_batch_size' should be at least 1 or None, got 0"):
        Digits(separate_batch_size=0)


class Recording(L.Callback):
    def __init__(self) -> None:
        self.batches: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch, batch_idx: int) -> None:
        self.batches[trainer.global_step] = batch


def train(folder: Path, checkpoint: Path | None = None, seed: int = 0) -> Recording:
    module = jem(MLP(64, 10, ()), num_classes=10, support=Digits.support)
    L.seed_everything(seed, verbose=False)
    saver = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    callbacks = [recording := Recording(), *([] if checkpoint else [saver])]
    data = Digits(400, "affine", 300)
    t = trainer(folder, callbacks=callbacks, enable_checkpointing=not checkpoint, max_epochs=3, limit_val_batches=0)
    module.chains.size = 400
    t.fit(module, data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return recording


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_batches_resume_within_and_between_epochs(tmp_path):
    """Images, maps and noise of both parts, under another seed. An epoch has 1077 // 400 batches."""
    whole = train(tmp_path)
    assert sorted(whole.batches) == list(range(6))
    for step in (1, 2):
        again = train(tmp_path, tmp_path / f"step={step}.ckpt", seed=9)
        assert sorted(again.batches) == list(range(step, 6))
        for i, batch in again.batches.items():
            for part in ("clf", "gen"):
                assert all(map(torch.equal, batch[part], whole.batches[i][part])), (step, i, part)
    other = train(tmp_path / "other", seed=1)
    assert not torch.equal(other.batches[0]["clf"][1], whole.batches[0]["clf"][1])
