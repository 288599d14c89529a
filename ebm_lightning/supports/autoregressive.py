"""An autoregressive density of images: each gray level given the pixels above it and to its left."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ebm_lightning.checks import check_integer, check_number
from ebm_lightning.supports.bin_distributions import BinDistribution, Histograms, LogisticMixtures, first_mixture
from ebm_lightning.supports.box import Box
from ebm_lightning.supports.causal_network import CausalNetwork
from ebm_lightning.supports.causal_window import CausalWindow
from ebm_lightning.supports.density import (
    FittedDensity,
    InvertibleDensity,
    Progress,
    device_of,
    one_process,
    zero_gradient,
)
from ebm_lightning.supports.exact_buffers import ExactBuffers
from ebm_lightning.supports.full_float32 import full_float32
from ebm_lightning.supports.gray_levels import GrayLevels

FEATURES = 2  # of each component that a window shows


class AutoregressiveDensity(ExactBuffers, FittedDensity, InvertibleDensity):
    r"""A density of images that draws pixel after pixel, from the top left to the bottom right.

    .. math:: q(x) = \prod_d q(x_d | x_1, ..., x_{d-1})

    Each factor is a histogram of gray levels, or a mixture of logistic distributions. Its parameters are the output of
    a small network that sees a window of earlier pixels, and the earlier channels of the pixel itself. The network is
    the same for all pixels, but the biases differ. The density is uniform within a gray level, so images have to be
    dequantized. log q is exact, and samples are exact and independent.

    It is meant as the reference density of a joint energy model, ``Box(-1, 1, shape, reference=...)``: it knows what is
    local in an image, and the classifier's logits add what is not. Chains have to move by
    :class:`~ebm_lightning.NoiseRefresh`, which needs no gradient: log q jumps between gray levels. The classifier sees
    x, as it does without a reference.

    ``Trainer.fit`` fits it to the training data by maximum likelihood, before the first step. It is part of the model's
    checkpoints, and does not change afterwards.

    References:
        van den Oord et al., Pixel recurrent neural networks, 2016. https://arxiv.org/abs/1601.06759
        Salimans et al., PixelCNN++, 2017, for mixtures of logistic distributions. https://arxiv.org/abs/1701.05517
        Deng et al., Residual energy-based models for text generation, 2020, for an energy relative to an autoregressive
        model. https://arxiv.org/abs/2004.11714

    Arguments:
        box: Domain of x, with the shape (C, H, W).
        num_levels: Gray levels between its walls, at most 256.
        bins: Largest number of bins of each histogram; neighboring gray levels share one.
        components: Use a mixture of this many logistic distributions in place of a histogram. It suits natural images,
            whose gray levels are near those of their neighbors; a histogram suits drawings, which have few levels.
        radius: Size of the window: this many rows above, and pixels to each side.
        width: Width of the network.
        epochs: Passes over the images.
        batch_size: Images for each step of Adam, on each rank.
        learning_rate: Its first value. It falls to 0 along half a cosine.

    Raises:
        ValueError: A number is out of range, or ``box`` has not the shape of images.
    """

    is_fitted: Tensor

    def __init__(
        self,
        box: Box,
        num_levels: int = 256,
        *,
        bins: int = 64,
        components: int | None = None,
        radius: int = 4,
        width: int = 96,
        epochs: int = 3,
        batch_size: int = 64,
        learning_rate: float = 3e-3,
    ) -> None:
        super().__init__()
        if len(box.shape) != 3:
            raise ValueError(f"'box' should have the shape (C, H, W) of images, got {box.shape}.")
        self.box = box
        self.num_levels = check_integer("num_levels", num_levels, at_least=2, at_most=256)
        self.components = check_integer("components", components, at_least=1, optional=True)
        self.bins = check_integer("bins", bins, at_least=2) if components is None else self.num_levels
        self.radius = check_integer("radius", radius, at_least=1)
        self.width = check_integer("width", width, at_least=2)
        self.epochs = check_integer("epochs", epochs, at_least=1)
        self.batch_size = check_integer("batch_size", batch_size, at_least=1)
        self.learning_rate = check_number("learning_rate", learning_rate, above=0)
        self.window = CausalWindow(box.shape, self.radius)
        self.levels = GrayLevels(box.low, box.high, self.num_levels, self.bins)
        self.register_buffer("is_fitted", torch.zeros((), dtype=torch.float64))
        outputs, mixture = (self.bins, False) if components is None else (3 * components, True)
        self.network = CausalNetwork(self.window, FEATURES, self.width, outputs, linear=mixture)

    @property
    def fitted(self) -> bool:
        """Whether the density is known, from :meth:`fit` or from a checkpoint."""
        return bool(self.is_fitted > 0)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at ``x``, shape (N,), float64, in nats. Its gradient is 0."""
        with torch.no_grad():
            log_q = self.to_noise(x)[1]
        return log_q + 0 * x.flatten(1).sum(1)

    def log_prob_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self.log_prob(x), zero_gradient(x)

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        device = device_of(generator, device) or self.is_fitted.device
        u = torch.rand((n, *self.box.shape), generator=generator, device=device, dtype=torch.float64)
        return self.from_noise(u)[0]

    @torch.no_grad()
    def to_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._check_fitted(x)
        level = self.levels.level_of(x).flatten(2)
        index = self.levels.bin_of_level[level]
        below, of_bin = self._all_pixels(level).below_and_at(index)
        u = below + of_bin * (self.levels.key_of(x.flatten(2), level) - index)
        return u.clamp(0, 1).view(x.shape), (of_bin.log() + self.levels.log_within[level]).sum((1, 2))

    @torch.no_grad()
    def from_noise(self, u: Tensor) -> tuple[Tensor, Tensor]:
        self._check_fitted(u)
        channels, rows = self.box.shape[0], u.flatten(2)
        x, log_q = torch.zeros(rows.shape, device=u.device), u.new_zeros(len(u))
        canvas = self.levels.features.new_zeros(len(u), self.window.padded_size, channels * FEATURES)
        log_within, matrices = self.levels.log_within, [self.network.window_matrix(c) for c in range(channels)]
        with full_float32(u.device.type):
            for pixels in self.window.fronts(u.device):
                for c in range(channels):
                    seen = canvas.index_select(1, pixels.context.flatten()).view(len(u), len(pixels.places), -1)
                    of_front = self._distribution(self.network.head(seen @ matrices[c], c, pixels.places))
                    level, of_bin, x[:, c, pixels.places] = self._inverted(of_front, rows[:, c, pixels.places])
                    canvas[:, pixels.padded, c * FEATURES : (c + 1) * FEATURES] = self.levels.features[level]
                    log_q += (of_bin.log() + log_within[level]).sum(1)
        return x.view(u.shape), log_q

    def _inverted(self, distribution: BinDistribution, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where the cumulative distribution is ``u`` (N, P).

        Returns:
            The gray level, the probability of its bin, and x, shapes (N, P).
        """
        index = distribution.index_at(u)
        below, of_bin = distribution.below_and_at(index)
        inside = (u - below) / of_bin
        level, x = self.levels.at_key(index + inside.clamp(0, 1 - 1e-9))
        return level, of_bin, x

    def _distribution(self, outputs: Tensor) -> BinDistribution:
        if self.components is None:
            return Histograms(outputs, self.levels.bin_of_level[-1])  # a tensor: a number would wait for the GPU
        return LogisticMixtures(outputs, self.bins)

    def _all_pixels(self, level: Tensor) -> BinDistribution:
        """Distributions over bins of all pixels at once, from gray levels (N, C, H * W)."""
        images = self.levels.features[level].permute(0, 1, 3, 2).reshape(len(level), -1, *self.box.shape[1:])
        return self._distribution(self.network(images))

    def _check_fitted(self, x: Tensor) -> None:
        if not self.fitted:
            raise RuntimeError(
                "This AutoregressiveDensity is not fitted yet. Call 'fit(batches, num_classes)' first; 'Trainer.fit' "
                "does it."
            )
        if self.is_fitted.device != x.device:
            with torch.inference_mode(False):
                self.to(x.device)

    # Fit.

    def fit(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        num_classes: int,
        all_reduce: Callable[[Tensor], Tensor] = one_process,
        progress: Progress | None = None,
    ) -> None:
        """Maximize the likelihood of the images by Adam, from fixed seeds. Arguments as for :class:`FittedDensity`.

        Raises:
            ValueError: ``batches`` is empty, or the loss is not finite.
        """
        parts = [self.levels.level_of(x).flatten(2).to("cpu", torch.uint8) for x, _ in batches]
        if not parts:
            raise ValueError("'batches' should hold images to fit AutoregressiveDensity to, got none.")
        levels = torch.cat(parts)
        self.levels.fit(all_reduce(torch.bincount(levels.flatten(), minlength=self.num_levels).double()))
        images, ranks = all_reduce(torch.tensor([float(len(levels)), 1.0])).tolist()
        steps = max(1, round(images / ranks * self.epochs / self.batch_size))
        generator = torch.Generator().manual_seed(0)  # the same on all ranks
        weights = self.network.initial_weights(generator)
        if self.components is not None:
            self.network.out_position.data.copy_(first_mixture(self.components))
        optimizer = torch.optim.Adam(weights, self.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5 + 0.5 * math.cos(math.pi * t / steps))
        for _ in (progress or iter)(range(steps)):
            batch = levels[torch.randint(len(levels), (self.batch_size,), generator=generator)]
            self._add_gradient(batch.to(self.is_fitted.device).long())
            for weight in weights:
                assert weight.grad is not None
                weight.grad = all_reduce(weight.grad).to(weight) / ranks
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        for weight in weights:
            weight.requires_grad_(False)
        self.is_fitted.fill_(1.0)

    def _add_gradient(self, level: Tensor) -> None:
        with torch.enable_grad():
            loss = self._all_pixels(level).loss(self.levels.bin_of_level[level])
        if not torch.isfinite(loss):
            raise ValueError(
                f"'learning_rate' should be lower, got {self.learning_rate:g}: the loss of AutoregressiveDensity is "
                f"{loss.item()}."
            )
        loss.backward()
