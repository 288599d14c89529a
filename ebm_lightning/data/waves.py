"""Synthetic series of three classes: sine, square and triangle waves."""

import math

import torch
from torch import Tensor

from ebm_lightning.data.table import Rows


class Waves(Rows):
    """Sine, square and triangle waves of random phase and frequency, with noise: 1500 series of 32 steps.

    The splits and the scaling are those of :class:`~ebm_lightning.data.Table`.

    Arguments:
        batch_size: Series in a batch.
        split_seed: Seed of the series and of the split.
    """

    def __init__(self, batch_size: int = 100, split_seed: int = 0) -> None:
        super().__init__(32, 3, batch_size, split_seed)

    def read(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.split_seed)
        y = torch.randint(3, (1500,), generator=generator)
        periods, phase = (torch.rand(1500, 1, generator=generator) for _ in range(2))
        sine = torch.sin(2 * math.pi * (torch.linspace(0, 1, 32) * (2 + periods) + phase))
        shapes = torch.stack([sine, sine.sign(), 2 / math.pi * torch.asin(sine)], 1)
        return shapes[torch.arange(1500), y] + 0.2 * torch.randn(1500, 32, generator=generator), y
