"""Sharpness-aware minimization (SAM): move the weights to the worst point nearby, and restore them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import get_total_norm

SavedWeights = list[tuple[nn.Parameter, Tensor]]
"""Parameters and copies of their values."""


@torch.no_grad()
def perturb_weights(
    loss: Tensor, parameters: Iterable[nn.Parameter], rho: float, adaptive: bool = False
) -> SavedWeights:
    r"""Perturb the weights in place to increase ``loss``: by ``rho`` along the gradient, or scaled by weight size.

    .. math:: w \leftarrow w + \rho \frac{T^2 \nabla L(w)}{|T \nabla L(w)|}

    A SAM step perturbs the weights, backpropagates the loss there (under :func:`frozen_statistics`), restores the
    weights with :func:`restore_weights` and then calls the optimizer.

    Arguments:
        loss: A scalar; its graph is freed.
        parameters: The weights w. Those that are frozen, or that ``loss`` does not depend on, do not change.
        rho: Length of the step.
        adaptive: T = diag |w| (ASAM), so that large weights move further, instead of T = I (SAM).

    Returns:
        The original values, for :func:`restore_weights`.

    References:
        Foret et al., Sharpness-aware minimization, 2021, eq. 2. https://arxiv.org/abs/2010.01412
        Kwon et al., ASAM, 2021, eq. 3, for T = diag |w|. https://arxiv.org/abs/2102.11600
    """
    weights = [p for p in parameters if p.requires_grad]
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    steps = [(p, g * p.abs() if adaptive else g) for p, g in zip(weights, gradients, strict=True) if g is not None]
    scale = rho / (get_total_norm([step for _, step in steps]) + 1e-12)
    saved = [(p, p.clone()) for p, _ in steps]
    try:
        for p, step in steps:
            p.add_(scale * (step * p.abs() if adaptive else step))
    except BaseException:
        restore_weights(saved)
        raise
    torch.clear_autocast_cache()  # it holds casts of the original weights
    return saved


@torch.no_grad()
def restore_weights(saved: SavedWeights) -> None:
    """Undo :func:`perturb_weights` exactly, and empty the list."""
    for p, value in saved:
        p.copy_(value)
    saved.clear()


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Inside this context, batch norm uses the statistics of the batch but does not update its running statistics."""
    layers: list[tuple[Any, float | None, Tensor | None]] = [
        (m, m.momentum, None if m.num_batches_tracked is None else m.num_batches_tracked.clone())
        for m in module.modules()
        if isinstance(m, _BatchNorm) and m.training
    ]
    for layer, _, _ in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum, count in layers:
            layer.momentum = momentum
            if count is not None:
                layer.num_batches_tracked.copy_(count)
