"""Real images: splits, augmentation, noise, and what is refused.

Mutants that these tests kill: padding by zeros, or that repeats the edge; rows and columns that share a shift; a shift
of the batch instead of each image; all images mirrored or none; channels with shifts of their own; noise added before
dequantisation, clamped instead of reflected, or of another size; noise of test images that follows the batch; a split
that is not stratified, follows ``size`` or ``batch_size``, or reaches into the test images; "gen" images with noise.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LightningCLI

from ebm_lightning.data import (
    CIFAR10,
    CIFAR100,
    MNIST,
    SVHN,
    Dequantised,
    FashionMNIST,
    ImageArrays,
    Images,
    MissingImages,
    NotMNIST,
    dequantise,
    mirrored,
    shifted,
    stratified_order,
)
from ebm_lightning.supports import Box
from tests.conftest import z_score
from tests.pictures import made_up, real, write_arrays, write_idx

BOX = Box(-1.0, 1.0, (3, 8, 8))


@pytest.fixture
def arrays(tmp_path):
    return write_arrays(tmp_path)


def ready(data: Images) -> Images:
    data.prepare_data()
    data.setup()
    return data


def levels_of(x: torch.Tensor) -> torch.Tensor:
    return ((x + 1) / 2 * 256).floor().clamp(max=255).to(torch.uint8)


# Augmentation.


@pytest.mark.parametrize(("side", "pad"), [(28, 2), (32, 4)])
@pytest.mark.parametrize("flip", [False, True])
def test_every_crop_of_the_padded_image_is_equally_likely_and_nothing_else_comes(side, pad, flip, seed):
    """Against PyTorch's own reflection: all (2 pad + 1)^2 windows, twice as many with mirrors, for each image alone."""
    image, draws = made_up(1, (3, side, side))[0], 4000
    padded = F.pad(image.float(), (pad,) * 4, mode="reflect").to(torch.uint8)
    windows = padded.unfold(2, side, 1).unfold(3, side, 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    windows = torch.cat([windows, windows.flip(3)]) if flip else windows
    # Random images: a hash by random weights tells all windows apart.
    weights = torch.randn(windows[0].numel(), dtype=torch.double)
    out = shifted(image.expand(draws, -1, -1, -1), flip).flatten(1).double() @ weights
    which = (out[:, None] - windows.flatten(1).double() @ weights).abs()
    assert (which.min(1).values < 1e-6).all()
    counts = which.argmin(1).bincount(minlength=len(windows)).double()
    degrees = len(windows) - 1
    chi2 = float((counts - draws / len(windows)).square().sum() / (draws / len(windows)))
    assert abs(chi2 - degrees) < 5 * (2 * degrees) ** 0.5


def test_half_of_the_images_are_mirrored_and_nothing_else_changes(seed):
    levels, _ = made_up(2000, (3, 4, 4))
    out = mirrored(levels)
    turned = (out == levels.flip(3)).flatten(1).all(1)
    assert ((out == levels).flatten(1).all(1) ^ turned).all()
    assert abs(z_score(turned.double(), 0.5)) < 5


def test_images_that_are_not_square_are_shifted_along_each_side(seed):
    levels = torch.arange(32 * 64).view(1, 1, 32, 64).expand(500, -1, -1, -1)
    out = shifted(levels)
    rows, columns = out[:, 0, 16, 32] // 64 - 16, out[:, 0, 16, 32] % 64 - 32
    assert (rows.min(), rows.max()) == (-4, 4)
    assert (columns.min(), columns.max()) == (-8, 8)


# Noise.


def test_gaussian_noise_comes_after_dequantisation_and_is_reflected(seed):
    """Far from walls its variance adds to that of uniform noise; at a wall it is a folded Gaussian's."""
    std, width, n = 0.05, 2 / 256, 400
    levels = torch.full((n, 3, 8, 8), 128, dtype=torch.uint8)
    x, _ = Dequantised(levels, torch.zeros(n), 256, BOX, noise_std=std).__getitems__(list(range(n)))
    centred = x.flatten().double() - width / 2
    variance = std**2 + width**2 / 12
    assert z_score(centred, 0) < 5
    assert z_score(centred**2, variance) < 5
    assert z_score(centred**4, 3 * std**4 + 6 * std**2 * width**2 / 12 + width**4 / 80) < 5
    black, _ = Dequantised(levels * 0, torch.zeros(n), 256, BOX, noise_std=std).__getitems__(list(range(n)))
    BOX.check(black)
    # Folding keeps squares: E (x + 1)^2 is that of u + noise, where clamping would halve the noise.
    assert z_score((black.flatten().double() + 1) ** 2, std**2 + width**2 / 3) < 5


def test_evaluated_images_have_noise_of_their_own_that_stays(arrays, seed):
    data, again = ready(ImageArrays(arrays, val_size=20)), ready(ImageArrays(arrays, 7, 20, size=12))
    for a, b in ((data.val, again.val), (data.test, again.test)):
        assert all(torch.equal(a[i][0], b[i][0]) for i in reversed(range(len(a))))
    x = torch.stack([data.test[i][0] for i in range(12)])
    (batch, _), *_ = data.test_dataloader()
    assert torch.equal(batch, x)
    assert torch.equal(levels_of(x), data.test.levels)
    u = ((x + 1) / 2 * 256 - data.test.levels).flatten(1)
    assert z_score(u.flatten(), 0.5) < 5
    assert abs(torch.corrcoef(u) - torch.eye(12)).max() < 5 / u.shape[1] ** 0.5, "no two images share it"


def test_neither_loading_nor_evaluating_touches_the_global_random_state(arrays):
    state = torch.get_rng_state()
    data = ready(ImageArrays(arrays, val_size=20))
    assert len([*data.val_dataloader(), *data.test_dataloader()]) == 2
    assert torch.equal(torch.get_rng_state(), state)


# The split.


def test_a_stretch_of_the_order_holds_each_class_in_its_share(seed):
    labels = torch.cat([torch.full((n,), label) for label, n in enumerate((600, 300, 99, 1))])
    order = stratified_order(labels, torch.Generator().manual_seed(seed))
    assert torch.equal(order.sort().values, torch.arange(1000))
    shares = labels.bincount() / 1000
    for start, n in ((0, 10), (0, 333), (200, 500)):
        counts = labels[order[start : start + n]].bincount(minlength=4)
        assert (counts - n * shares).abs().max() < 2.5
    balanced = torch.arange(10).repeat(60)
    assert (balanced[stratified_order(balanced, torch.Generator())[:50]].bincount() == 5).all()


def test_validation_images_are_held_out_and_the_same_whatever_else_changes(arrays):
    data = ready(ImageArrays(arrays, val_size=20))
    held, kept = data.val.levels, data.train.levels
    assert (len(held), len(kept)) == (20, 40)
    everything = torch.cat([held, kept]).flatten(1)
    assert torch.equal(everything.unique(dim=0), made_up(60)[0].flatten(1).unique(dim=0))
    assert torch.equal(data.test.levels, made_up(12, seed=1)[0])
    torch.manual_seed(77)
    assert torch.equal(ready(ImageArrays(arrays, 8, 20, "crop", size=9)).val.levels, held)
    assert not torch.equal(ready(ImageArrays(arrays, val_size=20, split_seed=1)).val.levels, held)


def test_size_takes_some_of_the_training_images_and_more_of_them_hold_the_fewer(arrays):
    few, more = (ready(ImageArrays(arrays, val_size=20, size=n)).train.levels for n in (9, 21))
    assert torch.equal(more[:9], few)
    labels = ready(ImageArrays(arrays, val_size=20, size=21)).train.labels
    assert (labels.bincount() - 21 * made_up(60)[1].bincount() / 60).abs().max() < 2.5


# Training batches.


def test_training_batches_are_augmented_images_with_their_labels(arrays, seed):
    data = ready(ImageArrays(arrays, 8, 20, "crop-flip", noise_std=0.01))
    originals = data.train.levels.float().mean((2, 3))
    for x, y in data.train_dataloader():
        data.support.check(x)
        assert (x.shape, y.dtype) == ((8, 3, 8, 8), torch.long)
    assert len(data.train_dataloader()) == 5
    x, y = data.train[3]
    assert x.shape == (3, 8, 8)
    assert y == data.train.labels[3]
    assert originals.shape == (40, 3)


def test_separate_batches_are_plain_images_in_an_order_of_their_own(arrays, seed):
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


def test_ranks_share_the_images_between_them(arrays, monkeypatch):
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


def test_plain_batches_are_dequantised_levels(arrays, seed):
    data = ready(ImageArrays(arrays, 8, 20))
    x, y = data.train.__getitems__([5, 2])
    assert torch.equal(levels_of(x), data.train.levels[[5, 2]])
    assert torch.equal(y, data.train.labels[[5, 2]])
    torch.manual_seed(0)
    a = data.train.__getitems__([5, 2])[0]
    torch.manual_seed(0)
    assert torch.equal(a, dequantise(data.train.levels[[5, 2]], 256, data.support)), "one draw of the global state"


# Sets.


@pytest.mark.parametrize("data", [MNIST, FashionMNIST, CIFAR10, CIFAR100, SVHN, NotMNIST])
def test_sets_say_what_they_are(data):
    assert data.support == Box(-1, 1, data.support.shape)
    assert len(set(data.class_names)) == len(data.class_names) == data.num_classes
    assert data.num_levels == 256
    assert list(data.class_names) == sorted(data.class_names) or data is FashionMNIST


@pytest.mark.filterwarnings("ignore")  # LightningCLI 2.6 uses what jsonargparse 4.53 deprecates
def test_lightning_cli_builds_each_of_them(arrays):
    def built(*arguments: str) -> Images:
        model = "--model={class_path: ConditionalEBM, init_args: {classifier: torch.nn.Identity, num_classes: 2}}"
        return LightningCLI(run=False, args=[model, *arguments], save_config_callback=None).datamodule

    data = built("--data=CIFAR10", "--data.augment=crop-flip", "--data.separate_batch_size=64", "--data.root=elsewhere")
    assert isinstance(data, CIFAR10)
    assert (data.augment, data.separate_batch_size, data.root) == ("crop-flip", 64, Path("elsewhere"))
    data = built("--data=ImageArrays", f"--data.path={arrays}", "--data.size=9")
    assert (data.support, data.size) == (BOX, 9)


def test_grey_arrays_get_their_channel(tmp_path):
    images = made_up(12, (9, 7))[0].numpy()
    labels = np.arange(12, dtype=np.uint8) % 4
    np.savez(tmp_path / "grey.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    data = ready(ImageArrays(tmp_path / "grey.npz", 4, 4))
    assert data.support.shape == (1, 9, 7)
    assert (data.num_classes, data.class_names) == (4, ("0", "1", "2", "3"))
    assert torch.equal(data.test.levels[:, 0], torch.from_numpy(images))


def test_colour_arrays_put_channels_first(arrays):
    data = ready(ImageArrays(arrays, val_size=20))
    assert torch.equal(data.test.levels, made_up(12, seed=1)[0])
    assert data.test.levels.is_contiguous()


def test_each_stage_loads_what_it_needs(tmp_path):
    write_idx(tmp_path)
    data = MNIST(tmp_path, val_size=10)
    data.setup("test")
    assert not hasattr(data, "train")
    data = MNIST(tmp_path, val_size=0)
    data.setup("fit")
    assert not hasattr(data, "test")
    assert data.val_dataloader() == []


# Refusals.


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("batch_size", 0, "'batch_size' should be at least 1, got 0"),
        ("separate_batch_size", -2, "'separate_batch_size' should be at least 1, got -2"),
        ("size", 0, "'size' should be at least 1, got 0"),
        ("val_size", -1, "'val_size' should be at least 0, got -1"),
        ("noise_std", float("nan"), "'noise_std' should be at least 0, got nan"),
        ("augment", "turn", "'augment' should be among none, flip, crop, crop-flip, got 'turn'"),
    ],
)
def test_arguments_out_of_range_are_refused(argument, value, message):
    with pytest.raises(ValueError, match=message):
        MNIST(**{argument: value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_size": 60}, "'val_size' should leave some of the 60 training images, got 60"),
        ({"val_size": 20, "size": 41}, "'size' should be at most the 40 training images that are not held out, got 41"),
        ({"val_size": 20, "batch_size": 41}, "'batch_size' should be at most .* got 41 for 40 images"),
        ({"val_size": 20, "batch_size": 4, "separate_batch_size": 50}, "'separate_batch_size' should be .* got 50"),
    ],
)
def test_sizes_beyond_the_images_are_refused(arguments, message, arrays):
    with pytest.raises(ValueError, match=message):
        ready(ImageArrays(arrays, **arguments)).train_dataloader()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.zeros((4, 2, 2), dtype=np.float32)}, "x_train is float32"),
        ({"y_train": np.zeros(3, dtype=np.int64)}, r"y_train has shape \(3,\)"),
        ({"y_train": np.array([0, 1, -1, 0])}, "y_train is int64; expected integers from 0"),
        ({"y_train": np.array([0.0, 1, 1, 0])}, "y_train is float64"),
    ],
)
def test_arrays_of_another_kind_are_refused(change, message, tmp_path):
    good = {"x_train": np.zeros((4, 2, 2), dtype=np.uint8), "y_train": np.arange(4) % 2}
    np.savez(tmp_path / "bad.npz", **(good | change))
    with pytest.raises(MissingImages, match=message):
        ImageArrays(tmp_path / "bad.npz")


