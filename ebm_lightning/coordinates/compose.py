"""Coordinates that are applied one after another."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ebm_lightning.coordinates.base import Coordinates
from ebm_lightning.supports import Binary, Box, Support


class Compose(Coordinates):
    r"""Several coordinates in sequence: u = T_n(... T_1(x)).

    .. math:: \log |\det dT/dx| = \sum_i \log |\det dT_i|

    The parts are fitted in order, each to the values of the previous ones, with one pass over the data for each. Values
    between parts are in float64.

    Arguments:
        parts: The coordinates, in the order in which they are applied to x.

    Raises:
        ValueError: ``parts`` is empty, or the values of one are outside the domain of the next.
    """

    def __init__(self, parts: Sequence[Coordinates]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("'parts' should hold at least one of the coordinates, got none.")
        for before, after in itertools.pairwise(parts):
            if not same_space(before.codomain, after.domain):
                raise ValueError(
                    f"'parts' should follow on one another, got {type(after).__name__} on {after.domain} after "
                    f"{type(before).__name__}, whose values are in {before.codomain}. NormalScores maps the unit box "
                    "to R^D."
                )
        self.parts = nn.ModuleList(parts)
        self.domain = parts[0].domain
        self.codomain = parts[-1].codomain

    @property
    def fitted(self) -> bool:
        return all(part.fitted for part in self._parts)

    def forward(self, x: Tensor) -> Tensor:
        return self._path(x)[-1].to(x.dtype)

    def inv(self, u: Tensor) -> Tensor:
        x = u.double()
        for part in reversed(self._parts):
            x = part.inv(x)
        return x.to(u.dtype)

    def log_abs_det_jacobian(self, x: Tensor, u: Tensor) -> Tensor:
        path = self._path(x)
        steps = [p.log_abs_det_jacobian(a, b) for p, a, b in zip(self._parts, path, path[1:], strict=False)]
        return torch.stack(steps).sum(0)

    def fit_batches(self, batches: Iterable[Tensor]) -> None:
        for i, part in enumerate(self._parts):
            part.fit(_Mapped(batches, self._parts[:i]))

    @property
    def _parts(self) -> list[Coordinates]:
        return cast(list[Coordinates], list(self.parts))

    def _path(self, x: Tensor) -> list[Tensor]:
        """x and the values after each part, in float64."""
        path = [x.double()]
        for part in self._parts:
            path.append(part(path[-1]))
        return path


class _Mapped:
    """Batches after some coordinates, in float64. Can be read as often as the batches themselves."""

    def __init__(self, batches: Iterable[Tensor], parts: Sequence[Coordinates]) -> None:
        self.batches = batches
        self.parts = parts

    def __iter__(self) -> Iterator[Tensor]:
        for x in self.batches:
            u = x.double()
            for part in self.parts:
                u = part(u)
            yield u


def same_space(one: Support, other: Support) -> bool:
    """Whether two supports are the same set: boxes with equal walls, or both R^D, or both binary, of one shape."""
    if None not in (one.shape, other.shape) and one.shape != other.shape:
        return False
    if isinstance(one, Box) and isinstance(other, Box):
        return (one.low, one.high) == (other.low, other.high)
    kinds = [Box if isinstance(s, Box) else Binary if isinstance(s, Binary) else None for s in (one, other)]
    return kinds[0] is kinds[1]
