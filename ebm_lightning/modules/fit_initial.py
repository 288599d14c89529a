"""Fits the initial distribution of chains in one pass over the training data, before training."""

from torch import Tensor

from ebm_lightning.modules.conditional import ConditionalEBM
from ebm_lightning.modules.training_data import seeded_globally, training_batches
from ebm_lightning.supports.density import FittedDensity


def fit_initial(module: ConditionalEBM) -> None:
    """Fit the initial distributions of the module's chains to the training data; every rank gets the same fit.

    Each rank reads a part of the data, each item once. With several ranks this is a collective operation. Global random
    states are restored afterwards. A dataset that draws from a generator other than the global ones has that generator
    advanced by one pass. With coordinates, the fit is to the data in coordinates.

    Raises:
        ValueError: A batch is invalid, or there is too little data for the distribution.
    """
    chains = module.running_chains().values()
    for initial in {id(c.initial): c.initial for c in chains if isinstance(c.initial, FittedDensity)}.values():
        with seeded_globally(0):
            pairs = (module.generative_batch(batch, i) for i, batch in enumerate(training_batches(module.trainer)))
            in_coordinates = ((module.coordinates(x), y) for x, y in pairs)
            initial.fit(in_coordinates, module.num_classes, lambda total: _all_reduce(total, module))


def _all_reduce(total: Tensor, module: ConditionalEBM) -> Tensor:
    return module.trainer.strategy.reduce(total.to(module.device), reduce_op="sum").cpu()
