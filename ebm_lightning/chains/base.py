"""What all chains share: where a batch of them starts, and what becomes of its ends."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ebm_lightning.starts import Start
from ebm_lightning.supports import Support


class Chains(ABC):
    """The starts of a batch of chains, and what becomes of their ends.

    A plain object, never a module: DDP would overwrite a module's buffers from rank 0. All randomness comes from the
    generator of each call; ``setup`` is called once, before the first ``draw``.

    Attributes:
        support: The domain of x, once it is set up.
        start: Where chains begin, if not in the support's reference density; ``fit`` fits it where it has to be.
    """

    support: Support | None = None
    start: Start | None = None

    def setup(self, support: Support, num_classes: int | None = None, generator: torch.Generator | None = None) -> None:
        """Learn the domain of x, and, for chains that keep a label for life, the number of classes."""
        self.support = support

    @abstractmethod
    def draw(
        self,
        n: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        data: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Starts of ``n`` chains, and the slots that they came from if they are kept.

        Arguments:
            n: Number of chains.
            labels: Label of each chain, shape (n,), for class-conditional chains.
            generator: Source of randomness.
            data: The batch that the negatives will be held against, shape (n, *shape).
        """

    def store(self, index: Tensor | None, x: Tensor) -> None:  # noqa: B027 (most chains keep nothing)
        """Keep the ends ``x`` of the chains drawn from the slots ``index``. Nothing by default."""

    def restart(self, index: Tensor | None, generator: torch.Generator | None = None) -> None:  # noqa: B027
        """Start the chains of the slots ``index`` anew. Nothing by default."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take back what :meth:`state_dict` gave."""

    def deal(self, shares: list[dict[str, Any]], rank: int, world_size: int) -> None:
        """Take this rank's share of a saved run's chains, given what :meth:`state_dict` gave on each of its ranks."""
        if len(shares) == world_size:
            self.load_state_dict(shares[rank])
