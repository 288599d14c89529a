"""Projected gradient descent: the worst image near an image, for a classifier whose gradients are known."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ebm_lightning.samplers import quiet, value_and_gradient
from ebm_lightning.supports import Euclidean, Support

Norm = Literal["linf", "l2"]


@dataclass(frozen=True)
class PGD:
    r"""Steps up the cross-entropy from a random start, kept within ``eps`` of x and inside the support.

    .. math:: x' = \arg\max_{\|x' - x\| \le \epsilon} -\log p(y|x')

    What climbs is the margin logsumexp(f over the other classes) - f[y], of which the cross-entropy is the softplus:
    the same optimum and the same direction, but float32 cannot round its slope to 0 where the classifier is sure of
    itself. The answer is the worst image met on the way, x itself included. A network may still hide its slopes
    (gradient masking), so the accuracy left is an upper bound on the robust one.

    References:
        Madry et al., Towards deep learning models resistant to adversarial attacks, 2018.
        https://arxiv.org/abs/1706.06083

    Arguments:
        eps: Radius of the ball around x, in units of x: in a box [-1, 1] twice what it is for pixels in [0, 1].
        norm: "linf" bounds each component, "l2" the Euclidean length over all components.
        steps: Gradients that are followed.
        step_size: Length of a step in ``norm``, in units of x; 2.5 eps / steps by default, as in the reference.

    Raises:
        ValueError: A number that is not positive, or an unknown norm.
    """

    eps: float
    norm: Norm = "linf"
    steps: int = 20
    step_size: float | None = None

    def __post_init__(self) -> None:
        for name in ("eps", "steps", "step_size"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"'{name}' should be positive, got {value}.")
        if self.norm not in ("linf", "l2"):
            raise ValueError(f"'norm' should be 'linf' or 'l2', got {self.norm!r}.")

    def __call__(
        self,
        logits: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        *,
        support: Support | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The attacked images, shape (N, *shape), detached.

        Works under ``no_grad`` and in inference mode; modules run in eval mode and are then as they were.

        Arguments:
            logits: Maps (N, *shape) to (N, K), such as a module or ``energy.logits``.
            x: Images (N, *shape), inside the support. Not changed.
            y: Their labels (N,).
            support: The domain that attacked images stay in; all of R^D by default.
            generator: Of the random starts, on the device of ``x``.
        """
        support, step = support or Euclidean(), self.step_size or 2.5 * self.eps / self.steps
        with quiet(logits), torch.inference_mode(False), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            x, y = x.clone(), y.clone()
            worst, height = x, margin(logits(x), y)
            z = support.clamp(x + self._start(x, generator))
            for _ in range(self.steps):
                value, gradient = value_and_gradient(lambda z: margin(logits(z), y), z)
                worst, height = _higher(worst, height, z, value)
                z = support.clamp(x + self._project(z + step * self._direction(gradient) - x))
            return _higher(worst, height, z, margin(logits(z), y))[0]

    def _start(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Uniform in the ball."""
        if self.norm == "linf":
            return self.eps * (2 * torch.rand(x.shape, generator=generator, device=x.device) - 1)
        direction = self._direction(torch.randn(x.shape, generator=generator, device=x.device))
        radius = torch.rand(len(x), generator=generator, device=x.device) ** (1 / x[0].numel())
        return self.eps * _rows(radius, x) * direction

    def _direction(self, gradient: Tensor) -> Tensor:
        """The step of length 1 that climbs most."""
        if self.norm == "linf":
            return gradient.sign()
        return gradient / _rows(gradient.flatten(1).norm(dim=1).clamp(min=1e-30), gradient)

    def _project(self, delta: Tensor) -> Tensor:
        """The nearest point of the ball; the box's clamp after it does not leave the ball, since x is in both."""
        if self.norm == "linf":
            return delta.clamp(-self.eps, self.eps)
        length = delta.flatten(1).norm(dim=1).clamp(min=1e-30)
        return delta * _rows((self.eps / length).clamp(max=1), delta)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """log((1 - p(y|x)) / p(y|x)), shape (N,), in nats: the cross-entropy is its softplus."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.logsumexp(1) - logits.gather(1, y[:, None]).squeeze(1)


def _higher(x: Tensor, height: Tensor, z: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Row by row, the higher of two points and its height."""
    up = value > height
    return torch.where(_rows(up, x), z, x), torch.where(up, value, height)


def _rows(values: Tensor, x: Tensor) -> Tensor:
    """One value for each row, broadcastable to ``x``."""
    return values.view(-1, *[1] * (x.ndim - 1))
