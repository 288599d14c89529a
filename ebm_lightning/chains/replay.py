"""Persistent chains, kept in slots between the batches that they are drawn for."""

from typing import Any

import torch
from torch import Tensor

from ebm_lightning.chains.base import Chains
from ebm_lightning.starts import Start, first_places
from ebm_lightning.supports import Binary, Support


class ReplayBuffer(Chains):
    r"""Persistent chains (PCD): each draw goes on where the slots' chains last ended.

    With probability ``reinit_prob`` a chain starts anew from ``start``; 1 gives short-run chains, 0 chains that live
    for ever. Slots are drawn without replacement: two chains never share one. Class c owns the slots c, c + K,
    c + 2K, ... for life.

    References:
        Tieleman, Training restricted Boltzmann machines using approximations to the likelihood gradient, 2008.
        Du & Mordatch, Implicit generation and modeling with energy based models, 2019.
        https://arxiv.org/abs/1903.08689

    Arguments:
        size: Number of chains on each rank; at least the batch size. JEM uses 10 000. A run that goes on with fewer
            ranks keeps every chain, so that its buffers grow, see :meth:`deal`.
        reinit_prob: Probability that a drawn chain starts anew.
        start: Where chains begin and begin anew, those of a class in their class: by default, and in JEM, the support's
            reference density; in JEM++ ``ClassGaussians()``.

    Raises:
        ValueError: ``size`` below 1, or ``reinit_prob`` outside [0, 1].
    """

    def __init__(self, size: int = 10_000, reinit_prob: float = 0.05, start: Start | None = None) -> None:
        if size < 1:
            raise ValueError(f"'size' should be at least 1, got {size}.")
        if not 0 <= reinit_prob <= 1:
            raise ValueError(f"'reinit_prob' should be in [0, 1], got {reinit_prob}.")
        self.size = size
        self.reinit_prob = reinit_prob
        self.start = start
        self.num_classes: int | None = None
        self._x: Tensor | None = None
        self._age: Tensor | None = None

    def setup(self, support: Support, num_classes: int | None = None, generator: torch.Generator | None = None) -> None:
        """Fill every slot with a draw of ``start``, on the generator's device.

        Raises:
            ValueError: The support has no finite mass to start in, ``start`` is given on :class:`Binary`, or ``size``
                is not a multiple of ``num_classes``.
            RuntimeError: ``start`` is not fitted yet.
        """
        if self.start is not None and isinstance(support, Binary):
            raise ValueError(
                f"'start' should be None on Binary, whose points have nothing between them, got "
                f"{type(self.start).__name__}. Drop it, or use a Box."
            )
        if num_classes is not None and self.size % num_classes:
            raise ValueError(
                f"'size' should be a multiple of the {num_classes} classes for class-conditional chains, "
                f"got {self.size}. Use {max(1, self.size // num_classes) * num_classes}."
            )
        self.support, self.num_classes = support, num_classes
        device = None if generator is None else generator.device
        self._x = self._fresh(self.size, self._labels(torch.arange(self.size, device=device)), generator, device)
        self._age = torch.zeros(self.size, dtype=torch.long, device=self._x.device)

    @property
    def x(self) -> Tensor:
        """All chains, shape (size, *shape). To look at: drawing and storing is what moves them."""
        if self._x is None:
            raise RuntimeError("This ReplayBuffer has no chains yet. Call 'setup(support)' first; 'fit' does it.")
        return self._x

    @property
    def age(self) -> Tensor:
        """How often each slot was stored since its chain last started anew, shape (size,)."""
        if self._age is None:
            raise RuntimeError("This ReplayBuffer has no chains yet. Call 'setup(support)' first; 'fit' does it.")
        return self._age

    def draw(
        self,
        n: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        data: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Starts (n, *shape) and their slots (n,), all different.

        Raises:
            ValueError: More chains are asked for than there are, of some class or in all, or ``labels`` are given to
                a buffer that has no classes, or not given to one that has.
        """
        index = self._slots(n, generator) if labels is None else self._slots_of(labels, generator)
        x = self.x[index]
        restart = torch.rand(n, generator=generator, device=x.device) < self.reinit_prob
        fresh = self._fresh(n, labels, generator, x.device)
        self.age[index] = self.age[index].masked_fill(restart, 0)
        return torch.where(restart.view(-1, *[1] * (x.ndim - 1)), fresh, x), index

    def store(self, index: Tensor | None, x: Tensor) -> None:
        if index is None:
            raise ValueError("'index' should be the slots that 'draw' returned, got None.")
        self.x[index] = x.detach().to(self.x.dtype)
        self.age[index] += 1

    def restart(self, index: Tensor | None, generator: torch.Generator | None = None) -> None:
        if index is not None:
            self.x[index] = self._fresh(len(index), self._labels(index), generator, self.x.device)
            self.age[index] = 0

    def state_dict(self) -> dict[str, Any]:
        return {"x": self.x.clone(), "age": self.age.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back chains of the same number and shape, onto the device of the present ones.

        Raises:
            ValueError: The number or shape of the chains differs.
        """
        if state["x"].shape != self.x.shape:
            raise ValueError(
                f"'state' should hold chains of shape {tuple(self.x.shape)}, got {tuple(state['x'].shape)}. "
                "Use the 'size' and 'support' of the run that was saved."
            )
        self._x, self._age = state["x"].to(self.x), state["age"].to(self.age)

    def deal(self, shares: list[dict[str, Any]], rank: int, world_size: int) -> None:
        """Take this rank's share of a saved run's chains: each chain of it goes to one rank, with its age and class.

        On as many ranks as before each takes back its own. On another number the chains are dealt out in turn, those of
        one class staying that class's. A share larger than ``size`` enlarges the buffer; what a smaller one leaves free
        keeps the fresh chains of :meth:`setup`. So 2 ranks of 21 chains make 1 of 42, or 4 of which 42 slots go on.

        Raises:
            ValueError: The chains have another shape, or were saved for another number of classes.
        """
        shape, group = self.x.shape[1:], self.num_classes or 1
        for share in shares:
            if share["x"].shape[1:] != shape or len(share["x"]) % group:
                raise ValueError(
                    f"'chains' should go on with chains of shape {tuple(shape)} in multiples of {group}, got a "
                    f"checkpoint with {tuple(share['x'].shape)}. Use the 'support' and 'num_classes' that were saved."
                )
        mine = shares[rank] if len(shares) == world_size else _turns(shares, group, rank, world_size)
        kept = len(mine["x"])
        self._x = torch.cat([mine["x"].to(self.x), self.x[kept:]])
        self._age = torch.cat([mine["age"].to(self.age), self.age[kept:]])
        self.size = len(self._x)

    def _fresh(
        self, n: int, labels: Tensor | None, generator: torch.Generator | None, device: torch.device | None
    ) -> Tensor:
        """First places of ``n`` chains, in the support."""
        assert self.support is not None
        return first_places(self.start, self.support, n, labels, generator, device)

    def _labels(self, slots: Tensor) -> Tensor | None:
        """The classes that own ``slots``, where chains have one."""
        return None if self.num_classes is None else slots % self.num_classes

    def _slots(self, n: int, generator: torch.Generator | None) -> Tensor:
        if self.num_classes is not None:
            raise ValueError("'labels' should be given to a buffer of class-conditional chains, got None.")
        if n > self.size:
            raise ValueError(f"'size' should be at least the batch size {n}, got a buffer of {self.size}. Enlarge it.")
        return torch.randperm(self.size, generator=generator, device=self.x.device)[:n]

    def _slots_of(self, labels: Tensor, generator: torch.Generator | None) -> Tensor:
        """For each label a slot of that class: the i-th chain of a class takes the i-th of its shuffled slots."""
        if self.num_classes is None:
            raise ValueError("'labels' should be None: this buffer was set up without 'num_classes'.")
        per_class = self.size // self.num_classes
        counts = torch.nn.functional.one_hot(labels, self.num_classes).cumsum(0)
        if len(labels) > per_class and int(counts[-1].max()) > per_class:
            raise ValueError(
                f"'size' should give each class as many chains as a batch has of it ({int(counts[-1].max())}), "
                f"got {per_class} for each of {self.num_classes} classes. Enlarge it."
            )
        order = torch.rand(per_class, self.num_classes, generator=generator, device=self.x.device).argsort(0)
        turn = counts.gather(1, labels[:, None]).squeeze(1) - 1
        return order[turn, labels] * self.num_classes + labels


def _turns(shares: list[dict[str, Any]], group: int, rank: int, world_size: int) -> dict[str, Tensor]:
    """Every ``world_size``-th row of ``group`` slots, one slot of each class, from ``rank`` on."""
    return {
        name: torch.cat([share[name].unflatten(0, (-1, group)) for share in shares])[rank::world_size].flatten(0, 1)
        for name in ("x", "age")
    }
