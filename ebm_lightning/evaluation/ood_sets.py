"""Functions that turn a batch of in-distribution images into out-of-distribution images."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ebm_lightning.supports import Binary, Box, Support

OODSet = Callable[[Tensor, Support, torch.Generator], Tensor]
"""(x, support, generator) -> x': maps images (N, *shape) to as many out-of-distribution images in the same support."""


def noise(x: Tensor, support: Support, generator: torch.Generator) -> Tensor:
    """Uniform noise in a box, whatever its reference density; elsewhere draws from the support's reference density."""
    if isinstance(support, Box):
        support = Box(support.low, support.high, support.shape)
    return support.sample(len(x), generator=generator).to(x)


def shuffled(x: Tensor, support: Support, generator: torch.Generator) -> Tensor:
    """Each image with its pixels in a random order, different for each image. Channels stay together."""
    pixels = x.flatten(2)
    order = torch.rand(len(x), 1, pixels.shape[2], generator=generator, device=generator.device).argsort(2)
    return pixels.gather(2, order.to(x.device).expand_as(pixels)).view_as(x)


def inverted(x: Tensor, support: Support, generator: torch.Generator) -> Tensor:
    """The negative of each image: low + high - x.

    Raises:
        ValueError: The support is neither a Box nor Binary.
    """
    if not isinstance(support, Box | Binary):
        raise ValueError(f"'support' should be a Box or Binary for inverted images, got {type(support).__name__}.")
    return support.low + support.high - x


def transposed(x: Tensor, support: Support, generator: torch.Generator) -> Tensor:
    """Each image with height and width swapped. Images have to be square."""
    return x.mT


def flipped(x: Tensor, support: Support, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right."""
    return x.flip(-1)


def interpolated(x: Tensor, support: Support, generator: torch.Generator) -> Tensor:
    """The mean of each image and another image of the batch: its neighbor in a random cycle."""
    order = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
    other = torch.empty_like(order).scatter_(0, order, order.roll(1))
    return (x + x[other]) / 2


OOD_SETS: dict[str, OODSet] = {f.__name__: f for f in (noise, shuffled, inverted, transposed, flipped, interpolated)}
"""The functions of this module by their names, such as ``shuffled``."""


def usual_sets(support: Support, shape: tuple[int, ...] | None = None) -> dict[str, OODSet]:
    """The sets that say something about data of this kind: all for images, those that make sense for other data.

    Arguments:
        support: Domain of the data.
        shape: Shape of one x; by default that of the support.
    """
    shape = support.shape if shape is None else shape
    of_series = shape is not None and len(shape) > 1
    return {
        name: make
        for name, make in OOD_SETS.items()
        if not misfit(name, support, shape) and (of_series or name in ("noise", "interpolated"))
    }


def misfit(name: str, support: Support, shape: tuple[int, ...] | None = None) -> str:
    """Why the set of that name cannot be made from data of this kind, in one sentence; empty if it can.

    Arguments:
        name: A name from :data:`OOD_SETS`. Other names have no requirements.
        support: Domain of the data.
        shape: Shape of one x. None, if it is unknown, fits.
    """
    shape = support.shape if shape is None else shape
    if name == "noise" and support.log_mass == math.inf:
        return f"{type(support).__name__} has no reference density to draw from."
    if name == "inverted" and not isinstance(support, Box | Binary):
        return f"{type(support).__name__} has no lowest and highest value."
    if shape is None:
        return ""
    if name == "transposed" and (len(shape) != 3 or shape[1] != shape[2]):
        return f"One x has shape {shape}, and is not a square image (C, H, H)."
    if name in ("shuffled", "flipped") and len(shape) < 2:
        return f"One x has shape {shape}, and no pixels or steps in an order."
    return ""
