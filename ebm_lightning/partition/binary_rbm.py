"""Parameters and conditional distributions of a binary RBM, with or without classes, along an annealing path."""

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ebm_lightning.rbm import bernoulli, categorical


@dataclasses.dataclass(frozen=True)
class BinaryRBM:
    """Parameters of an RBM and of its base distribution, in float64.

    Attributes:
        weights: W, shape (V, H).
        class_weights: U, shape (H, K).
        visible, hidden, classes: Biases b (V,), c (H,) and d (K,).
        base_visible, base_classes: Biases of x (V,) and y (K,) at beta = 0, where all units are independent.
    """

    weights: Tensor
    class_weights: Tensor
    visible: Tensor
    hidden: Tensor
    classes: Tensor
    base_visible: Tensor
    base_classes: Tensor

    @property
    def base_log_z(self) -> Tensor:
        """log Z at beta = 0."""
        return softplus(self.base_visible).sum() + len(self.hidden) * math.log(2) + self.base_classes.logsumexp(0)

    def to(self, device: torch.device) -> "BinaryRBM":
        """The same machine on a device."""
        return BinaryRBM(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))

    def hidden_fields(self, v: Tensor) -> Tensor:
        """Log odds of the hidden units at beta = 1 given v and each class, shape (N, K, H)."""
        return (self.hidden + v @ self.weights)[:, None] + self.class_weights.T

    def log_p(self, beta: float, v: Tensor, fields: Tensor) -> Tensor:
        """log of the unnormalized p_beta(v, y) for each class, hidden units summed out, shape (N, K)."""
        visible = torch.lerp(self.base_visible, self.visible, beta)
        classes = torch.lerp(self.base_classes, self.classes, beta)
        return softplus(beta * fields).sum(2) + (v @ visible)[:, None] + classes

    def base_samples(self, n: int, generator: torch.Generator) -> Tensor:
        """Exact draws of v at beta = 0, shape (n, V)."""
        return bernoulli(self.base_visible.expand(n, -1), generator)

    def sweep(self, beta: float, fields: Tensor, log_p: Tensor, generator: torch.Generator) -> Tensor:
        """One block Gibbs sweep of p_beta: y given v, h given both, then v given h."""
        y = categorical(log_p, generator)
        h = bernoulli(beta * fields[torch.arange(len(y)), y], generator)
        return bernoulli(torch.lerp(self.base_visible, self.visible + h @ self.weights.T, beta), generator)

    # At beta = 1, in terms of the hidden units.

    def hidden_rates(self, v: Tensor) -> Tensor:
        """p(h_j = 1 | v), labels summed out, shape (N, H)."""
        fields = self.hidden_fields(v)
        return (self.log_p(1.0, v, fields).softmax(1)[:, :, None] * fields.sigmoid()).sum(1)

    def log_p_hidden(self, h: Tensor) -> Tensor:
        """log of the unnormalized p(h), visible units and labels summed out, shape (N,)."""
        summed = softplus(self.visible + h @ self.weights.T).sum(1)
        return h @ self.hidden + summed + (self.classes + h @ self.class_weights).logsumexp(1)

    def mean_field(self, m: Tensor) -> Tensor:
        """Rates of h given the mean visible units and labels under rates m of h, shape (N, H)."""
        classes = (self.classes + m @ self.class_weights).softmax(1)
        return (
            self.hidden + (self.visible + m @ self.weights.T).sigmoid() @ self.weights + classes @ self.class_weights.T
        ).sigmoid()

    def hidden_sweep(self, h: Tensor, generator: torch.Generator) -> Tensor:
        """One block Gibbs sweep at beta = 1: v and y given h, then h given both."""
        v = bernoulli(self.visible + h @ self.weights.T, generator)
        y = categorical(self.classes + h @ self.class_weights, generator)
        return bernoulli(self.hidden + v @ self.weights + self.class_weights.T[y], generator)

    @property
    def transposed_is_smaller(self) -> bool:
        """Whether the visible layer is the smaller one, of a machine without classes."""
        return len(self.classes) == 1 and len(self.visible) < len(self.hidden)

    def transposed(self) -> "BinaryRBM":
        """The same machine, without classes, with its layers exchanged. The base rates are left out."""
        zeros, no_weights = torch.zeros_like(self.hidden), self.class_weights.new_zeros(len(self.visible), 1)
        hidden = self.hidden + self.class_weights[:, 0]
        return BinaryRBM(self.weights.T, no_weights, hidden, self.visible, self.classes, zeros, self.base_classes)
