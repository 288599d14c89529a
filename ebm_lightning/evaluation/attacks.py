"""Projected gradient descent (PGD), a white-box attack on a classifier."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ebm_lightning.checks import check_integer, check_number
from ebm_lightning.samplers import frozen, value_and_gradient
from ebm_lightning.supports import Euclidean, Support

Norm = Literal["linf", "l2"]


@dataclass(frozen=True)
class PGD:
    r"""PGD from a random start: maximizes the cross-entropy within distance ``eps`` of x and inside the support.

    .. math:: x' = \arg\max_{\|x' - x\| \le \epsilon} -\log p(y|x')

    The steps maximize the margin logsumexp(f over the other classes) - f[y]. The cross-entropy is its softplus, so both
    have the same maximum and the same ascent direction; but where the classifier is very confident, float32 rounds the
    gradient of the cross-entropy to 0 and not that of the margin. The result is the point with the largest margin on
    the path, which includes x itself. A network may mask its gradients, so the accuracy under attack is an upper bound
    on the robust accuracy.

    References:
        Madry et al., Towards deep learning models resistant to adversarial attacks, 2018.
        https://arxiv.org/abs/1706.06083

    Arguments:
        eps: Radius of the ball around x, in units of x. In a box [-1, 1] it is twice the radius for pixels in [0, 1].
        norm: "linf" bounds each component, "l2" the Euclidean norm over all components.
        steps: Number of gradient steps.
        step_size: Length of a step in ``norm``, in units of x; 2.5 eps / steps by default, as in the reference.

    Raises:
        ValueError: A number is not positive, or ``norm`` is unknown.
    """

    eps: float
    norm: Norm = "linf"
    steps: int = 20
    step_size: float | None = None

    def __post_init__(self) -> None:
        check_number("eps", self.eps, above=0)
        check_integer("steps", self.steps, at_least=1)
        check_number("step_size", self.step_size, above=0, optional=True)
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
        """Adversarial images, shape (N, *shape), detached.

        Works under ``no_grad`` and in inference mode. Modules run in eval mode, and their mode is restored.

        Arguments:
            logits: Maps (N, *shape) to (N, K), such as a module or ``energy.logits``.
            x: Images (N, *shape), inside the support. Not modified.
            y: Their labels (N,).
            support: The domain that adversarial images stay in; all of R^D by default.
            generator: Source of the random starts, on the device of ``x``.
        """
        support, step = support or Euclidean(), self.step_size or 2.5 * self.eps / self.steps
        with frozen(logits), torch.inference_mode(False), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            x, y = x.clone(), y.clone()
            worst, largest = x, margin(logits(x), y)
            z = support.clamp(x + self._start(x, generator))
            for _ in range(self.steps):
                value, gradient = value_and_gradient(lambda z: margin(logits(z), y), z)
                worst, largest = _keep_worst(worst, largest, z, value)
                z = support.clamp(x + self._project(z + step * self._direction(gradient) - x))
            return _keep_worst(worst, largest, z, margin(logits(z), y))[0]

    def _start(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Uniform draws from the ball around 0."""
        if self.norm == "linf":
            return self.eps * (2 * torch.rand(x.shape, generator=generator, device=x.device) - 1)
        direction = self._direction(torch.randn(x.shape, generator=generator, device=x.device))
        radius = torch.rand(len(x), generator=generator, device=x.device) ** (1 / x[0].numel())
        return self.eps * _rows(radius, x) * direction

    def _direction(self, gradient: Tensor) -> Tensor:
        """The steepest ascent step of length 1."""
        if self.norm == "linf":
            return gradient.sign()
        return gradient / _rows(gradient.flatten(1).norm(dim=1).clamp(min=1e-30), gradient)

    def _project(self, delta: Tensor) -> Tensor:
        """The nearest point of the ball. Clamping to the box afterwards stays in the ball, because x is in both."""
        if self.norm == "linf":
            return delta.clamp(-self.eps, self.eps)
        length = delta.flatten(1).norm(dim=1).clamp(min=1e-30)
        return delta * _rows((self.eps / length).clamp(max=1), delta)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """log((1 - p(y|x)) / p(y|x)), shape (N,), in nats. The cross-entropy is its softplus."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.logsumexp(1) - logits.gather(1, y[:, None]).squeeze(1)


def _keep_worst(x: Tensor, x_margin: Tensor, z: Tensor, z_margin: Tensor) -> tuple[Tensor, Tensor]:
    """For each row, the point with the larger margin, and that margin."""
    larger = z_margin > x_margin
    return torch.where(_rows(larger, x), z, x), torch.where(larger, z_margin, x_margin)


def _rows(values: Tensor, x: Tensor) -> Tensor:
    """One value per row, broadcastable to ``x``."""
    return values.view(-1, *[1] * (x.ndim - 1))
