"""Random crops and flips.

Mutants that these tests kill: padding with zeros or by repeating the edge; the same shift for rows and columns; one
shift for the whole batch; all images flipped, or none; separate shifts for each channel. Of affine maps: one map for
the whole batch; angles, scales, shears or shifts beyond what is documented, or on one side only; shifts of rows and
columns exchanged; edges that are repeated; a map about a corner.
"""

import pytest
import torch
import torch.nn.functional as F

from ebm_lightning.data import mirrored, shifted
from ebm_lightning.data.augmentation import affine
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


# Affine maps. A plane of gradients reveals the map: where its values come from.

HEIGHT, WIDTH = 16, 32


def maps(n: int) -> torch.Tensor:
    """The matrices (n, 2, 3) of ``affine``, from output to input in units of half a side, read off two ramps."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    images = torch.stack([columns, rows, torch.ones(HEIGHT, WIDTH)])[None] + 0.0
    out = affine(images.expand(n, -1, -1, -1))
    middle = out[:, :, 6:10, 12:20]  # never reaches the edges
    assert torch.allclose(middle[:, 2], torch.ones(()), atol=1e-5)
    y, x = (rows / HEIGHT * 2 - 1)[6:10, 12:20], (columns / WIDTH * 2 - 1)[6:10, 12:20]
    design = torch.stack([x, y, torch.ones_like(x)], -1).flatten(0, 1)
    source = torch.stack([middle[:, 0] / WIDTH * 2 - 1, middle[:, 1] / HEIGHT * 2 - 1], 1).flatten(2)
    fitted = torch.linalg.lstsq(design, source.permute(2, 0, 1).flatten(1)).solution.T.view(n, 2, 3)
    torch.testing.assert_close(source, fitted @ design.T, atol=1e-4, rtol=0)
    return fitted


def test_maps_are_within_the_documented_bounds_and_reach_them(seed):
    a = maps(4000).double()
    angle = torch.atan2(a[:, 1, 0], a[:, 0, 0])
    wide = a[:, 0, 0] / angle.cos()
    high = a[:, 1, 1] / angle.cos()
    shear = a[:, 0, 1] + angle.sin() * high
    limits = {"angle": (angle, 0, 0.2), "wide": (wide, 1, 0.12), "high": (high, 1, 0.12), "shear": (shear, 0, 0.15)}
    limits |= {"columns": (a[:, 0, 2] * WIDTH / 2, 0, WIDTH / 8), "rows": (a[:, 1, 2] * HEIGHT / 2, 0, HEIGHT / 16)}
    for name, (values, center, bound) in limits.items():
        from_center = (values - center) / bound
        assert from_center.abs().max() < 1.001, name
        assert (from_center.min(), from_center.max()) == (pytest.approx(-1, abs=0.02), pytest.approx(1, abs=0.02)), name
        assert z_score(from_center, 0.0) < 5, name
        assert z_score(from_center.square(), 1 / 3) < 5, name
    assert torch.corrcoef(torch.stack([v for v, _, _ in limits.values()])).fill_diagonal_(0).abs().max() < 0.09


def test_without_a_map_images_stay(monkeypatch):
    """All random numbers 1/2 are the identity."""
    levels, _ = made_up(20, (3, 8, 8))
    monkeypatch.setattr(torch, "rand", lambda *size: torch.full(size, 0.5))
    torch.testing.assert_close(affine(levels), levels.float(), atol=1e-4, rtol=0)


def test_mapped_images_are_black_outside_and_never_brighter(seed):
    levels = torch.full((500, 1, 8, 8), 16.0)
    out = affine(levels)
    assert out.shape == levels.shape
    assert out.min() == 0
    assert out.max() <= 16
    assert ((out == 0).flatten(1).any(1)).float().mean() > 0.1
    assert not torch.equal(out[0], out[1])


def test_the_global_random_state_determines_the_map(seed):
    levels, _ = made_up(20, (1, 8, 8))
    outs = []
    for s in (seed, seed, seed + 1):
        torch.manual_seed(s)
        outs.append(affine(levels))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
