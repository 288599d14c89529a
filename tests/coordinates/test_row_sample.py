"""The random sample of rows: uniform, in one pass and in bounded memory.

Mutants that these tests kill: the first rows, or the last; a probability that depends on the batch; a sample that
keeps all rows before it selects; keys from the global random state.
"""

import math

import pytest
import torch

from ebm_lightning.coordinates import Quantiles, row_sample as module
from ebm_lightning.coordinates.row_sample import row_sample
from ebm_lightning.supports import Euclidean

N, KEPT = 20_000, 1000


@pytest.fixture
def small(monkeypatch) -> list[int]:
    """A capacity of 1000 rows. Records how many rows are in memory."""
    held: list[int] = []
    smallest = module._smallest

    def recorded(keyed):
        held.append(len(keyed))
        return smallest(keyed)

    monkeypatch.setattr(module, "ROWS", KEPT)
    monkeypatch.setattr(module, "_smallest", recorded)
    return held


def test_each_row_has_the_same_probability(small):
    """Moments and tenths of the row numbers, in standard errors of draws without replacement."""
    numbers = row_sample(torch.arange(N)[:, None].split(333))[:, 0]
    assert len(numbers) == len(numbers.unique()) == KEPT
    left = math.sqrt(1 - KEPT / N)
    assert abs(numbers.mean() - (N - 1) / 2) < 5 * left * N / math.sqrt(12 * KEPT)
    tenths = (numbers / (N / 10)).long().bincount(minlength=10)
    assert (tenths - KEPT / 10).abs().max() < 5 * left * math.sqrt(KEPT * 0.09)


def test_the_sample_does_not_depend_on_batches_or_on_the_global_seed(small):
    x = torch.arange(N)[:, None]
    torch.manual_seed(1)
    one = row_sample(x.split(50)).sort(0).values
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(row_sample(x.split(7001)).sort(0).values, one)
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_is_bounded_and_batches_are_read_once(small):
    assert len(row_sample(torch.zeros(100, 3) for _ in range(100))) == KEPT
    assert max(small) == KEPT + 100


def test_wide_rows_are_limited_by_their_numbers(monkeypatch):
    monkeypatch.setattr(module, "NUMBERS", 640)
    assert row_sample(torch.zeros(30, 4, 4) for _ in range(9)).shape == (40, 16)


def test_small_data_are_kept_in_order():
    x = torch.rand(50, 2, 3)
    rows = row_sample(x.split(8))
    assert rows.dtype == torch.float64
    assert torch.equal(rows, x.flatten(1).double())


def test_quantiles_of_much_data_are_fitted_to_a_sample(small):
    x = torch.arange(N, dtype=torch.float64)[:, None] / N
    coordinates = Quantiles(Euclidean((1,)), cells=8).fit(part for part in x.split(500))
    assert max(small) <= KEPT + 500
    assert (coordinates.knots[0, 1:-1] - torch.arange(1, 8) / 8).abs().max() < 5 * 0.5 / math.sqrt(KEPT)
