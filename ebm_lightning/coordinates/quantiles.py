"""Coordinates in which each component of the data is uniform: its cumulative histogram."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ebm_lightning.checks import check_integer, check_number
from ebm_lightning.coordinates.base import Coordinates
from ebm_lightning.coordinates.row_sample import row_sample
from ebm_lightning.supports import Box, Euclidean


class Quantiles(Coordinates):
    r"""Each component is mapped by its own piecewise linear cumulative distribution function to [0, 1].

    .. math:: u_d = F_d(x_d), \qquad q(x) = \prod_d F_d'(x_d)

    With a uniform density of u, the reference density q(x) is the product of the histograms of the components, which
    the model then tilts. Chains cross a gray level that is common in wide steps, and one that is rare in narrow ones.

    - Data with integer levels, dequantized into a box: pass ``num_levels``. One cell per level, filled from counts.
    - Continuous data: the cells have equal numbers of data, from a random sample of at most 20 000 rows. In R^D the two
      outer cells have exponential tails.

    .. math:: mass_d(k) \propto counts_d(k) + smoothing \, (0.95 \, \overline{counts}(k) + 0.05 / cells)

    where the average is over the components, and uniform for continuous data. Smoothing gives levels that were never
    seen a positive mass.

    Arguments:
        domain: Where x is: a box, or all of R^D for continuous data.
        num_levels: Number Q of integer levels before dequantization, such as 256. None for continuous data.
        cells: Cells of continuous data.
        smoothing: Number of pseudo-counts that are added to each component; by default one per cell.

    Raises:
        ValueError: A number is out of range, ``num_levels`` is given without a box, or ``domain`` has no shape.
    """

    knots: Tensor
    cumulative: Tensor
    tail_scale: Tensor

    def __init__(
        self,
        domain: Box | Euclidean,
        num_levels: int | None = None,
        *,
        cells: int = 64,
        smoothing: float | None = None,
    ) -> None:
        super().__init__()
        check_integer("num_levels", num_levels, at_least=2, optional=True)
        check_integer("cells", cells, at_least=4)
        check_number("smoothing", smoothing, above=0, optional=True)
        if not isinstance(domain, Box | Euclidean) or domain.shape is None:
            raise ValueError(f"'domain' should be a Box or Euclidean with a shape, got {domain}.")
        if num_levels is not None and not isinstance(domain, Box):
            raise ValueError(f"'domain' should be the Box of the levels, got {type(domain).__name__}.")
        self.domain = domain
        self.codomain = Box(0.0, 1.0, domain.shape)
        self.num_levels = num_levels
        self.cells = cells
        self.smoothing = smoothing
        size, n = math.prod(domain.shape), num_levels or cells
        self.register_buffer("knots", torch.zeros(size if num_levels is None else 1, n + 1, dtype=torch.float64))
        self.register_buffer("cumulative", torch.zeros(size, n + 1, dtype=torch.float64))
        self.register_buffer("tail_scale", torch.ones(size, 2, dtype=torch.float64))

    @property
    def fitted(self) -> bool:
        return bool(self.cumulative[0, -1] > 0)

    @property
    def unbounded(self) -> bool:
        """Whether the outer cells are exponential tails."""
        return not isinstance(self.domain, Box)

    def forward(self, x: Tensor) -> Tensor:
        self.check_fitted()
        values = x.flatten(1).double().T
        cell = self._cell(values, self.knots)
        start, slope = self._at(self.cumulative, cell), self._slope(cell)
        u = start + slope * (values - self._at(self.knots, cell))
        if self.unbounded:
            u = self._with_tails(values, cell, u)
        return u.clamp(0, 1).T.reshape(x.shape).to(x.dtype)

    def inv(self, u: Tensor) -> Tensor:
        self.check_fitted()
        values = u.flatten(1).double().T.clamp(0, 1)
        cell = self._cell(values, self.cumulative)
        x = self._at(self.knots, cell) + (values - self._at(self.cumulative, cell)) / self._slope(cell)
        if self.unbounded:
            x = self._with_inverse_tails(values, cell, x)
        return self.domain.clamp(x.T.reshape(u.shape).to(u.dtype))

    def log_abs_det_jacobian(self, x: Tensor, u: Tensor) -> Tensor:
        self.check_fitted()
        values = x.flatten(1).double().T
        cell = self._cell(values, self.knots)
        log_slope = self._slope(cell).log()
        if self.unbounded:
            low, high = cell == 0, cell == self.cells - 1
            beyond, mass, scale = self._tail(values, high)
            log_slope = torch.where(low | high, (mass / scale).log() - beyond / scale, log_slope)
        return log_slope.sum(0)

    def fit_batches(self, batches: Iterable[Tensor]) -> None:
        if self.num_levels is None:
            self._fit_continuous(batches)
        else:
            self._fit_levels(batches)

    # Fitting.

    def _fit_levels(self, batches: Iterable[Tensor]) -> None:
        levels, size = self.num_levels or 0, len(self.cumulative)
        assert isinstance(self.domain, Box)
        edges = torch.linspace(self.domain.low, self.domain.high, levels + 1, dtype=torch.float64)
        offset = levels * torch.arange(size)
        counts = torch.zeros(size * levels, dtype=torch.float64)
        for x in batches:
            cell = self._cell(x.flatten(1).double().cpu(), edges[None]) + offset
            counts += torch.bincount(cell.flatten(), minlength=size * levels)
        counts = counts.to(self.knots.device).view(size, levels)
        self.knots.copy_(edges[None])
        self._set_cumulative(counts, counts.mean(0))

    def _fit_continuous(self, batches: Iterable[Tensor]) -> None:
        rows, n = row_sample(batches).to(self.knots.device), self.cells
        if len(rows) < n:
            raise ValueError(f"'cells' should be at most the number of data, got {n} for {len(rows)}. Use fewer.")
        rows = rows.sort(0).values
        inner = torch.linspace(0, 1, n + 1, dtype=torch.float64, device=rows.device)
        knots = torch.stack([rows[i] for i in ((len(rows) - 1) * inner).round().long().tolist()], 1)
        if isinstance(self.domain, Box):
            knots[:, 0], knots[:, -1] = self.domain.low, self.domain.high
        self.knots.copy_(_spread(knots))
        cell = self._cell(rows.T.contiguous(), self.knots)
        counts = torch.zeros(len(knots), n, dtype=torch.float64, device=rows.device)
        counts.scatter_add_(1, cell, torch.ones_like(cell, dtype=torch.float64))
        self._set_cumulative(counts, torch.full((n,), len(rows) / n, dtype=torch.float64, device=rows.device))
        # Tails: the mean excess over the inner knot is the maximum likelihood estimate of an exponential's scale.
        inner_knots = self.knots[:, [1, -2]]
        excess = torch.stack([(inner_knots[:, 0] - rows).clamp(min=0), (rows - inner_knots[:, 1]).clamp(min=0)], 2)
        mean_excess = excess.sum(0) / (excess > 0).sum(0).clamp(min=1)
        floor = 1e-3 * (self.knots[:, -1] - self.knots[:, 0])[:, None]
        self.tail_scale.copy_(torch.maximum(mean_excess, floor))

    def _set_cumulative(self, counts: Tensor, average: Tensor) -> None:
        """Smoothed masses of the cells, from counts (D, cells) and the average over components (cells,)."""
        n = counts.shape[1]
        added = float(n if self.smoothing is None else self.smoothing)
        mass = counts + added * (0.95 * average / average.sum() + 0.05 / n)
        cumulative = (mass / mass.sum(1, keepdim=True)).cumsum(1)
        self.cumulative[:, 0] = 0
        self.cumulative[:, 1:] = cumulative / cumulative[:, -1:]

    # Cells. All tensors are (D, N): components in rows.

    def _cell(self, values: Tensor, knots: Tensor) -> Tensor:
        """Index of the cell that contains each value."""
        knots = knots[0] if len(knots) == 1 else knots
        cell = torch.searchsorted(knots.contiguous(), values.detach().contiguous(), right=True) - 1
        return cell.clamp(0, knots.shape[-1] - 2)

    def _at(self, table: Tensor, cell: Tensor) -> Tensor:
        return table[0][cell] if len(table) == 1 else table.gather(1, cell)

    def _slope(self, cell: Tensor) -> Tensor:
        mass = self._at(self.cumulative, cell + 1) - self._at(self.cumulative, cell)
        return mass / (self._at(self.knots, cell + 1) - self._at(self.knots, cell))

    def _tail(self, values: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distance beyond the inner knot of the outer cell, mass of the cell and scale of its exponential."""
        knots, cumulative, scale = self.knots, self.cumulative, self.tail_scale
        beyond = torch.where(high, values - knots[:, -2, None], knots[:, 1, None] - values)
        mass = torch.where(high, 1 - cumulative[:, -2, None], cumulative[:, 1, None])
        return beyond, mass, torch.where(high, scale[:, 1, None], scale[:, 0, None])

    def _with_tails(self, values: Tensor, cell: Tensor, u: Tensor) -> Tensor:
        low, high = cell == 0, cell == self.cells - 1
        beyond, mass, scale = self._tail(values, high)
        left = mass * torch.exp(-beyond.clamp(min=0) / scale)
        return torch.where(low, left, torch.where(high, 1 - left, u))

    def _with_inverse_tails(self, values: Tensor, cell: Tensor, x: Tensor) -> Tensor:
        low, high = cell == 0, cell == self.cells - 1
        _, mass, scale = self._tail(values, high)
        left = torch.where(high, 1 - values, values).clamp(min=1e-30)
        beyond = scale * (mass / left).log()
        low_x, high_x = self.knots[:, 1, None] - beyond, self.knots[:, -2, None] + beyond
        return torch.where(low, low_x, torch.where(high, high_x, x))


def _spread(knots: Tensor) -> Tensor:
    """Knots (D, K + 1) that increase by at least 1e-4 of an average cell, where data repeat a value.

    A component that is constant gets cells of unit width in total.
    """
    width = knots[:, -1:] - knots[:, :1]
    width = torch.where(width > 0, width, torch.ones_like(width))
    steps = torch.arange(knots.shape[1], dtype=knots.dtype, device=knots.device)
    least = 1e-4 * width / (knots.shape[1] - 1) * steps
    spread = (knots - least).cummax(1).values + least
    # Rescale to the same ends, which a wall may be.
    spread = knots[:, :1] + (spread - spread[:, :1]) * width / (spread[:, -1:] - spread[:, :1])
    apart = (knots.diff(dim=1) >= least[:, 1:2]).all(1, keepdim=True)
    return torch.where(apart, knots, spread)  # without rounding errors, which would move data across knots
