"""A uniform random sample of the rows of a data set of any size, in one pass."""

from collections.abc import Iterable

import torch
from torch import Tensor

ROWS, NUMBERS = 20_000, 50_000_000  # largest number of rows and of numbers that are kept


def row_sample(batches: Iterable[Tensor]) -> Tensor:
    """At most 20 000 rows (and 5e7 numbers), each row with the same probability. Shape (M, D), float64.

    Every row gets a random key from a fixed seed, and the rows with the smallest keys are kept.

    Arguments:
        batches: Shape (n, *shape).
    """
    generator = torch.Generator().manual_seed(0)
    kept = torch.empty(0, 0)
    for x in batches:
        rows = x.flatten(1).double().cpu()
        keyed = torch.cat([torch.rand(len(rows), 1, generator=generator, dtype=torch.float64), rows], 1)
        kept = _smallest(torch.cat([kept, keyed]) if len(kept) else keyed)
    return kept[:, 1:]


def _smallest(keyed: Tensor) -> Tensor:
    capacity = min(ROWS, NUMBERS // (keyed.shape[1] - 1))
    return keyed if len(keyed) <= capacity else keyed[keyed[:, 0].topk(capacity, largest=False).indices]
