"""The order in which an autoregressive density draws the components of an image, and what each of them sees."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Front(NamedTuple):
    """P pixels that can be drawn together.

    Attributes:
        places: Their index in the flattened image, shape (P,).
        padded: Their index in the flattened padded image, shape (P,).
        context: The index there of each pixel of their windows, shape (P, pixels of the window).
    """

    places: Tensor
    padded: Tensor
    context: Tensor


@dataclass(frozen=True)
class CausalWindow:
    """For each pixel of an image, the window of pixels before it, from left to right and from top to bottom.

    Pixels on a line from the bottom left to the top right, which is so flat that none is in the window of another, can
    be drawn together: an image of 28x28 pixels takes 163 steps at radius 4, and not 784.

    Arguments:
        shape: Shape of an image (C, H, W).
        radius: Rows above, and pixels to each side.
    """

    shape: tuple[int, ...]
    radius: int

    @property
    def size(self) -> int:
        """Number of pixels in the window, which are the first in its kernel; the last is the pixel itself."""
        return self.radius * (2 * self.radius + 1) + self.radius + 1

    @property
    def mask(self) -> Tensor:
        """1 where channel c (first axis) sees channel k (second) of a pixel, shape (C, C, radius + 1, 2 radius + 1).

        Of the pixel itself a channel sees those before it.
        """
        channels, r = self.shape[0], self.radius
        mask = torch.ones(channels, channels, r + 1, 2 * r + 1)
        mask[:, :, r, r + 1 :] = 0
        mask[:, :, r, r] = torch.ones(channels, channels).tril(-1)
        return mask

    @property
    def padded_size(self) -> int:
        """Number of pixels of the image with ``radius`` more rows above and columns on both sides."""
        return (self.shape[1] + self.radius) * self.padded_width

    @property
    def padded_width(self) -> int:
        return self.shape[2] + 2 * self.radius

    def fronts(self, device: torch.device) -> list[Front]:
        """The pixels in the order in which they are drawn. They are computed once for each device."""
        return _fronts(self.shape, self.radius, device)


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)
def _fronts(shape: tuple[int, ...], radius: int, device: torch.device) -> list[Front]:
    window, (_, height, width) = CausalWindow(shape, radius), shape
    row, column = torch.arange(height)[:, None], torch.arange(width)
    time = (row * (radius + 1) + column).flatten()
    padded = ((row + radius) * window.padded_width + column + radius).flatten()
    kernel = torch.arange(window.size)
    above, aside = kernel // (2 * radius + 1) - radius, kernel % (2 * radius + 1) - radius
    context = padded[:, None] + above * window.padded_width + aside
    indices = [(time == t).nonzero().flatten() for t in time.unique()]
    return [Front(i.to(device), padded[i].to(device), context[i].to(device)) for i in indices]
