"""Base class of chains."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ebm_lightning.supports import Density, Support


class Chains(ABC):
    """Provides the initial points of a batch of chains, and may store their final points for later batches.

    This is not an ``nn.Module``, because DDP would overwrite a module's buffers with those of rank 0. All randomness
    comes from the generator passed to each call. ``setup`` is called once, before the first ``draw``.

    Attributes:
        support: Domain of x. None before ``place`` and ``setup``.
        num_classes: Number of classes of class-conditional chains, else None.
        initial: Distribution of new chains. None uses the support's reference density. ``Trainer.fit`` fits it if it is
            a :class:`~ebm_lightning.supports.density.FittedDensity`.
    """

    support: Support | None = None
    num_classes: int | None = None
    initial: Density | None = None

    def place(self, support: Support, num_classes: int | None = None) -> None:
        """Set the domain of x and, for class-conditional chains, the number of classes. Makes no chains."""
        self.support, self.num_classes = support, num_classes

    def setup(self, support: Support, num_classes: int | None = None, generator: torch.Generator | None = None) -> None:
        """Make the chains, if they are stored. Arguments as for :meth:`place`, which it calls."""
        self.place(support, num_classes)

    def reset(self) -> None:  # noqa: B027
        """Return to the state before :meth:`setup`. By default there is nothing to forget."""

    @abstractmethod
    def draw(
        self,
        n: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        data: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Initial points of ``n`` chains, shape (n, *shape), and their slots, shape (n,), or None without slots.

        Arguments:
            n: Number of chains.
            labels: Label of each chain, shape (n,), for class-conditional chains.
            generator: Source of randomness.
            data: Data batch of the same training step, shape (n, *shape).
        """

    def reweight(
        self,
        index: Tensor | None,
        x: Tensor,
        log_tilt: Callable[[Tensor], Tensor],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Points to continue from, shape (N, *shape), given what ``draw`` returned. By default ``x`` itself.

        Arguments:
            index: Slots of the chains, shape (N,).
            x: Their points, shape (N, *shape).
            log_tilt: The model that chains follow now: maps points to log p(x) - log q(x) up to a constant, shape (N,).
            generator: Source of randomness.
        """
        return x

    def remember(self, index: Tensor | None, log_tilt: Tensor) -> None:  # noqa: B027 (optional)
        """Store ``log_tilt``, shape (N,), at the final points of the chains in the slots ``index``."""

    def store(self, index: Tensor | None, x: Tensor) -> None:  # noqa: B027 (optional)
        """Store the final points ``x`` of the chains in the slots ``index``. By default nothing is stored."""

    def reinitialize(self, index: Tensor | None, generator: torch.Generator | None = None) -> None:  # noqa: B027
        """Replace the chains in the slots ``index`` by new ones. By default there are none."""

    def state_dict(self) -> dict[str, Any]:
        """The stored chains, as tensors and plain values. Empty without stored chains, and before ``setup``."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restore the result of :meth:`state_dict`."""

    def load_sharded(self, states: list[dict[str, Any]], rank: int, world_size: int) -> None:
        """Restore this rank's part of a saved run, also before ``setup``: a model that was loaded has chains.

        Arguments:
            states: The result of :meth:`state_dict` on each rank of the saved run.
            rank: This rank.
            world_size: Number of ranks of this run. It may differ from that of the saved run.
        """
        if len(states) == world_size:
            self.load_state_dict(states[rank])
