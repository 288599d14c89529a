"""Rings in the plane, whose density is known."""

import math
from collections.abc import Sequence

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning.data.loading import resumable_loader
from ebm_lightning.streams import make_generator
from ebm_lightning.supports import Box


class Rings(L.LightningDataModule):
    r"""Concentric rings in the plane, one class each, equally likely.

    .. math:: x = r_y (\cos \phi, \sin \phi) + noise \cdot \xi, \qquad \phi \sim U[0, 2 \pi), \xi \sim N(0, I)

    Points beyond the box are reflected into it.

    Arguments:
        radii: r_y of each class.
        noise: Standard deviation across the ring, in units of x.
        half_width: The box is [-half_width, half_width]^2.
        size: Points for training; a quarter as many for validation and for test.
        batch_size: Points in a batch.
        seed: Of the points.
    """

    def __init__(
        self,
        radii: Sequence[float] = (1.0, 2.0, 3.0),
        noise: float = 0.15,
        half_width: float = 4.0,
        size: int = 8192,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.radii = tuple(radii)
        self.noise = noise
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.num_classes = len(self.radii)
        self.support = Box(-half_width, half_width, (2,))

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``n`` points, shape (n, 2), and their rings (n,)."""
        y = torch.randint(self.num_classes, (n,), generator=generator)
        phi = 2 * math.pi * torch.rand(n, generator=generator)
        x = torch.tensor(self.radii)[y, None] * torch.stack([phi.cos(), phi.sin()], 1)
        return self.support.reflect(x + self.noise * torch.randn(n, 2, generator=generator)), y

    def log_prob(self, x: Tensor) -> Tensor:
        """The points' true log density, shape (N,), in nats, up to the mass beyond the walls."""
        radius, variance = x.norm(dim=1, keepdim=True), self.noise**2
        r = torch.tensor(self.radii)
        log_bessel = torch.special.i0e(radius * r / variance).log()
        by_ring = log_bessel - (radius - r).square() / (2 * variance) - math.log(2 * math.pi * variance)
        return by_ring.logsumexp(1) - math.log(self.num_classes)

    def setup(self, stage: str | None = None) -> None:
        sizes = {"train": self.size, "val": self.size // 4, "test": self.size // 4}
        sets = {name: TensorDataset(*self.sample(n, make_generator(self.seed, name))) for name, n in sizes.items()}
        self.train, self.val, self.test = sets["train"], sets["val"], sets["test"]

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return resumable_loader(self.train, self.batch_size, self.trainer)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.val, 1024, generator=torch.Generator())

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.test, 1024, generator=torch.Generator())
