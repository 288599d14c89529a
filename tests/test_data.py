import pytest
import torch

from ebm_lightning.data import Digits, Rings, dequantise
from ebm_lightning.energies import Energy
from ebm_lightning.partition import quadrature
from ebm_lightning.supports import Box
from tests.conftest import z_score


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = Digits(64)
    data.setup()
    return data


def test_dequantisation_keeps_the_level(seed):
    box, levels = Box(-1, 1, (1,)), torch.arange(17.0).repeat(1000, 1)
    x = dequantise(levels, 17, box)
    assert box.contains(x).all()
    assert torch.equal(((x + 1) / 2 * 17).floor().clamp(max=16), levels)
    assert z_score((x + 1) / 2 * 17 - levels, 0.5) < 5


def test_digits_are_split_without_overlap(digits):
    sizes = [len(s) for s in (digits.train, digits.val, digits.test)]
    assert sizes == [1077, 270, 450]
    train = {tuple(x.flatten().tolist()) for x in digits.train.levels}
    assert all(len(s.tensors[1].unique()) == 10 for s in (digits.val, digits.test))
    levels = ((digits.test.tensors[0] + 1) / 2 * 17).floor()
    assert not train & {tuple(x.flatten().tolist()) for x in levels}


def test_training_noise_is_fresh_and_test_noise_is_not(digits):
    again = Digits(64)
    again.setup()
    assert torch.equal(digits.test.tensors[0], again.test.tensors[0])
    a, b = (next(iter(torch.utils.data.DataLoader(digits.train, 8, collate_fn=lambda b: b)))[0] for _ in range(2))
    assert not torch.equal(a, b)
    assert torch.equal(((a + 1) / 2 * 17).floor(), ((b + 1) / 2 * 17).floor())


def test_loaders_give_images_in_the_box_and_whole_labels(digits):
    for loader in (digits.train_dataloader(), digits.val_dataloader(), digits.test_dataloader()):
        x, y = next(iter(loader))
        digits.support.check(x)
        assert y.dtype == torch.long
    x, y = digits.train[3]
    assert x.shape == (1, 8, 8)


def test_rings_know_their_density(seed):
    rings = Rings()
    negative: Energy = lambda x: -rings.log_prob(x)  # noqa: E731
    assert quadrature(negative, rings.support) == pytest.approx(0, abs=1e-4)
    x, y = rings.sample(50_000, torch.Generator().manual_seed(seed))
    for ring, radius in enumerate(rings.radii):
        assert z_score(x[y == ring].square().sum(1), radius**2 + 2 * rings.noise**2) < 5
    # E[p(x)] is the integral of p^2, by quadrature
    squared = quadrature(lambda x: -2 * rings.log_prob(x), rings.support)
    assert z_score(rings.log_prob(x).exp(), torch.tensor(squared).exp().item()) < 5
