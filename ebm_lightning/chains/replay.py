"""A replay buffer of persistent chains."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ebm_lightning.chains.base import Chains
from ebm_lightning.chains.initial import initial_points
from ebm_lightning.checks import check_integer, check_kind, check_number
from ebm_lightning.supports import Density, Support


class ReplayBuffer(Chains):
    r"""A buffer of persistent chains (persistent contrastive divergence, PCD).

    Each draw continues chains from their stored points. With probability ``reinit_prob`` a chain is reinitialized from
    ``initial``: 1 gives short-run chains, 0 never reinitializes. Slots are drawn without replacement. Class-conditional
    chains keep their class: class c owns the slots c, c + K, c + 2K, ...

    References:
        Tieleman, Training restricted Boltzmann machines using approximations to the likelihood gradient, 2008.
        Du & Mordatch, Implicit generation and modeling with energy based models, 2019.
        https://arxiv.org/abs/1903.08689

    Arguments:
        size: Number of chains on each rank, at least the batch size. JEM uses 10 000. A run that resumes on fewer ranks
            keeps every chain, so that its buffers grow, see :meth:`load_sharded`.
        reinit_prob: Probability that a drawn chain is reinitialized.
        initial: Distribution of new chains. If it has classes, class-conditional chains start in their class. By
            default, and in JEM, the support's reference density. JEM++ uses ``ClassGaussians()``.

    Raises:
        ValueError: ``size`` is below 1, or ``reinit_prob`` is outside [0, 1].
    """

    def __init__(self, size: int = 10_000, reinit_prob: float = 0.05, initial: Density | None = None) -> None:
        self.size: int = check_integer("size", size, at_least=1)
        self.reinit_prob: float = check_number("reinit_prob", reinit_prob, at_least=0, at_most=1)
        self.initial = check_kind("initial", initial, Density, optional=True)
        self._given_size = self.size
        self._stored: dict[str, Tensor] = {}  # a row for each slot

    def setup(self, support: Support, num_classes: int | None = None, generator: torch.Generator | None = None) -> None:
        """Fill every slot with a sample of ``initial``, on the generator's device.

        Raises:
            ValueError: As for :func:`~ebm_lightning.chains.initial.initial_points`, or ``size`` is not a multiple of
                ``num_classes``.
            RuntimeError: ``initial`` is not fitted yet.
        """
        if num_classes is not None and self.size % num_classes:
            raise ValueError(
                f"'size' should be a multiple of the {num_classes} classes for class-conditional chains, "
                f"got {self.size}. Use {max(1, self.size // num_classes) * num_classes}."
            )
        self.place(support, num_classes)
        device = None if generator is None else generator.device
        self._stored = self._new(torch.arange(self.size, device=device), generator, device)

    def reset(self) -> None:
        self.size, self._stored = self._given_size, {}

    @property
    def x(self) -> Tensor:
        """All chains, shape (size, *shape). Read only: ``draw`` and ``store`` update them."""
        return self._values("x")

    @property
    def age(self) -> Tensor:
        """How often each slot was stored since its chain was last reinitialized, shape (size,)."""
        return self._values("age")

    def draw(
        self,
        n: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        data: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Initial points, shape (n, *shape), and their slots, shape (n,), which are all different.

        If a batch has more labels of one class than there are chains of it, the buffer grows, with a warning.

        Raises:
            ValueError: The buffer has fewer than ``n`` chains. Or ``labels`` are given without class-conditional
                chains, or missing with them.
        """
        if labels is not None:
            self._make_room(labels, generator)
        index = self._slots(n, generator) if labels is None else self._slots_of(labels, generator)
        x = self.x[index]
        reinit = (torch.rand(n, generator=generator, device=x.device) < self.reinit_prob).nonzero().squeeze(1)
        if len(reinit):
            classes = None if labels is None else labels[reinit]
            x[reinit] = self._fresh(len(reinit), classes, generator, x.device).to(x)
            self.age[index[reinit]] = 0
        return x, index

    def store(self, index: Tensor | None, x: Tensor) -> None:
        if index is None:
            raise ValueError("'index' should be the slots that 'draw' returned, got None.")
        self.x[index] = x.detach().to(self.x.dtype)
        self.age[index] += 1

    def reinitialize(self, index: Tensor | None, generator: torch.Generator | None = None) -> None:
        if index is not None:
            self.x[index] = self._fresh(len(index), self._labels(index), generator, self.x.device)
            self.age[index] = 0

    def state_dict(self) -> dict[str, Any]:
        return {name: values.clone() for name, values in self._stored.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore chains, on the device of the current ones. A buffer that has grown since then shrinks.

        Raises:
            ValueError: The number or shape of the chains differs, or they are of another kind.
        """
        _check_names(state, self._stored)
        grown = len(self.x) > self._given_size <= len(state["x"])
        if state["x"].shape[grown:] != self.x.shape[grown:]:
            raise ValueError(
                f"'state' should hold chains of shape {tuple(self.x.shape)}, got {tuple(state['x'].shape)}. "
                "Use the 'size' and 'support' of the run that was saved."
            )
        self._stored = {name: state[name].to(values) for name, values in self._stored.items()}
        self.size = len(self.x)

    def load_sharded(self, states: list[dict[str, Any]], rank: int, world_size: int) -> None:
        """Restore this rank's part of a saved run: each saved chain goes to one rank, with its age and class.

        With the same number of ranks, each rank restores its chains. With another number, the saved chains are
        distributed round-robin, and each keeps its class. A rank that gets more than ``size`` chains enlarges its
        buffer; a rank that gets fewer keeps the new chains of :meth:`setup` in the remaining slots. For example, 2
        ranks with 21 chains become 1 rank with 42, or 4 ranks with 21 of which 42 in total are restored.

        Raises:
            ValueError: The chains have another shape, or were saved for another number of classes.
        """
        group = self.num_classes or 1
        known = None if self.support is None else self.support.shape
        shape = self.x.shape[1:] if self._stored else known
        for state in states:
            if (shape is not None and state["x"].shape[1:] != shape) or len(state["x"]) % group:
                raise ValueError(
                    f"'chains' should have shape {tuple(shape or ())} and be in multiples of {group}, got a checkpoint "
                    f"with {tuple(state['x'].shape)}. Use the 'support' and 'num_classes' of the run that was saved."
                )
        mine = states[rank] if len(states) == world_size else _shard(states, group, rank, world_size)
        if not self._stored:  # before 'setup', which makes as many as are missing
            self._stored = {name: values.clone() for name, values in mine.items()}
            return
        _check_names(mine, self._stored)
        restored = len(mine["x"])
        for name, values in self._stored.items():
            self._stored[name] = torch.cat([mine[name].to(values), values[restored:]])
        self.size = len(self.x)

    def _values(self, name: str) -> Tensor:
        if not self._stored:
            raise _no_chains(self)
        return self._stored[name]

    def _new(self, slots: Tensor, generator: torch.Generator | None, device: torch.device | None) -> dict[str, Tensor]:
        """What is stored of new chains in ``slots``."""
        x = self._fresh(len(slots), self._labels(slots), generator, device)
        return {"x": x, "age": torch.zeros(len(slots), dtype=torch.long, device=x.device)}

    def _fresh(
        self, n: int, labels: Tensor | None, generator: torch.Generator | None, device: torch.device | None
    ) -> Tensor:
        """Initial points of ``n`` new chains, inside the support."""
        if self.support is None:
            raise _no_chains(self)
        return initial_points(self.initial, self.support, n, labels, generator, device)

    def _labels(self, slots: Tensor) -> Tensor | None:
        """The classes that own ``slots``; None without classes."""
        return None if self.num_classes is None else slots % self.num_classes

    def _slots(self, n: int, generator: torch.Generator | None) -> Tensor:
        if self.num_classes is not None:
            raise ValueError("'labels' should be given to a buffer of class-conditional chains, got None.")
        if n > self.size:
            raise ValueError(f"'size' should be at least the batch size {n}, got a buffer of {self.size}. Enlarge it.")
        return torch.randperm(self.size, generator=generator, device=self.x.device)[:n]

    def _make_room(self, labels: Tensor, generator: torch.Generator | None) -> None:
        """Add new chains of each class if a batch has more labels of one class than there are chains of it."""
        per_class = self.size // (self.num_classes or 1)
        if self.num_classes is None or len(labels) <= per_class:
            return
        missing = int(labels.bincount().max()) - per_class
        if missing <= 0:
            return
        size = self.size + missing * self.num_classes
        warnings.warn(
            f"'size' gives each of {self.num_classes} classes {per_class} chains, and a batch has "
            f"{per_class + missing} of one class: the buffer grows from {self.size} to {size} chains. Use ReplayBuffer("
            f"{size}) to have them from the start.",
            stacklevel=2,
        )
        slots = torch.arange(self.size, size, device=self.x.device)
        new = self._new(slots, generator, self.x.device)
        self._stored = {name: torch.cat([values, new[name].to(values)]) for name, values in self._stored.items()}
        self.size = len(self.x)

    def _slots_of(self, labels: Tensor, generator: torch.Generator | None) -> Tensor:
        """A slot for each label: the i-th chain of a class gets the i-th of the shuffled slots of that class."""
        if self.num_classes is None:
            raise ValueError("'labels' should be None: this buffer was set up without 'num_classes'.")
        per_class = self.size // self.num_classes
        counts = torch.nn.functional.one_hot(labels.long(), self.num_classes).cumsum(0)
        order = torch.rand(per_class, self.num_classes, generator=generator, device=self.x.device).argsort(0)
        rank = counts.gather(1, labels[:, None]).squeeze(1) - 1  # among the chains of its class
        return order[rank, labels] * self.num_classes + labels


def _check_names(state: Mapping[str, Any], stored: Mapping[str, Tensor]) -> None:
    if state.keys() != stored.keys():
        raise ValueError(
            f"'chains' should hold {', '.join(stored)}, got a checkpoint with {', '.join(state)}. Use the kind of "
            "chains of the run that was saved."
        )


def _no_chains(chains: Chains) -> RuntimeError:
    name = type(chains).__name__
    return RuntimeError(f"This {name} has no chains yet. Call 'setup(support)' first; 'fit' does it.")


def _shard(states: list[dict[str, Any]], group: int, rank: int, world_size: int) -> dict[str, Tensor]:
    """Every ``world_size``-th row of ``group`` slots (one slot of each class), starting with row ``rank``."""
    return {
        name: torch.cat([state[name].unflatten(0, (-1, group)) for state in states])[rank::world_size].flatten(0, 1)
        for name in states[0]
    }
