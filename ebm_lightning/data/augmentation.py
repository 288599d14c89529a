"""Random crops and horizontal flips of whole batches of integer images."""

import torch
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


def _window(n: int, side: int) -> Tensor:
    """The source pixels along one side for ``n`` random windows of the padded image, shape (n, side)."""
    pad = max(2, side // 32 * 4)
    pixel = (torch.arange(side) + torch.randint(-pad, pad + 1, (n, 1))).abs()
    return side - 1 - (side - 1 - pixel).abs()
