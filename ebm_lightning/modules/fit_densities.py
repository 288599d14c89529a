"""Fits the densities of a model, and the initial distributions of its chains, before training.

The fit reads the training data in a fixed order and under a fixed seed, as :mod:`ebm_lightning.modules.training_data`
says.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import lightning as L
from torch import Tensor, nn

from ebm_lightning.modules.random_state import seeded_globally
from ebm_lightning.modules.training_data import training_batches
from ebm_lightning.resume.lightning_internals import averaged_modules
from ebm_lightning.supports.density import FittedDensity, Progress


def fit_densities(module: Any) -> None:
    """Fit the densities that are part of the model, unless a checkpoint had them, and the initial ones of its chains.

    Each takes one pass, in which a rank reads a part of the data, each item once. Every rank gets the same fit. With
    several ranks this is a collective operation. Global random states are restored afterwards. A dataset that draws
    from a generator other than the global ones has that generator advanced by one pass. With coordinates, the fit is to
    the data in coordinates.

    Raises:
        ValueError: A batch is invalid, or there is too little data for the distribution.
    """
    of_model = {name: part for name, part in module.energy.named_modules() if isinstance(part, FittedDensity)}
    unfitted = {id(part): part for part in of_model.values() if not part.fitted}
    own = {id(part) for part in of_model.values()}
    initial = [chains.initial for chains in module.running_chains().values()]
    fits = unfitted | {id(d): d for d in initial if isinstance(d, FittedDensity) and id(d) not in own}
    for density in fits.values():
        batches = in_coordinates(module, lambda: training_batches(module.trainer), density.passes)
        bar = fit_progress(module.trainer, f"fitting {type(density).__name__}")
        density.fit(batches, module.num_classes, lambda total: _all_reduce(total, module), bar)
    if unfitted:
        for average in averaged_modules(module.trainer):  # copied from the module before the fit
            for name, part in of_model.items():
                assert isinstance(part, nn.Module)
                average.energy.get_submodule(name).load_state_dict(part.state_dict())


def fit_progress(trainer: L.Trainer, name: str) -> Progress | None:
    """A progress bar of that name on the first rank, if the trainer shows progress bars."""
    from tqdm import tqdm

    shown = trainer.progress_bar_callback is not None and trainer.is_global_zero
    return functools.partial(tqdm, desc=name, leave=False) if shown else None


def in_coordinates(module: Any, data: Callable[[], Iterable[Any]], passes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs in the coordinates of ``module``, and their labels, of several passes over ``data()``.

    Each pass has a seed of its own, so that dequantization noise differs between them.
    """
    for seed in range(passes):
        with seeded_globally(seed):
            for i, batch in enumerate(data()):
                x, y = module.generative_batch(batch, i)
                yield module.coordinates(x.to(module.device)), y


def _all_reduce(total: Tensor, module: Any) -> Tensor:
    total_of_ranks: Tensor = module.trainer.strategy.reduce(total.to(module.device), reduce_op="sum").cpu()
    return total_of_ranks
