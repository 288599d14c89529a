"""Pictures of points of any shape: images as grids, series as lines, tables as the distribution of each column."""

import math
import textwrap
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torchvision.utils import make_grid

from ebm_lightning.supports import Binary, Box, Support


def are_images(shape: Sequence[int]) -> bool:
    """Whether points of that shape can be shown as images: (1 or 3, H, W)."""
    return len(shape) == 3 and shape[0] in (1, 3)


def image_grid(x: Tensor, support: Support, columns: int, scale: int = 1) -> Tensor:
    """Images (N, C, H, W) tiled into one image (3, H', W') in [0, 1].

    Black and white are the walls of the support, or the smallest and largest value of ``x`` if it has none. Each pixel
    is enlarged to ``scale`` by ``scale`` pixels.
    """
    low, high = float(x.min()), float(x.max())
    if isinstance(support, Box | Binary):
        low, high = support.low, support.high
    x = x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    pixels = (x - low) / max(high - low, 1e-12)
    return make_grid(pixels, nrow=columns, padding=scale, pad_value=0.5)


def plot_points(
    axes: Axes, x: Tensor, support: Support, columns: int, labels: Sequence[str] | None = None, scale: int = 1
) -> None:
    """Draw points (N, *shape) in one panel, as what their shape suggests.

    - Shape (1 or 3, H, W): a grid of images.
    - Shape (C, L): series; the channels of each point are lines over the position.
    - Any other: a table; the median and the middle 80 and 100 % of each component over the points.

    Arguments:
        axes: The panel.
        x: The points.
        support: Domain of x.
        columns: Images in a row of the grid.
        labels: A text for each image, shown in its upper left corner. Series and tables have none.
        scale: Integer factor by which pixels are enlarged.
    """
    x = x.detach().float().cpu()
    if are_images(x.shape[1:]):
        _plot_images(axes, x, support, columns, labels, scale)
    elif x.ndim == 3:
        _plot_series(axes, x)
    else:
        _plot_columns(axes, x.flatten(1))


def panel_height(shape: Sequence[int], count: int, columns: int, width: float) -> float:
    """Height of a panel of that width, in the same unit, that shows ``count`` points with square pixels."""
    if not are_images(shape):
        return 0.4 * width
    columns = min(columns, count)
    return width * math.ceil(count / columns) * shape[1] / (columns * shape[2])


def caption(text: str, width: float) -> str:
    """``text`` in lines that fit a panel of ``width`` inches in 10 points."""
    return textwrap.fill(text, max(16, int(13 * width)))


def _plot_images(
    axes: Axes, x: Tensor, support: Support, columns: int, labels: Sequence[str] | None, scale: int
) -> None:
    grid = image_grid(x, support, columns, scale).clamp(0, 1)
    axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set(xticks=[], yticks=[], frame_on=False)
    height, width = (scale * (size + 1) for size in x.shape[2:])
    box = {"facecolor": "black", "alpha": 0.55, "pad": 0.6, "linewidth": 0}
    for i, label in enumerate(labels or ()):
        row, column = divmod(i, min(columns, len(x)))
        axes.text(
            column * width + scale,
            row * height + scale,
            label,
            color="white",
            fontsize=5.5,
            va="top",
            bbox=box,
        )


def _plot_series(axes: Axes, x: Tensor) -> None:
    colors = [f"C{channel}" for channel in range(x.shape[1])]
    for channel, color in enumerate(colors):
        axes.plot(x[:, channel].T.numpy(), color=color, lw=0.8, alpha=max(0.15, min(1.0, 8 / len(x))))
    axes.set(xlabel="position", ylabel="value" if len(colors) == 1 else f"value, {len(colors)} channels")


def _plot_columns(axes: Axes, x: Tensor) -> None:
    """Bars from the smallest to the largest value and over the middle 80 %, with the median."""
    low, tenth, middle, ninetieth, high = x.quantile(torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]), 0).numpy()
    position = range(x.shape[1])
    axes.vlines(position, low, high, color="C0", lw=1, alpha=0.5, label="all")
    axes.vlines(position, tenth, ninetieth, color="C0", lw=4 if x.shape[1] <= 40 else 1.5, label="middle 80 %")
    axes.plot(position, middle, "_" if x.shape[1] <= 40 else ".", color="C1", label="median")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="component", ylabel="value", xlim=(-0.6, x.shape[1] - 0.4))
    axes.legend(fontsize=7)
