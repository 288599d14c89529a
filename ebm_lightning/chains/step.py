"""Record of the chains of one training step."""

from dataclasses import dataclass

from torch import Tensor

from ebm_lightning.chains.base import Chains
from ebm_lightning.samplers import State


@dataclass
class ChainStep:
    """The chains of one training step, for diagnostics and rollbacks.

    If a step runs chains of p(x) and chains of p(x|y), this describes those of p(x|y).

    Attributes:
        chains: Source of the initial points.
        index: Slots of the chains in ``chains``, shape (N,). None without slots.
        state: Final state of the sampler. ``state.x`` contains the negatives.
        repeats: How often an :class:`~ebm_lightning.Adaptation` ran the chains again.
        energy_neg: Mean energy of the negatives, in nats. None before the loss is computed.
        energy_pos: Mean energy of the data, in nats. None before the loss is computed.
    """

    chains: Chains
    index: Tensor | None
    state: State
    repeats: int = 0
    energy_neg: Tensor | None = None
    energy_pos: Tensor | None = None

    @property
    def energy_gap(self) -> Tensor | None:
        """mean E(x_neg) - mean E(x_pos), about 0 if the chains sample from the model."""
        return None if self.energy_pos is None or self.energy_neg is None else self.energy_neg - self.energy_pos
