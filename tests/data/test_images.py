"""Image data modules: splits, training batches, evaluation noise and rejected arguments.

Mutants that these tests kill: noise of test images that depends on the batch; a split that is not stratified, depends
on ``size`` or ``batch_size``, or overlaps the test images; "gen" images with Gaussian noise.
"""

from types import SimpleNamespace

import pytest
import torch

from ebm_lightning.data import MNIST, ImageArrays, dequantize, stratified_order
from tests.conftest import z_score
from tests.data.pictures import levels_of, made_up, ready, write_arrays, write_idx


@pytest.fixture
def arrays(tmp_path):
    return write_arrays(tmp_path)


def test_evaluation_images_have_fixed_independent_noise(arrays, seed):
    data, again = ready(ImageArrays(arrays, val_size=20)), ready(ImageArrays(arrays, 7, 20, size=12))
    for a, b in ((data.val, again.val), (data.test, again.test)):
        assert all(torch.equal(a[i][0], b[i][0]) for i in reversed(range(len(a))))
    x = torch.stack([data.test[i][0] for i in range(12)])
    (batch, _), *_ = data.test_dataloader()
    assert torch.equal(batch, x)
    assert torch.equal(levels_of(x), data.test.levels)
    u = ((x + 1) / 2 * 256 - data.test.levels).flatten(1)
    assert z_score(u.flatten(), 0.5) < 5
    assert abs(torch.corrcoef(u) - torch.eye(12)).max() < 5 / u.shape[1] ** 0.5, "independent noise for each image"


def test_evaluation_loaders_do_not_use_the_global_random_state(arrays):
    state = torch.get_rng_state()
    data = ready(ImageArrays(arrays, val_size=20))
    assert len([*data.val_dataloader(), *data.test_dataloader()]) == 2
    assert torch.equal(torch.get_rng_state(), state)


def test_blocks_of_the_order_are_stratified(seed):
    labels = torch.cat([torch.full((n,), label) for label, n in enumerate((600, 300, 99, 1))])
    order = stratified_order(labels, torch.Generator().manual_seed(seed))
    assert torch.equal(order.sort().values, torch.arange(1000))
    frequencies = labels.bincount() / 1000
    for start, n in ((0, 10), (0, 333), (200, 500)):
        counts = labels[order[start : start + n]].bincount(minlength=4)
        assert (counts - n * frequencies).abs().max() < 2.5
    balanced = torch.arange(10).repeat(60)
    assert (balanced[stratified_order(balanced, torch.Generator())[:50]].bincount() == 5).all()


def test_validation_split_depends_on_split_seed_only(arrays):
    data = ready(ImageArrays(arrays, val_size=20))
    held, kept = data.val.levels, data.train.levels
    assert (len(held), len(kept)) == (20, 40)
    everything = torch.cat([held, kept]).flatten(1)
    assert torch.equal(everything.unique(dim=0), made_up(60)[0].flatten(1).unique(dim=0))
    assert torch.equal(data.test.levels, made_up(12, seed=1)[0])
    torch.manual_seed(77)
    assert torch.equal(ready(ImageArrays(arrays, 8, 20, "crop", size=9)).val.levels, held)
    assert not torch.equal(ready(ImageArrays(arrays, val_size=20, split_seed=1)).val.levels, held)


def test_training_subsets_are_nested_and_stratified(arrays):
    few, more = (ready(ImageArrays(arrays, val_size=20, size=n)).train.levels for n in (9, 21))
    assert torch.equal(more[:9], few)
    labels = ready(ImageArrays(arrays, val_size=20, size=21)).train.labels
    assert (labels.bincount() - 21 * made_up(60)[1].bincount() / 60).abs().max() < 2.5


def test_training_batches_are_in_the_box(arrays, seed):
    data = ready(ImageArrays(arrays, 8, 20, "crop-flip", noise_std=0.01))
    for x, y in data.train_dataloader():
        data.support.check(x)
        assert (x.shape, y.dtype) == ((8, 3, 8, 8), torch.long)
    assert len(data.train_dataloader()) == 5
    x, y = data.train[3]
    assert x.shape == (3, 8, 8)
    assert y == data.train.labels[3]


