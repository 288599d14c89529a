"""Models in coordinates of one and two dimensions, and data for them, which tests share."""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import JEM, SGLD, Box, SupportInit
from ebm_lightning.coordinates import Compose, Coordinates, NormalScores, Quantiles, Whitening
from ebm_lightning.data import resumable_loader
from ebm_lightning.networks import MLP
from ebm_lightning.samplers import Sampler, State
from tests.coordinates.kinds import midpoints
from tests.helpers import jem

BOX = Box(-1, 1, (2,))
LINE = Box(-2, 2, (1,))
N = 4000


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def net(in_features: int = 2, scale: float = 3.0, dtype: torch.dtype = torch.float32) -> MLP:
    """A classifier whose density in u is far from uniform."""
    torch.manual_seed(0)
    network = MLP(in_features, 3, (16,)).to(dtype)
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(scale)
    return network


def points(n: int, generator: torch.Generator, low: float = -0.9, high: float = 0.3) -> TensorDataset:
    """Labeled points with most of their mass at the lower end of [low, high]^2."""
    x = low + (high - low) * torch.rand(n, 2, generator=generator).square()
    return TensorDataset(x, torch.randint(3, (n,), generator=generator))


class Data(L.LightningDataModule):
    """Training data in [-0.9, 0.3], and other data elsewhere. Counts its loaders; may add noise to each batch."""

    def __init__(self, noisy: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.train, self.other = points(66, generator), points(24, generator, 0.4, 0.9)
        self.noisy = noisy
        self.loaders = 0

    def train_dataloader(self) -> DataLoader:
        self.loaders += 1
        return resumable_loader(self.train, 16, self.trainer, collate_fn=self.collate)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.other, 12, generator=torch.Generator())

    test_dataloader = val_dataloader

    def collate(self, items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        x, y = (torch.stack(part) for part in zip(*items, strict=True))
        return (BOX.reflect(x + 0.05 * torch.randn(x.shape)) if self.noisy else x), y

    @property
    def x(self) -> Tensor:
        return self.train.tensors[0]


def model(coordinates: Coordinates | None = None, **arguments: Any) -> JEM:
    settings = {"support": None, "sampler": SGLD(0.01, 0.05, 2), "coordinates": coordinates or Quantiles(BOX, 8)}
    return jem(net(), **(settings | arguments))


def copula() -> Compose:
    return Compose([Quantiles(BOX, 8), NormalScores((2,)), Whitening((2,))])


def same_coordinates(one: Coordinates, other: Coordinates) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Batches:
    """An iterable of batches that is not a DataLoader."""

    def __init__(self, *batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


def line_model(**arguments: Any) -> JEM:
    """One dimension, 8 levels of very different widths in u."""
    x = -2 + 4 * torch.rand(500, 1, generator=torch.Generator().manual_seed(0)).square()
    coordinates = Quantiles(LINE, 8).fit(x)
    settings = {"support": None, "chains": SupportInit(), "coordinates": coordinates, "seed": 0, "energy_l2": 0.0}
    return JEM(net(1), 3, **(settings | arguments))


class Exact(Sampler):
    """Samples of exp(-E) on [0, 1] at even quantiles."""

    steps = 1

    def transitions(self, energy, x, support, generator):
        grid, _ = midpoints(0, 1, 4000, 1)
        mass = (-energy(grid)).softmax(0).cumsum(0)
        cell = torch.searchsorted(mass, (torch.arange(N, dtype=torch.float64) + 0.5) / N).clamp(max=3999)
        yield State(grid[cell], mass[:N], grid[cell])


def gradient(loss: Tensor, module: JEM) -> Tensor:
    grads = torch.autograd.grad(loss, list(module.classifier.parameters()), allow_unused=True)
    pairs = zip(module.classifier.parameters(), grads, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])
