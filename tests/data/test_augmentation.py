"""Random crops and flips.

Mutants that these tests kill: padding with zeros or by repeating the edge; the same shift for rows and columns; one
shift for the whole batch; all images flipped, or none; separate shifts for each channel.
"""

import pytest
import torch
import torch.nn.functional as F

from ebm_lightning.data import mirrored, shifted
from tests.conftest import z_score
from tests.data.pictures import made_up


@pytest.mark.parametrize(("side", "pad"), [(28, 2), (32, 4)])
@pytest.mark.parametrize("flip", [False, True])
def test_crops_are_uniform_over_windows_of_the_padded_image(side, pad, flip, seed):
    """All (2 pad + 1)^2 windows of PyTorch's reflection padding are equally likely, and so are their mirror images."""
    image, draws = made_up(1, (3, side, side))[0], 4000
    padded = F.pad(image.float(), (pad,) * 4, mode="reflect").to(torch.uint8)
    windows = padded.unfold(2, side, 1).unfold(3, side, 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    windows = torch.cat([windows, windows.flip(3)]) if flip else windows
    # Identify a window by a random projection of its pixels.
    weights = torch.randn(windows[0].numel(), dtype=torch.double)
    out = shifted(image.expand(draws, -1, -1, -1), flip).flatten(1).double() @ weights
    which = (out[:, None] - windows.flatten(1).double() @ weights).abs()
    assert (which.min(1).values < 1e-6).all()
    counts = which.argmin(1).bincount(minlength=len(windows)).double()
    degrees = len(windows) - 1
    chi2 = float((counts - draws / len(windows)).square().sum() / (draws / len(windows)))
    assert abs(chi2 - degrees) < 5 * (2 * degrees) ** 0.5


def test_half_of_the_images_are_mirrored(seed):
    levels, _ = made_up(2000, (3, 4, 4))
    out = mirrored(levels)
    turned = (out == levels.flip(3)).flatten(1).all(1)
    assert ((out == levels).flatten(1).all(1) ^ turned).all()
    assert abs(z_score(turned.double(), 0.5)) < 5


def test_crops_of_rectangular_images_shift_each_side(seed):
    levels = torch.arange(32 * 64).view(1, 1, 32, 64).expand(500, -1, -1, -1)
    out = shifted(levels)
    rows, columns = out[:, 0, 16, 32] // 64 - 16, out[:, 0, 16, 32] % 64 - 32
    assert (rows.min(), rows.max()) == (-4, 4)
    assert (columns.min(), columns.max()) == (-8, 8)
