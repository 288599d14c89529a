import pytest
import torch

from ebm_lightning.data import Digits


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
