"""A normalizing flow as coordinates: chains move in its latent space."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ebm_lightning.checks import check_integer, check_number
from ebm_lightning.coordinates.base import Coordinates
from ebm_lightning.supports import Euclidean, Gaussian


class Flow(Coordinates):
    r"""The map of a normalizing flow to its latent space, where its density is standard normal.

    .. math:: q(x) = N(T(x); 0, I) \left| \det \frac{dT}{dx} \right|

    The model then corrects the density of the flow. The flow is trained by maximum likelihood when the coordinates are
    fitted, and does not change afterwards. Install zuko with ``pip install "ebm_lightning[flows]"``.

    References:
        Nijkamp et al., MCMC should mix: learning energy-based model with neural transport latent space MCMC, 2022.
        https://arxiv.org/abs/2006.06897
        Rozet et al., Zuko: normalizing flows in PyTorch. https://zuko.readthedocs.io

    Arguments:
        flow: An unconditional flow of zuko over D components, such as ``zuko.flows.NSF(D, transforms=3)``. Its base has
            to be the standard normal.
        shape: Shape of one x, with D components.
        epochs: Passes over the data. 0 keeps the flow as it is, for one that is trained already.
        learning_rate: That of Adam.

    Raises:
        ValueError: ``flow`` does not map R^D to R^D, or a number is out of range.
    """

    is_trained: Tensor

    def __init__(
        self, flow: nn.Module, shape: tuple[int, ...], *, epochs: int = 20, learning_rate: float = 1e-3
    ) -> None:
        super().__init__()
        check_integer("epochs", epochs, at_least=0)
        check_number("learning_rate", learning_rate, above=0)
        self.flow = flow.requires_grad_(False)
        self.shape = tuple(shape)
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.domain = Euclidean(self.shape)
        self.codomain = Gaussian(0.0, 1.0, self.shape)
        self.register_buffer("is_trained", torch.tensor(float(not epochs), dtype=torch.float64))
        self._check_flow()

    @property
    def fitted(self) -> bool:
        return bool(self.is_trained > 0)

    def forward(self, x: Tensor) -> Tensor:
        self.check_fitted()
        return self._with_log_det(x)[0]

    def inv(self, u: Tensor) -> Tensor:
        self.check_fitted()
        with torch.autocast(u.device.type, enabled=False):
            rows = self._transform().inv(self._rows(u))
        return rows.reshape(u.shape).to(u.dtype)

    def log_abs_det_jacobian(self, x: Tensor, u: Tensor) -> Tensor:
        self.check_fitted()
        return self._with_log_det(x)[1].double()

    def fit_batches(self, batches: Iterable[Tensor]) -> None:
        self.flow.requires_grad_(True).train()
        try:
            with torch.enable_grad():
                self._maximize_likelihood(batches)
        finally:
            # Without gradients: an optimizer of the model, which has these weights too, would apply them.
            self.flow.requires_grad_(False).eval().zero_grad()
        self.is_trained.fill_(1.0)

    def train(self, mode: bool = True) -> "Flow":
        """The flow stays in eval mode: it is a fixed part of the model."""
        super().train(mode)
        self.flow.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> "Flow":
        """Move the weights to another device, but keep their precision: log-determinants add up rounding errors."""
        super()._apply(lambda tensor: _at_least_as_precise(fn(tensor), tensor), *args, **kwargs)
        return self

    def _maximize_likelihood(self, batches: Iterable[Tensor]) -> None:
        optimizer = torch.optim.Adam(self.flow.parameters(), self.learning_rate)
        for _ in range(self.epochs):
            for x in batches:
                with torch.autocast(x.device.type, enabled=False):
                    loss = -self.flow().log_prob(self._rows(x)).mean()
                if not torch.isfinite(loss):
                    raise ValueError(
                        f"'learning_rate' should be lower, got {self.learning_rate:g}: the loss of the flow is "
                        f"{loss.item()}."
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def _with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            rows, log_det = self._transform().call_and_ladj(self._rows(x))
        return rows.reshape(x.shape).to(x.dtype), log_det

    def _rows(self, x: Tensor) -> Tensor:
        weight = next(self.flow.parameters())
        return x.flatten(1).to(device=weight.device, dtype=weight.dtype)

    def _transform(self) -> Any:
        return self.flow().transform

    def _check_flow(self) -> None:
        rows = self._rows(torch.zeros(2, *self.shape))
        distribution = self.flow()
        events = tuple(getattr(distribution, "event_shape", ()))
        if not hasattr(distribution, "transform") or events != rows.shape[1:]:
            raise ValueError(
                f"'flow' should be an unconditional flow over {rows.shape[1]} components, got "
                f"{type(self.flow).__name__} over {events}. Use one such as zuko.flows.NSF({rows.shape[1]})."
            )
        if not torch.allclose(distribution.base.log_prob(rows).double(), self.codomain.log_prob(rows.double())):
            raise ValueError(
                f"'flow' should have a standard normal base, got {distribution.base}. Use one such as "
                f"zuko.flows.NSF({rows.shape[1]})."
            )


def _at_least_as_precise(moved: Tensor, tensor: Tensor) -> Tensor:
    """``moved``, or ``tensor`` on the device of ``moved`` if a conversion has made it less precise."""
    if moved.is_floating_point() and moved.element_size() < tensor.element_size():
        return tensor.to(moved.device)
    return moved
