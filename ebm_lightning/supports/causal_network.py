"""The network of an autoregressive density: what each pixel's window of earlier pixels says about its gray level."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ebm_lightning.supports.causal_window import CausalWindow
from ebm_lightning.supports.exact_buffers import ExactBuffers
from ebm_lightning.supports.full_float32 import full_float32


class CausalNetwork(ExactBuffers):
    """Two hidden layers over a window of earlier pixels. The weights are the same for all pixels, the biases are not.

    Weights are buffers: the optimizer of a model that contains the network does not train them.

    Arguments:
        window: What each pixel sees.
        features: Numbers that describe the gray level of each channel.
        width: Width of the first hidden layer; the second has half.
        outputs: Outputs of each pixel and channel.
        linear: Add a linear map of the first hidden layer, before its activation function, to the outputs.
    """

    window_weight: Tensor
    position: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor
    out_weight: Tensor
    out_position: Tensor
    linear_weight: Tensor

    def __init__(self, window: CausalWindow, features: int, width: int, outputs: int, *, linear: bool = False) -> None:
        super().__init__()
        self.window, self.features, self.width = window, features, width
        channels, height, breadth = window.shape
        half, kernel, places = width // 2, (window.radius + 1, 2 * window.radius + 1), height * breadth
        shapes: dict[str, tuple[int, ...]] = {
            "window_weight": (channels * width, channels * features, *kernel),
            "position": (channels, places, width),
            "hidden_weight": (channels, width, half),
            "hidden_bias": (channels, half),
            "out_weight": (channels, half, outputs),
            "out_position": (channels, places, outputs),
        }
        if linear:
            shapes["linear_weight"] = (channels, width, outputs)
        self.linear = linear
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    def initial_weights(self, generator: torch.Generator) -> list[Tensor]:
        """All weights, with gradients: normal with variance 1 / inputs, and biases of 0."""
        weights = []
        for name, weight in self.named_buffers():
            inputs = math.prod(weight.shape[1:]) if name == "window_weight" else weight.shape[1]
            noise = torch.randn(weight.shape, generator=generator) / math.sqrt(inputs)
            weight.copy_(noise if name.endswith("weight") else torch.zeros(weight.shape))
            weights.append(weight.requires_grad_())
        return weights

    def forward(self, images: Tensor) -> Tensor:
        """Outputs of all pixels at once, shape (N, C, H * W, outputs), from features (N, C * features, H, W)."""
        r = self.window.radius
        images = F.pad(images, (r, r, r, 0)).contiguous(memory_format=torch.channels_last)
        with full_float32(images.device.type):
            seen = F.conv2d(images, self._masked_window()).permute(0, 2, 3, 1).flatten(1, 2)
            parts = [self.head(part, c, slice(None)) for c, part in enumerate(seen.split(self.width, -1))]
        return torch.stack(parts, 1)

    def head(self, seen: Tensor, c: int, pixels: Tensor | slice) -> Tensor:
        """Outputs of channel ``c``, shape (N, P, outputs), from what its window shows (N, P, width)."""
        seen = seen + self.position[c, pixels]
        hidden = F.silu(F.silu(seen) @ self.hidden_weight[c] + self.hidden_bias[c])
        outputs = hidden @ self.out_weight[c] + self.out_position[c, pixels]
        return outputs + seen @ self.linear_weight[c] if self.linear else outputs

    def window_matrix(self, c: int) -> Tensor:
        """The window's weights of channel ``c``, shape (pixels of the window * features, width)."""
        weight = self._masked_window()[c * self.width : (c + 1) * self.width].flatten(2)
        return weight[..., : self.window.size].permute(2, 1, 0).flatten(0, 1)

    def _masked_window(self) -> Tensor:
        mask = self.window.mask.to(self.window_weight)
        return self.window_weight * mask.repeat_interleave(self.width, 0).repeat_interleave(self.features, 1)
