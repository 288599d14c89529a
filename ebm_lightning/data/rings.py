"""Concentric rings in the plane: a toy data set with a known density."""

import math
from collections.abc import Sequence

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning.data.resumable_loader import resumable_loader
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Box


class Rings(L.LightningDataModule):
    r"""Concentric rings in the plane. Each ring is a class, and all are equally likely.

    .. math:: x = r_y (\cos \phi, \sin \phi) + noise \cdot \xi, \qquad \phi \sim U[0, 2 \pi), \xi \sim N(0, I)

    Points outside the box are reflected into it.

    Arguments:
        radii: r_y of each class.
        noise: Standard deviation of the Gaussian noise, in units of x.
        half_width: The box is [-half_width, half_width]^2.
        size: Number of training points; validation and test have a quarter as many each.
        batch_size: Points in a batch.
        seed: Seed of the points.
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
        self.half_width = half_width
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.num_classes = len(self.radii)
        self.support = Box(-half_width, half_width, (2,))

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``n`` points, shape (n, 2), and their classes, shape (n,)."""
        y = torch.randint(self.num_classes, (n,), generator=generator)
        phi = 2 * math.pi * torch.rand(n, generator=generator)
        x = torch.tensor(self.radii)[y, None] * torch.stack([phi.cos(), phi.sin()], 1)
        return self.support.reflect(x + self.noise * torch.randn(n, 2, generator=generator)), y

    def log_prob(self, x: Tensor) -> Tensor:
        """True log density, shape (N,), in nats. It neglects the reflection at the walls of the box."""
        radius, variance = x.norm(dim=1, keepdim=True), self.noise**2
        r = torch.tensor(self.radii)
        log_bessel = torch.special.i0e(radius * r / variance).log()
        per_ring = log_bessel - (radius - r).square() / (2 * variance) - math.log(2 * math.pi * variance)
        return per_ring.logsumexp(1) - math.log(self.num_classes)

    def setup(self, stage: str | None = None) -> None:
        sizes = {"train": self.size, "val": self.size // 4, "test": self.size // 4}
        sets = {name: TensorDataset(*self.sample(n, make_generator(self.seed, name))) for name, n in sizes.items()}
        self.train, self.val, self.test = sets["train"], sets["val"], sets["test"]

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return resumable_loader(self.train, self.batch_size, self.trainer)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.val, batch_size=1024, generator=torch.Generator())

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.test, batch_size=1024, generator=torch.Generator())

    predict_dataloader = test_dataloader