def test_an_absent_or_damaged_file_of_arrays_is_refused(tmp_path):
    with pytest.raises(MissingImages, match=r"'path' should be an .npz file .* got 'nowhere.npz'"):
        ImageArrays("nowhere.npz")
    (tmp_path / "half.npz").write_bytes(write_arrays(tmp_path).read_bytes()[:999])
    with pytest.raises(MissingImages, match=r"'root' should hold half.npz, got .* with damaged files"):
        ImageArrays(tmp_path / "half.npz")


# The real ones, where they are.


@pytest.mark.parametrize("data", [MNIST, FashionMNIST])
def test_real_grey_images_load_whole(data):
    data = data(real(f"{data.__name__}/raw"), val_size=5000, download=False)
    ready(data)
    assert [len(part) for part in (data.train, data.val, data.test)] == [55_000, 5000, 10_000]
    assert data.train.levels.shape == (55_000, 1, 28, 28)
    shares = data.train.labels.bincount() / 55_000
    assert (data.val.labels.bincount() - 5000 * shares).abs().max() < 2


def test_real_colour_images_load_whole():
    name = "cifar10-subset/cifar10_subset_10000_2000.npz"
    data = ready(ImageArrays(real(name) / name, val_size=1000))
    assert data.support == CIFAR10.support
    assert data.num_classes == 10
    assert [len(part) for part in (data.train, data.val, data.test)] == [9000, 1000, 2000]


def test_letters_are_there_to_test_with():
    data = NotMNIST(real("notMNIST/raw"))
    data.setup("test")
    x, y = next(iter(data.test_dataloader()))
    data.support.check(x)
    assert y.max() < 10
