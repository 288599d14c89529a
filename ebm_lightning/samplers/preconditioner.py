"""Linear preconditioners of exact kernels: a step size for each component, and for correlated targets a turn."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Turn:
    r"""A symmetric positive definite matrix R = 1 + A B that acts on flattened points, or R = 1 + A if B is None.

    Attributes:
        left: A, shape (D, D), or (D, rank) with ``right``.
        right: B, shape (rank, D), or None.
    """

    left: Tensor
    right: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """R x for each row of ``x``, shape (N, *shape)."""
        flat = x.flatten(1)
        change = flat @ self.left if self.right is None else flat @ self.left @ self.right
        return (flat + change).view_as(x)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Turn":
        right = None if self.right is None else self.right.to(device, dtype)
        return Turn(self.left.to(device, dtype), right)


@dataclass(frozen=True)
class TurnedStep:
    r"""A step that turns: it moves x by S R v, and the momentum by R S times the force, with S = diag(step).

    In the coordinates (S R)^-1 x this is the plain leapfrog step of length 1, so the move stays volume-preserving and
    reversible. It is valid only where chains do not reflect at walls.

    Attributes:
        step: Shape (*shape).
        turn: R.
    """

    step: Tensor
    turn: Turn

    def displacement(self, v: Tensor) -> Tensor:
        """Change of x in one leapfrog step with momentum ``v``, shape (N, *shape)."""
        return self.step * self.turn(v)

    def impulse(self, force: Tensor) -> Tensor:
        """Change of the momentum in one leapfrog step under ``force``, shape (N, *shape)."""
        return self.turn(self.step * force)
