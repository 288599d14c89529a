"""R^D with a normalized Gaussian reference density."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebm_lightning.checks import check_shape, plain_numbers
from ebm_lightning.supports.base import Support
from ebm_lightning.supports.density import device_of


@dataclass(frozen=True, eq=False)
class Gaussian(Support):
    r"""R^D with a normalized diagonal Gaussian reference density.

    .. math:: q(x) = \prod_d N(x_d; mean_d, std_d^2)

    Arguments:
        mean: Mean, a number or a tensor that broadcasts to ``shape``.
        std: Standard deviation, positive, a number or a tensor that broadcasts to ``shape``.
        shape: Shape of one x.

    Raises:
        ValueError: ``std`` is not positive.
    """

    mean: float | list[float] | Tensor
    std: float | list[float] | Tensor
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        plain_numbers(self)
        object.__setattr__(self, "shape", check_shape("shape", self.shape))
        for name in ("mean", "std"):
            self._check_tensor(name, getattr(self, name))
        if not (torch.as_tensor(self.std) > 0).all():
            raise ValueError(f"'std' should be positive, got {self.std}.")

    def _check_tensor(self, name: str, value: Any) -> None:
        try:
            fits = torch.broadcast_shapes(torch.as_tensor(value).shape, self.shape) == self.shape
        except (TypeError, ValueError, RuntimeError):  # not numbers, or another shape
            fits = False
        if not fits:
            shown = f"shape {tuple(value.shape)}" if hasattr(value, "shape") else repr(value)
            raise ValueError(f"'{name}' should be a number, or numbers of shape {self.shape}, got {shown}.")

    @property
    def log_mass(self) -> float:
        return 0.0

    def log_q(self, x: Tensor) -> Tensor:
        constant = (torch.as_tensor(self.std).to(x).log() + 0.5 * math.log(2 * math.pi)).expand(self.shape).sum()
        return -0.5 * self.standardize(x).square().flatten(1).sum(1) - constant

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        z = torch.randn((n, *self.shape), generator=generator, device=device_of(generator, device))
        return self.destandardize(z)

    def standardize(self, x: Tensor) -> Tensor:
        """(x - mean) / std."""
        return (x - torch.as_tensor(self.mean).to(x)) / torch.as_tensor(self.std).to(x)

    def destandardize(self, z: Tensor) -> Tensor:
        """mean + std z."""
        return torch.as_tensor(self.mean).to(z) + torch.as_tensor(self.std).to(z) * z
