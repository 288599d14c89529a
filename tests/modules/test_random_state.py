"""Global random states are restored, whatever happens in between."""

import random

import numpy as np
import pytest
import torch

from ebm_lightning.modules.random_state import isolate_rng, seeded_globally


def draws() -> tuple[float, float, float]:
    return float(torch.rand(())), random.random(), float(np.random.rand())


@pytest.mark.parametrize("context", [isolate_rng, lambda: seeded_globally(3)])
@pytest.mark.parametrize("fails", [False, True])
def test_global_states_are_restored_also_after_an_exception(context, fails):
    """Kills: a restoration that an exception skips, as Lightning's does."""
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected = draws()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    try:
        with context():
            draws()
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert draws() == expected


def test_the_seed_is_used():
    with seeded_globally(3):
        first = draws()
    with seeded_globally(3):
        assert draws() == first
