"""Base class of coordinates: an invertible map x -> u, fitted to the training data, in which chains move."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ebm_lightning.supports import Euclidean, Support
from ebm_lightning.supports.exact_buffers import ExactBuffers


class Coordinates(ExactBuffers, ABC):
    r"""An invertible map u = T(x), in whose values u a classifier works and chains move.

    .. math:: q(x) = q_u(T(x)) \left| \det \frac{dT}{dx} \right|

    The method names are those of :class:`torch.distributions.transforms.Transform`. Tables and matrices are buffers in
    float64; they are part of the state dictionary. ``.half()`` does not make coordinates less precise. ``Trainer.fit``
    fits coordinates that are not fitted yet to the training data, once, and never those of a checkpoint.

    Attributes:
        domain: Where x is.
        codomain: Where u is, with the reference density q_u that the coordinates are made for. It is the support of a
            model with these coordinates.
    """

    domain: Support
    codomain: Support

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """u = T(x), shape (N, *shape), with the type of ``x``. Differentiable."""

    @abstractmethod
    def inv(self, u: Tensor) -> Tensor:
        """x = T^-1(u), shape (N, *shape), with the type of ``u``."""

    @abstractmethod
    def log_abs_det_jacobian(self, x: Tensor, u: Tensor) -> Tensor:
        """log |det dT/dx| at ``x``, whose value is ``u``. Shape (N,), float64, in nats."""

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether the map is known, from :meth:`fit` or from a checkpoint."""

    @abstractmethod
    def fit_batches(self, batches: Iterable[Tensor]) -> None:
        """Fit the map to batches of training data (n, *shape). Subclasses implement this method."""

    def fit(self, batches: Tensor | Iterable[Tensor]) -> "Coordinates":
        """Fit the map to training data in bounded memory, and return it. The global random state does not change.

        Arguments:
            batches: All data (N, *shape), or batches of them. Compositions and flows read them several times, so an
                iterator that can be read only once will not do.

        Raises:
            ValueError: The data are not in ``domain``, or there are too few.
        """
        with torch.inference_mode(False), torch.no_grad():
            self.fit_batches(_Checked(self, [batches] if isinstance(batches, Tensor) else batches))
        return self

    def check_fitted(self) -> None:
        """Check that the map is known.

        Raises:
            RuntimeError: It is not.
        """
        if not self.fitted:
            raise RuntimeError(
                f"These {type(self).__name__} coordinates are not fitted yet. Call 'coordinates.fit(x)' on the "
                "training data, or load a checkpoint; 'Trainer.fit' does it."
            )


class Identity(Coordinates):
    """u = x: the coordinates of a model that is given none.

    Arguments:
        domain: Where x is.
    """

    def __init__(self, domain: Support | None = None) -> None:
        super().__init__()
        self.domain = self.codomain = domain or Euclidean()

    def forward(self, x: Tensor) -> Tensor:
        return x

    def inv(self, u: Tensor) -> Tensor:
        return u

    def log_abs_det_jacobian(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

    @property
    def fitted(self) -> bool:
        return True

    def fit_batches(self, batches: Iterable[Tensor]) -> None:
        pass


class _Checked:
    """Batches, checked against the domain, without empty ones. Can be read as often as the batches themselves."""

    def __init__(self, coordinates: Coordinates, batches: Iterable[Tensor]) -> None:
        self.coordinates = coordinates
        self.batches = batches

    def __iter__(self) -> Any:
        rows = 0
        for x in self.batches:
            self.coordinates.domain.check(x)
            rows += len(x)
            if len(x):
                yield x.detach()
        if not rows:
            raise ValueError(
                "'batches' should hold training data, got none. A generator can be read only once: pass a list of "
                "batches or a DataLoader."
            )