def test_separate_batches_are_plain_images_in_another_order(arrays, seed):
    data = ready(ImageArrays(arrays, 8, 20, "crop-flip", 0.1, separate_batch_size=4))
    seen: list[int] = []
    flat = data.train.levels.flatten(1)
    for batch, _, _ in data.train_dataloader():
        assert {name: len(x) for name, (x, _) in batch.items()} == {"clf": 8, "gen": 4}
        x, y = batch["gen"]
        found = (levels_of(x).flatten(1)[:, None] == flat).all(2)
        assert (found.sum(1) == 1).all(), "without augmentation and noise"
        seen += found.int().argmax(1).tolist()
        assert torch.equal(data.train.labels[found.int().argmax(1)], y)
    assert len(set(seen)) == 20
    orders = [list(loader.sampler) for loader in data.train_dataloader().flattened]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_ranks_partition_the_images(arrays, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    data = ready(ImageArrays(arrays, 4, 20, separate_batch_size=2))
    progress = SimpleNamespace(current=SimpleNamespace(processed=0))
    orders: dict[str, list[list[int]]] = {"clf": [], "gen": []}
    for rank in range(2):
        fit_loop = SimpleNamespace(epoch_progress=progress)
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank, fit_loop=fit_loop)
        for name, loader in data.train_dataloader().iterables.items():
            orders[name].append(list(loader.sampler))
    for a, b in orders.values():
        assert len(a) == len(b) == 20
        assert sorted(a + b) == list(range(40))
    assert orders["clf"] != orders["gen"]


def test_plain_batches_are_dequantized_levels(arrays, seed):
    data = ready(ImageArrays(arrays, 8, 20))
    x, y = data.train.__getitems__([5, 2])
    assert torch.equal(levels_of(x), data.train.levels[[5, 2]])
    assert torch.equal(y, data.train.labels[[5, 2]])
    torch.manual_seed(0)
    a = data.train.__getitems__([5, 2])[0]
    torch.manual_seed(0)
    b = dequantize(data.train.levels[[5, 2]], 256, data.support)
    assert torch.equal(a, b), "a single draw from the global random state"


def test_each_stage_loads_only_its_splits(tmp_path):
    write_idx(tmp_path)
    data = MNIST(tmp_path, val_size=10)
    data.setup("test")
    assert not hasattr(data, "train")
    data = MNIST(tmp_path, val_size=0)
    data.setup("fit")
    assert not hasattr(data, "test")
    assert data.val_dataloader() == []


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("batch_size", 0, "'batch_size' should be at least 1, got 0"),
        ("separate_batch_size", -2, "'separate_batch_size' should be at least 1 or None, got -2"),
        ("size", 0, "'size' should be at least 1 or None, got 0"),
        ("val_size", -1, "'val_size' should be 0 or positive, got -1"),
        ("noise_std", float("nan"), "'noise_std' should be 0 or positive, got nan"),
        ("augment", "turn", "'augment' should be one of none, flip, crop, crop-flip, got 'turn'"),
    ],
)
def test_arguments_out_of_range_are_rejected(argument, value, message):
    with pytest.raises(ValueError, match=message):
        MNIST(**{argument: value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_size": 60}, "'val_size' should be below the 60 training images, got 60"),
        ({"val_size": 20, "size": 41}, "'size' should be at most the 40 training images that are not held out, got 41"),
        ({"val_size": 20, "batch_size": 41}, "'batch_size' should be at most .* got 41 for 40 images"),
        ({"val_size": 20, "batch_size": 4, "separate_batch_size": 50}, "'separate_batch_size' should be .* got 50"),
    ],
)
def test_sizes_above_the_number_of_images_are_rejected(arguments, message, arrays):
    with pytest.raises(ValueError, match=message):
        ready(ImageArrays(arrays, **arguments)).train_dataloader()
