"""Dequantization and Gaussian noise.

Mutants that these tests kill: Gaussian noise added before dequantization, clamped instead of reflected, or of another
size.
"""

import torch

from ebm_lightning.data import Dequantized, dequantize
from ebm_lightning.supports import Box
from tests.conftest import z_score

BOX = Box(-1.0, 1.0, (3, 8, 8))


def test_dequantization_keeps_the_level(seed):
    box, levels = Box(-1, 1, (1,)), torch.arange(17.0).repeat(1000, 1)
    x = dequantize(levels, 17, box)
    assert box.contains(x).all()
    assert torch.equal(((x + 1) / 2 * 17).floor().clamp(max=16), levels)
    assert z_score((x + 1) / 2 * 17 - levels, 0.5) < 5


def test_gaussian_noise_is_added_after_dequantization_and_reflected(seed):
    """Far from the walls the variances of both noises add up; at a wall the Gaussian is folded."""
    std, width, n = 0.05, 2 / 256, 400
    levels = torch.full((n, 3, 8, 8), 128, dtype=torch.uint8)
    x, _ = Dequantized(levels, torch.zeros(n), 256, BOX, noise_std=std).__getitems__(list(range(n)))
    centered = x.flatten().double() - width / 2
    variance = std**2 + width**2 / 12
    assert z_score(centered, 0) < 5
    assert z_score(centered**2, variance) < 5
    assert z_score(centered**4, 3 * std**4 + 6 * std**2 * width**2 / 12 + width**4 / 80) < 5
    black, _ = Dequantized(levels * 0, torch.zeros(n), 256, BOX, noise_std=std).__getitems__(list(range(n)))
    BOX.check(black)
    # Folding preserves squares: E (x + 1)^2 is that of u + noise. Clamping would halve the noise.
    assert z_score((black.flatten().double() + 1) ** 2, std**2 + width**2 / 3) < 5
