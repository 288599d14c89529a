"""Samples of a trained model by new chains. They neither read nor change a replay buffer."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ebm_lightning.chains.initial import initial_points
from ebm_lightning.checks import check_integer
from ebm_lightning.samplers import Compute, Sampler
from ebm_lightning.samplers.base import Progress
from ebm_lightning.supports import Density, Support


def sample_chains(
    energy: Callable[..., Tensor],
    support: Support,
    sampler: Sampler,
    n: int,
    generator: torch.Generator,
    *,
    labels: Tensor | None = None,
    initial: Density | None = None,
    compute: Compute | None = None,
    batch_size: int = 250,
    progress: Progress | None = None,
) -> Tensor:
    """The final points of ``n`` new chains, shape (n, *shape).

    Works under ``no_grad`` and in inference mode. Autocast is off unless ``compute`` sets a precision.

    Arguments:
        energy: Maps x, and also y if ``labels`` are given, to energies (N,).
        support: Domain of the energy.
        sampler: Moves the chains.
        n: Number of chains.
        generator: Source of all randomness; chains run on its device.
        labels: Shape (n,). Chains then follow E(x, y) instead of E(x).
        initial: Distribution of the initial points, already fitted. By default the support's reference density.
        compute: Precision, memory layout and compilation of the network.
        batch_size: Largest number of chains to run at once.
        progress: Wraps the loop over batches, such as ``tqdm.tqdm``.

    Raises:
        ValueError: ``n`` or ``batch_size`` is below 1.
    """
    check_integer("n", n, at_least=1)
    check_integer("batch_size", batch_size, at_least=1)
    samples, batches = [], range(0, n, batch_size)
    with torch.inference_mode(False), torch.autocast(generator.device.type, enabled=False):
        for i in progress(batches) if progress else batches:
            y = None if labels is None else labels[i : i + batch_size].clone()
            conditional = energy if y is None else functools.partial(energy, y=y)
            x = initial_points(initial, support, min(batch_size, n - i), y, generator)
            samples.append(sampler(conditional, x, support=support, generator=generator, compute=compute))
        return torch.cat(samples)


def with_steps(sampler: Sampler, steps: int | None) -> Sampler:
    """A copy of ``sampler`` with ``steps`` steps per call. None keeps its number of steps.

    Raises:
        ValueError: ``steps`` below 1.
    """
    check_integer("steps", steps, at_least=1, optional=True)
    return sampler if steps is None else sampler.with_steps(steps)
