"""Fits the coordinates of a model to the training data, once, before training."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ebm_lightning.modules.random_state import seeded_globally
from ebm_lightning.modules.training_data import training_batches
from ebm_lightning.resume.lightning_internals import averaged_modules


def fit_coordinates(module: Any) -> None:
    """Fit the module's coordinates to the training data, unless they are fitted or were loaded from a checkpoint.

    Every rank reads all the data, in the order of the data set and under one seed, and then takes the fit of rank 0, so
    all ranks have the same. With several ranks this is a collective operation. Global random states are restored.
    Models that average weights get the fit too.

    Raises:
        ValueError: A batch is invalid, or there is too little data.
    """
    if module.coordinates.fitted:
        return
    module.coordinates.fit(TrainingInputs(module))
    strategy = module.trainer.strategy
    for tensor in (*module.coordinates.parameters(), *module.coordinates.buffers()):
        tensor.copy_(strategy.broadcast(tensor, src=0))
    for average in averaged_modules(module.trainer):  # copied from the module before the fit
        average.coordinates.load_state_dict(module.coordinates.state_dict())


class TrainingInputs:
    """The inputs x of all the training data, in checked batches on the module's device. Can be read several times.

    Each pass reads the same numbers, dequantization noise and augmentation included.

    Arguments:
        module: A module that is attached to a trainer.
    """

    def __init__(self, module: Any) -> None:
        self.module = module

    def __iter__(self) -> Iterator[Tensor]:
        with seeded_globally(0):
            for i, batch in enumerate(training_batches(self.module.trainer, shared=False)):
                yield self.module.generative_batch(batch, i)[0].to(self.module.device)
