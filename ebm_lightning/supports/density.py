"""Normalized densities that can be evaluated and sampled.

They serve as the reference density of a support, as the initial distribution of chains, and as the proposal of
annealed importance sampling.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Progress = Callable[[Iterable[int]], Iterable[int]]
"""Wraps an iterable to show a progress bar, such as ``tqdm.tqdm``."""


def one_process(total: Tensor) -> Tensor:
    """The ``all_reduce`` of a single process: the identity."""
    return total


class Density(ABC):
    """A normalized density that can be evaluated and sampled.

    Attributes:
        box: The :class:`~ebm_lightning.supports.Box` that the density is truncated to. None for a density on R^D.
    """

    box: Any = None

    @property
    def constant(self) -> bool:
        """Whether the density is uniform on its support, so that its gradient is 0."""
        return False

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at ``x`` of shape (N, *shape). Returns shape (N,), in nats, differentiable in ``x``."""

    @abstractmethod
    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """``n`` independent samples, shape (n, *shape), float32.

        Arguments:
            n: Number of samples.
            labels: Class of each sample, shape (n,). Densities without classes ignore it.
            generator: Source of randomness.
            device: Device of the samples. By default the generator's device.
        """

    def log_prob_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log density, shape (N,), float64, and its gradient in ``x``, broadcastable to ``x``."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            log_p = self.log_prob(x)
            (gradient,) = torch.autograd.grad(log_p.sum(), x)
        return log_p.detach().double(), gradient


class FittedDensity(Density):
    """A density that has to be fitted to data before its first use. ``Trainer.fit`` fits it once for each module.

    Attributes:
        passes: Passes over the training data that ``Trainer.fit`` gives to :meth:`fit`.
    """

    passes: int = 1

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether it can be used."""

    @abstractmethod
    def fit(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        num_classes: int,
        all_reduce: Callable[[Tensor], Tensor] = one_process,
        progress: Progress | None = None,
    ) -> None:
        """Fit the density in one pass over the data.

        Arguments:
            batches: Inputs (n, *shape) and labels (n,).
            num_classes: Number of classes K.
            all_reduce: Sums a tensor over all processes. By default there is one process.
            progress: Wraps the loop of a long fit.
        """


class InvertibleDensity(Density):
    r"""A density with an invertible map from its points to independent noise, uniform on [0, 1]^D.

    .. math:: u_d = F_d(x_d | x_1, ..., x_{d-1})

    References:
        Rosenblatt, Remarks on a multivariate transformation, 1952.
    """

    @abstractmethod
    def to_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The noise that makes ``x``, shape (N, *shape), float64, and log q(x), shape (N,), float64."""

    @abstractmethod
    def from_noise(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The points that the noise ``u`` makes, shape (N, *shape), float32: samples if ``u`` is uniform.

        Returns:
            The points and their log density, shape (N,), float64.
        """


def zero_gradient(x: Tensor) -> Tensor:
    """The gradient of a constant, shape (N, 1, ..., 1). It broadcasts to ``x`` and needs little memory."""
    return x.new_zeros((len(x), *[1] * (x.ndim - 1)))


def device_of(generator: torch.Generator | None, device: torch.device | str | None) -> torch.device | str | None:
    """``device``, or the generator's device if ``device`` is None."""
    return generator.device if generator is not None and device is None else device
