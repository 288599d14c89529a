"""Initial points of chains."""

import torch
from torch import Tensor

from ebm_lightning.supports import Binary, Density, Support


def initial_points(
    initial: Density | None,
    support: Support,
    n: int,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Initial points of ``n`` chains, shape (n, *shape), inside the support.

    Arguments:
        initial: Distribution of the points, which are clamped to the support. None uses the support's reference
            density.
        support: Domain of x.
        n: Number of chains.
        labels: Class of each chain, shape (n,).
        generator: Source of randomness.
        device: Device of the points.

    Raises:
        ValueError: The support is discrete and ``initial`` is not, or ``initial`` is None and the support has infinite
            mass.
        RuntimeError: ``initial`` is not fitted yet.
    """
    density = support if initial is None else initial
    if isinstance(support, Binary) and not isinstance(density, Binary):
        raise ValueError(
            f"'initial' should be None on Binary, which is discrete, got {type(density).__name__}. "
            "Drop it, or use a Box."
        )
    x = density.sample(n, labels=labels, generator=generator, device=device)
    return x if density is support or isinstance(support, Binary) else support.clamp(x)
