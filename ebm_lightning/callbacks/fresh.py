"""Chains run for a measurement alone, never from or into a replay buffer."""

import copy
import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.samplers import SGLD, Sampler
from ebm_lightning.starts import Start, first_places

Progress = Callable[[Iterable[int]], Iterable[int]]
"""Wraps a loop to show how far it is, such as ``tqdm.tqdm``."""


def chain_sampler(module: ConditionalEBM, sampler: Sampler | None = None, steps: int | None = None) -> Sampler:
    """``sampler``, by default the module's own or else JEM's; with ``steps`` in place of its own number, if given."""
    sampler = sampler or getattr(module, "sampler", None) or SGLD.jem()
    if steps is None:
        return sampler
    longer = copy.copy(sampler)
    object.__setattr__(longer, "steps", steps)  # samplers are frozen; this one is ours alone
    return longer


def fresh_samples(
    module: ConditionalEBM,
    n: int,
    sampler: Sampler,
    generator: torch.Generator,
    *,
    labels: Tensor | None = None,
    start: Start | None = None,
    batch_size: int = 250,
    progress: Progress | None = None,
) -> Tensor:
    """The ends of ``n`` new chains, shape (n, *shape), computed as the module's are.

    Arguments:
        module: Whose energy moves them.
        n: Number of chains.
        sampler: How they move.
        generator: Source of all randomness, on the module's device.
        labels: Shape (n,): chains follow E(x, y) in place of E(x).
        start: Where they begin, fitted; by default the support's reference density.
        batch_size: Most chains to run at once.
        progress: Wraps the loop over batches.
    """
    parts, compute = [], getattr(module, "compute", None)
    batches = range(0, n, batch_size)
    with torch.inference_mode(False), torch.autocast(module.device.type, enabled=False):
        for i in progress(batches) if progress else batches:
            y = None if labels is None else labels[i : i + batch_size].clone()
            energy = module.energy if y is None else functools.partial(module.energy, y=y)
            x = first_places(start, module.support, min(batch_size, n - i), y, generator)
            parts.append(sampler(energy, x, support=module.support, generator=generator, compute=compute))
    return torch.cat(parts)
