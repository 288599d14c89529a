"""Samples of a model by new chains."""

from typing import Any

import torch
from torch import Tensor

from ebm_lightning.chains.sampling import sample_chains, with_steps
from ebm_lightning.checks import check_integer
from ebm_lightning.modules.batches import check_labels
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import SGLD, Sampler
from ebm_lightning.samplers.base import Progress
from ebm_lightning.supports import Density


@torch.no_grad()
def sample(
    model: Any,
    n: int,
    y: int | Tensor | None = None,
    *,
    steps: int | None = None,
    sampler: Sampler | None = None,
    initial: Density | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 250,
    progress: Progress | None = None,
) -> Tensor:
    """Final states of ``n`` new chains, as x, shape (n, *shape), in eval mode and on the model's device.

    Arguments:
        model: A ConditionalEBM, of which this is a method.
        n: Number of samples.
        y: One class for all, or labels, shape (n,): chains then follow E(x, y) instead of E(x).
        steps: Steps of each chain; by default the sampler's own number.
        sampler: Moves the chains; by default the model's, and ``SGLD.jem()`` for one without.
        initial: Fitted distribution of the initial points; by default that of the model's chains, or the support's
            reference density. The support itself is also one. With coordinates it is a distribution of u.
        generator: Source of randomness, on the model's device; seeded with 0 by default.
        batch_size: Largest number of chains to run at once.
        progress: Wraps the loop over batches, such as ``tqdm.tqdm``.

    Raises:
        ValueError: A number is below 1, there is not one label for each sample, or the generator is on another device.
    """
    check_integer("n", n, at_least=1)
    if generator is not None and generator.device.type != model.device.type:
        raise ValueError(
            f"'generator' should be on the model's device, {model.device}, got one on {generator.device}. "
            f"Use torch.Generator('{model.device}')."
        )
    u = sample_chains(
        model.chain_energy,
        model.support,
        with_steps(sampler or getattr(model, "sampler", None) or SGLD.jem(), steps),
        n,
        generator or make_generator(0, "sample", device=model.device),
        labels=_labels(model, n, y),
        initial=initial or getattr(getattr(model, "chains", None), "initial", None),
        compute=getattr(model, "compute", None),
        batch_size=batch_size,
        progress=progress,
    )
    x: Tensor = model.coordinates.inv(u)
    return x


def _labels(model: Any, n: int, y: int | Tensor | None) -> Tensor | None:
    """One class for each of ``n`` samples, shape (n,), from a class for all or one for each."""
    if y is None:
        return None
    labels = torch.as_tensor(y, device=model.device)
    labels = labels.expand(n) if labels.ndim == 0 else labels
    check_labels(labels, n, model.num_classes)
    return labels.long()
