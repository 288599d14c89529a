"""Random crops, flips and affine maps of whole batches of integer images."""

import torch
import torch.nn.functional as F
from torch import Tensor


def shifted(levels: Tensor, flip: bool = False) -> Tensor:
    """Random crop of each image after reflection padding, and optionally a random horizontal flip.

    JEM augments its training images in the same way. The padding is 4 pixels for every 32 pixels of a side, and 2
    pixels below that: MNIST's margins are narrow, and more padding would reflect the ends of strokes into the image as
    dots. Uses the global random state.

    Arguments:
        levels: Shape (N, C, H, W), any dtype.
        flip: Also flip each image horizontally with probability 1/2.
    """
    n, channels, height, width = levels.shape
    rows, columns = _window(n, height), _window(n, width)
    if flip:
        columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
    # A single gather by pixel index is several times as fast as padding and slicing image by image.
    pixel = (rows[:, :, None] * width + columns[:, None, :]).view(n, 1, -1)
    return levels.flatten(2).gather(2, pixel.expand(-1, channels, -1)).view_as(levels)


def mirrored(levels: Tensor) -> Tensor:
    """Flip each image of shape (N, C, H, W) horizontally with probability 1/2. Uses the global random state."""
    return torch.where(torch.rand(len(levels), 1, 1, 1) < 0.5, levels.flip(3), levels)


def affine(levels: Tensor) -> Tensor:
    """A random affine map of each image, with black outside: rotations, scalings and shears, and shifts.

    For digits, whose class such a map does not change: up to 0.2 radians, 12%, a shear of 0.15, and shifts by an eighth
    of the width and a sixteenth of the height. Bilinear interpolation, so the result is not integer. Uses the global
    random state.

    Arguments:
        levels: Shape (N, C, H, W), with 0 for black.
    """
    angle, shear, right, down = (torch.rand(4, len(levels)) * 2 - 1) * torch.tensor([[0.2], [0.15], [0.25], [0.125]])
    wide, high = 1 + (torch.rand(2, len(levels)) * 2 - 1) * 0.12
    cos, sin = angle.cos(), angle.sin()
    rows = [torch.stack(row, 1) for row in ((cos * wide, shear - sin * high, right), (sin * wide, cos * high, down))]
    grid = F.affine_grid(torch.stack(rows, 1), list(levels.shape), align_corners=False)
    moved = F.grid_sample(levels.float(), grid, align_corners=False, padding_mode="zeros")
    return moved.clamp(min=0).minimum(levels.amax().float())


def _window(n: int, side: int) -> Tensor:
    """The source pixels along one side for ``n`` random windows of the padded image, shape (n, side)."""
    pad = max(2, side // 32 * 4)
    pixel = (torch.arange(side) + torch.randint(-pad, pad + 1, (n, 1))).abs()
    return side - 1 - (side - 1 - pixel).abs()
