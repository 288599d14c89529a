"""Made textures: images without an object, far from all data sets of objects."""

import math

import torch
from torch import Tensor

from ebm_lightning.supports import Box


def textures(n: int, box: Box, generator: torch.Generator) -> Tensor:
    """Gratings, checkerboards and blotches in equal parts, shape (n, C, H, W), from the lowest to the highest value.

    Frequencies, directions, phases and colors are random. Blotches are noise of random smoothness.

    Arguments:
        n: Number of images.
        box: Domain of images (C, H, W).
        generator: Source of randomness, on the CPU.
    """
    channels, height, width = box.shape
    rows = torch.arange(height).view(-1, 1) / height
    columns = torch.arange(width).view(1, -1) / width
    parts = [len(part) for part in torch.arange(n).tensor_split(3)]
    waves = [_waves(count, rows, columns, generator) for count in parts[:2]]
    noise = torch.randn(parts[2], height, width, generator=generator)
    gray = torch.cat([waves[0][0], waves[1][0].sign() * waves[1][1].sign(), _smooth(noise, generator)])[:, None]
    lowest, highest = gray.flatten(1).amin(1), gray.flatten(1).amax(1)
    gray = (gray - lowest.view(-1, 1, 1, 1)) / (highest - lowest).clamp(min=1e-6).view(-1, 1, 1, 1)
    color = 1 if channels == 1 else 0.3 + 0.7 * torch.rand(n, channels, 1, 1, generator=generator)
    return (box.low + (box.high - box.low) * gray * color).expand(n, *box.shape).contiguous()


def _waves(n: int, rows: Tensor, columns: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two waves at right angles of 1.5 to 6 periods, shape (n, H, W) each."""
    angle, frequency, phase = (torch.rand(n, 1, 1, generator=generator) for _ in range(3))
    angle, frequency, phase = math.pi * angle, 2 * math.pi * (1.5 + 4.5 * frequency), 2 * math.pi * phase
    along = columns * angle.cos() + rows * angle.sin()
    across = rows * angle.cos() - columns * angle.sin()
    return torch.sin(frequency * along + phase), torch.sin(frequency * across + phase)


def _smooth(noise: Tensor, generator: torch.Generator) -> Tensor:
    """Noise (n, H, W) without its high frequencies; the limit is random."""
    n, height, width = noise.shape
    limit = 1.2 / min(height, width) + 0.3 * torch.rand(n, 1, 1, generator=generator)
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    smooth: Tensor = torch.fft.irfft2(torch.fft.rfft2(noise) * (frequency < limit), s=(height, width))
    return smooth
