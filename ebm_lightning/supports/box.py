"""The box [low, high]^D, for images."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm_lightning.checks import check_kind, check_number, check_shape, plain_numbers
from ebm_lightning.supports.base import Support
from ebm_lightning.supports.density import Density, device_of

FILLED = 0.51  # of the width of a box: data that fill less deserve a warning, as pixels in [0, 1] in [-1, 1] do
MANY = 32  # values: fewer say little about the range of the data
EXCESS = 0.05  # of the width, beyond the walls: more is another scale


@dataclass(frozen=True)
class Box(Support):
    r"""The box [low, high]^D with Lebesgue measure, for scaled images.

    .. math:: q(x) = 1 \text{ for } x \in [low, high]^D, \text{ else } 0

    Data must be inside the box. The energy outside is infinite.

    Arguments:
        low: Lower wall, in the units of x.
        high: Upper wall.
        shape: Shape of one x.
        reference: A density on the box that replaces the uniform q, such as ``Normal.fit(data, box)``.

    Raises:
        ValueError: ``low`` is not below ``high``, or ``reference`` is not truncated to this box.
    """

    low: float
    high: float
    shape: tuple[int, ...]
    reference: Density | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        for name in ("low", "high"):
            check_number(name, getattr(self, name), remedy="A box has the same walls in all components: rescale x.")
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"'low' should be finite and below 'high', got low={self.low}, high={self.high}.")
        object.__setattr__(self, "shape", check_shape("shape", self.shape))
        check_kind("reference", self.reference, Density, optional=True)
        box = None if self.reference is None else self.reference.box
        if self.reference is not None and (box is None or (box.low, box.high) != (self.low, self.high)):
            raise ValueError(
                f"'reference' should be truncated to the box [{self.low:g}, {self.high:g}], got "
                f"{type(self.reference).__name__} with box={box}. Use Normal(mean, std, Box(low, high, shape))."
            )

    @property
    def constant(self) -> bool:
        return self.reference is None

    @property
    def log_mass(self) -> float:
        return 0.0 if self.reference else math.prod(self.shape) * math.log(self.high - self.low)

    def contains(self, x: Tensor) -> Tensor:
        """Whether each row of ``x`` is inside the box, shape (N,), bool."""
        rows = x.detach().flatten(1)  # the row extremes: a mask of every pixel takes ten times as long
        return (rows.amin(1) >= self.low) & (rows.amax(1) <= self.high)

    def log_q(self, x: Tensor) -> Tensor:
        log_q = x.new_zeros(len(x)) if self.reference is None else self.reference.log_prob(x).to(x.dtype)
        return log_q.masked_fill(~self.contains(x), -math.inf)

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        if self.reference is not None:
            return self.clamp(self.reference.sample(n, labels=labels, generator=generator, device=device))
        u = torch.rand((n, *self.shape), generator=generator, device=device_of(generator, device))
        return self.clamp(self.low + (self.high - self.low) * u)

    def reflect(self, x: Tensor) -> Tensor:
        # floor, in place: torch.remainder gives the same digits five times slower.
        width = self.high - self.low
        phase = x - self.low
        phase.sub_((phase / (2 * width)).floor_(), alpha=2 * width)
        mirrored = phase.sub_(width).abs_().neg_().add_(self.high)
        return mirrored.clamp_(self.low, self.high)  # rounding may leave it just outside

    def bounce(self, x: Tensor) -> tuple[Tensor, Tensor]:
        walls_met = ((x - self.low) / (self.high - self.low)).floor_()
        odd = walls_met - 2 * (walls_met / 2).floor_()
        return self.reflect(x), 1 - 2 * odd

    def clamp(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)

    def check(self, x: Tensor, name: str = "x") -> None:
        super().check(x, name)
        smallest, largest = (v.item() for v in torch.aminmax(x.detach())) if x.numel() else (self.low, self.high)
        if smallest < self.low or largest > self.high:
            raise ValueError(
                f"'{name}' should be in the box [{self.low:g}, {self.high:g}], got values in "
                f"[{smallest:.4g}, {largest:.4g}]. {self._remedy(smallest, largest)}"
            )

    def unused(self, x: Tensor) -> str:
        """What is wrong if a batch fills less than :data:`FILLED` of the width of the box; empty if nothing is."""
        low, high = (v.item() for v in torch.aminmax(x.detach()))
        if self.reference is not None or x.numel() < MANY or (high - low) >= FILLED * (self.high - self.low):
            return ""
        share = (high - low) / (self.high - self.low)
        pixels = low >= 0 and high <= 1 and (self.low, self.high) != (0, 1)
        remedy = f"Use {self._scaled('x')} on these pixels in [0, 1], or " if pixels else "Scale the data, or "
        box = f"Box({0 if pixels else float(f'{low:.3g}'):g}, {1 if pixels else float(f'{high:.3g}'):g}, {self.shape})"
        return (
            f"'support' is the box [{self.low:g}, {self.high:g}], and the first batch has values in [{low:.4g}, "
            f"{high:.4g}], {share:.0%} of it: most chains start where there are never data. {remedy}use a box that "
            f"fits, such as {box}."
        )

    def _scaled(self, x: str) -> str:
        return f"{x} * {self.high - self.low:g} {'-' if self.low < 0 else '+'} {abs(self.low):g}"

    def _remedy(self, smallest: float, largest: float) -> str:
        target = f"[{self.low:g}, {self.high:g}]"
        if max(self.low - smallest, largest - self.high) <= EXCESS * (self.high - self.low):
            return f"A small excess comes from bicubic resizing or rounding: use x.clamp({self.low:g}, {self.high:g})."
        if smallest >= 0 and 1 < largest <= 255:
            return f"These look like 8-bit pixels: use {self._scaled('x / 255')}."
        if smallest >= 0 and largest <= 1:
            return f"These look like pixels in [0, 1]: use {self._scaled('x')}."
        if smallest >= -2.2 and largest <= 2.7:
            return (
                f"These look like ImageNet-normalized pixels: map [0, 1] to {target} instead, and make the "
                "normalization the first layer of the classifier."
            )
        return f"Scale the data to {target}, or widen the box."
