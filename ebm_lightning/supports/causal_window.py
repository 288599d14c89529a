"""The order in which an autoregressive density draws the components of an image, and what each of them sees."""

from collections.abc import Iterator
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
        return (self.shape[1] + self.radius) * self._padded_width

    @property
    def _padded_width(self) -> int:
        return self.shape[2] + 2 * self.radius

    def fronts(self, device: torch.device) -> Iterator[Front]:
        """The pixels in the order in which they are drawn."""
        _, height, width = self.shape
        row, column = torch.arange(height)[:, None], torch.arange(width)
        time = (row * (self.radius + 1) + column).flatten()
        padded = ((row + self.radius) * self._padded_width + column + self.radius).flatten()
        kernel = torch.arange(self.size)
        above, aside = kernel // (2 * self.radius + 1) - self.radius, kernel % (2 * self.radius + 1) - self.radius
        context = padded[:, None] + above * self._padded_width + aside
        for t in time.unique():
            index = (time == t).nonzero().flatten()
            yield Front(index.to(device), padded[index].to(device), context[index].to(device))
