"""Random crops and flips of whole batches of integer images."""

import torch
from torch import Tensor


def shifted(levels: Tensor, flip: bool = False) -> Tensor:
    """Each image padded by reflection and cropped at random, as JEM's training images are, and maybe mirrored.

    The padding is 4 pixels for every 32 of a side, and 2 below: where MNIST's margins are narrow, more of it would
    mirror ends of strokes into the image as dots. Drawn from the global random state.

    Arguments:
        levels: Shape (N, C, H, W), of any dtype.
        flip: Mirror half of the images left to right too.
    """
    n, channels, height, width = levels.shape
    rows, columns = _window(n, height), _window(n, width)
    if flip:
        columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
    # One gather by place in the image: padding, and slices of images one by one, would take several times as long.
    place = (rows[:, :, None] * width + columns[:, None, :]).view(n, 1, -1)
    return levels.flatten(2).gather(2, place.expand(-1, channels, -1)).view_as(levels)


def mirrored(levels: Tensor) -> Tensor:
    """Half of the images, drawn from the global random state, left to right; shape (N, C, H, W)."""
    return torch.where(torch.rand(len(levels), 1, 1, 1) < 0.5, levels.flip(3), levels)


def _window(n: int, side: int) -> Tensor:
    """For each of ``n`` windows of the padded side, which places of the side it shows, shape (n, side)."""
    pad = max(2, side // 32 * 4)
    place = (torch.arange(side) + torch.randint(-pad, pad + 1, (n, 1))).abs()
    return side - 1 - (side - 1 - place).abs()
