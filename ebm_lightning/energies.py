"""Energies: a classifier as a joint energy model, and analytic energies for tests.

An energy is a callable (N, *shape) -> (N,). It is -log p(x) up to the constant log Z, so lower means likelier.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_lightning.checks import check_kind, check_number
from ebm_lightning.contracts import call_classifier, half_precision, labels_for
from ebm_lightning.coordinates import Coordinates, Identity
from ebm_lightning.coordinates.compose import same_space
from ebm_lightning.supports import Support

Energy = Callable[[Tensor], Tensor]


class JointEnergy(nn.Module):
    r"""The joint and marginal energy of a classifier.

    .. math::
        E(x, y) = -f(x)[y] / T - \log q(x), \qquad E(x) = -\log \sum_y e^{f(x)[y] / T} - \log q(x)

    The conditional p(y|x) = softmax(f(x) / T) does not depend on q or Z. At ``temperature`` 1 the predictions are
    bit-equal to the classifier's.

    With coordinates u = T(x), the classifier sees u, and the reference density of x is that of u times the Jacobian:

    .. math:: E(x, y) = -f(u)[y] / T - \log q(u) - \log |\det du/dx|

    Z is the same in x and in u, so chains and annealing run in u, on :attr:`in_coordinates`.

    Under autocast the last linear layer and everything after it run in float32, because bfloat16 rounds an energy of
    300 to a multiple of 2; weights stored in half precision likewise. x is converted to the precision of the weights.

    Arguments:
        classifier: Maps (N, *shape) to logits (N, K), or to a dictionary or object with such ``logits``.
        support: Domain of x and reference density q; those of u with coordinates.
        temperature: T, positive. Divides the logits.
        coordinates: Invertible map from x to u. By default u = x.

    Raises:
        ValueError: ``temperature`` is not positive, the coordinates do not map into the support, the classifier's
            output is not (N, K), or the number of labels is neither N nor 1.
        RuntimeError: At the first evaluation, if the coordinates are not fitted yet.

    References:
        Grathwohl et al., Your classifier is secretly an energy based model and you should treat it like one, 2020,
        eqs. 5-7. https://arxiv.org/abs/1912.03263
    """

    def __init__(
        self,
        classifier: nn.Module,
        support: Support,
        temperature: float = 1.0,
        coordinates: Coordinates | None = None,
    ) -> None:
        super().__init__()
        check_kind("classifier", classifier, nn.Module)
        check_kind("support", support, Support)
        check_kind("coordinates", coordinates, Coordinates, optional=True)
        if coordinates is not None and not same_space(coordinates.codomain, support):
            raise ValueError(
                f"'support' should be where the values of the coordinates are, {coordinates.codomain}, got {support}. "
                "Pass coordinates.codomain. The domain of x is known to the coordinates."
            )
        self.classifier = classifier
        self.support = support
        self.temperature: float = check_number("temperature", temperature, above=0)
        self.coordinates = Identity(support) if coordinates is None else coordinates
        reference = getattr(support, "reference", None)
        if isinstance(reference, nn.Module):  # fitted, so it belongs to the state of the model
            self.reference = reference
        self._head_in_float32 = False
        self._in_coordinates: list[JointEnergy] = []  # a list, so that its weights are not registered twice

    @property
    def in_coordinates(self) -> "JointEnergy":
        """The energy of u, as a function on ``support``, with the same classifier; ``self`` without coordinates."""
        if isinstance(self.coordinates, Identity):
            return self
        if not self._in_coordinates or self._in_coordinates[0].classifier is not self.classifier:
            self._in_coordinates = [JointEnergy(self.classifier, self.support, self.temperature)]
        return self._in_coordinates[0]

    def logits(self, x: Tensor) -> Tensor:
        """f(x) / T, shape (N, K), in float32 or better."""
        x = self.coordinates(x)
        logits = self._full_precision(x)
        return logits if self.temperature == 1 else logits / self.temperature

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """E(x), or E(x, y) for labels ``y`` of shape (N,), or (1,) for one label of all x. Returns shape (N,)."""
        return self.from_logits(self.logits(x), x, y)

    def from_logits(self, logits: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        """E(x) or E(x, y), shape (N,), given the logits of ``x``.

        Raises:
            ValueError: ``y`` has neither one label for each x nor one label for all, or is not of classes.
        """
        tilt = tilt_of(logits, y)
        if isinstance(self.coordinates, Identity):
            return -tilt - self.support.log_q(x)
        u = self.coordinates(x)
        log_q = self.support.log_q(u) + self.coordinates.log_abs_det_jacobian(x, u)
        return -tilt - log_q.to(tilt.dtype)

    @property
    def head(self) -> nn.Linear | None:
        """The last linear layer of the classifier; None if it has no linear layer."""
        return last_linear(self.classifier)

    @contextmanager
    def head_in_float32(self) -> Iterator[None]:
        """Run the head in float32 for many evaluations. Without this, each evaluation installs its own hook."""
        head = None if self._head_in_float32 else self.head
        if head is None:
            yield
            return
        handle, self._head_in_float32 = head.register_forward_hook(_linear_in_float32), True
        try:
            yield
        finally:
            handle.remove()
            self._head_in_float32 = False

    def _full_precision(self, x: Tensor) -> Tensor:
        half = torch.is_autocast_enabled(x.device.type) or half_precision(self.classifier)
        if self._head_in_float32 or not half:
            logits = call_classifier(self.classifier, x)
        else:
            with self.head_in_float32():
                logits = call_classifier(self.classifier, x)
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def last_linear(network: nn.Module) -> nn.Linear | None:
    """The last linear layer of a network; None if it has none."""
    return next((m for m in reversed(list(network.modules())) if isinstance(m, nn.Linear)), None)


def in_coordinates(energy: Energy) -> Energy:
    """The energy of u, for a :class:`JointEnergy` with coordinates or a ``functools.partial`` of one; else ``energy``.

    log Z is the same in x and in u, but only in u does the energy fit the support of the model.
    """
    if isinstance(energy, functools.partial):
        inner = in_coordinates(energy.func)
        return energy if inner is energy.func else functools.partial(inner, *energy.args, **energy.keywords)
    return energy.in_coordinates if isinstance(energy, JointEnergy) else energy


def tilt_of(logits: Tensor, y: Tensor | None = None) -> Tensor:
    """log p(x) - log q(x), or log p(x, y) - log q(x), up to log Z, shape (N,), from logits (N, K)."""
    return logits.logsumexp(1) if y is None else logits.gather(1, labels_for(y, *logits.shape)[:, None]).squeeze(1)


def log_tilt(energy: Energy, support: Support, x: Tensor) -> Tensor:
    """log p(x) - log q(x) up to a constant, shape (N,), float64, for the normalized reference density q of ``support``.

    For a :class:`JointEnergy` on this support it is the logsumexp of the logits, or the logit of a label, and q is not
    evaluated.
    """
    joint, arguments = (energy.func, energy.keywords) if isinstance(energy, functools.partial) else (energy, {})
    if isinstance(joint, JointEnergy) and joint.support is support and isinstance(joint.coordinates, Identity):
        return tilt_of(joint.logits(x), **arguments).double()
    value = energy(x)
    check_energies(value, x)
    return -value.double() - support.log_prob(x).double()


def check_energies(energy: Any, x: Tensor) -> None:
    """Check that what an energy returned for ``x`` is one floating point number for each row of ``x``.

    Arguments:
        energy: What it returned.
        x: Its argument, shape (N, *shape).

    Raises:
        ValueError: It is not a tensor of shape (N,). The message contains a remedy.
    """
    if not isinstance(energy, Tensor):
        raise ValueError(f"'energy' should return a tensor of shape ({len(x)},), got {type(energy).__name__}.")
    if energy.shape != x.shape[:1]:
        raise ValueError(
            f"'energy' should return shape ({len(x)},) for x of shape {tuple(x.shape)}, got {tuple(energy.shape)}. "
            f"{_reshape(energy)}"
        )
    if not energy.is_floating_point():
        raise ValueError(f"'energy' should return floating point numbers, got {energy.dtype}. Call .float() on them.")


def _reshape(energy: Tensor) -> str:
    if energy.ndim == 0:
        return "Sum over the components of each x, not over the batch: x.square().flatten(1).sum(1)."
    if energy.ndim == 2 and energy.shape[1] == 1:
        return "Call .squeeze(1) on it."
    if energy.ndim == 2:
        return (
            "Of a model pass its energy, model.energy. If these are the logits of a classifier, use "
            "JointEnergy(classifier, support), or -logits.logsumexp(1)."
        )
    return "Sum over the components of each x: .flatten(1).sum(1)."


def _linear_in_float32(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    assert isinstance(module, nn.Linear)
    bias = None if module.bias is None else module.bias.float()
    with torch.autocast(output.device.type, enabled=False):
        return F.linear(args[0].float(), module.weight.float(), bias)


# Energies with a closed form for log Z, samples or Langevin chains.


class GaussianEnergy(nn.Module):
    r"""A diagonal Gaussian, unnormalized.

    .. math:: E(x) = \sum_d (x_d - mean_d)^2 / (2 std_d^2), \qquad \log Z = \sum_d \log(std_d \sqrt{2 \pi})

    Arguments:
        mean: Shape (D,).
        std: Shape (D,), positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * ((x - self.mean) / self.std).square().sum(1)

    @property
    def log_z(self) -> float:
        return float((self.std.double().log() + 0.5 * math.log(2 * math.pi)).sum())


class MixtureLogits(nn.Module):
    r"""A classifier whose joint energy on R^D is a normalized Gaussian mixture: log Z = 0 and Z_y = weight_y.

    .. math:: f(x)[y] = \log weight_y + \log N(x; mean_y, std^2 I)

    Arguments:
        means: Shape (K, D).
        std: Standard deviation of every component.
        weights: Shape (K,), with sum 1; equal by default.
    """

    means: Tensor
    log_weights: Tensor

    def __init__(self, means: Tensor, std: float = 1.0, weights: Tensor | None = None) -> None:
        super().__init__()
        weights = torch.full((len(means),), 1 / len(means)) if weights is None else weights
        self.std = std
        self.register_buffer("means", means)
        self.register_buffer("log_weights", weights.log())

    def forward(self, x: Tensor) -> Tensor:
        squares = (x[:, None] - self.means).square().sum(2)
        return self.log_weights - squares / (2 * self.std**2) - x.shape[1] * math.log(self.std * math.sqrt(2 * math.pi))
