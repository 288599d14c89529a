"""Changes of the global random states of PyTorch, Python and NumPy that end with a context."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch.utilities.seed as lightning_seed
import numpy as np
import torch


@contextmanager
def isolate_rng() -> Iterator[None]:
    """Restore the global random states on exit. Unlike Lightning's function of that name also after an exception."""
    states = lightning_seed.isolate_rng()
    states.__enter__()
    try:
        yield
    finally:
        states.__exit__(None, None, None)


@contextmanager
def seeded_globally(seed: int) -> Iterator[None]:
    """Seed the global random states, and restore the previous ones on exit."""
    with isolate_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        yield
