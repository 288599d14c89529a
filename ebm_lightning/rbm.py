"""The classification RBM as a classifier, and the conditional distributions for block Gibbs sampling.

Given the hidden units, pixels and label are independent. Given pixels and label, the hidden units are independent.
Summing over the hidden units gives logits in closed form, so a :class:`~ebm_lightning.energies.JointEnergy` of this
network is the RBM.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, one_hot, softplus

from ebm_lightning.checks import check_integer
from ebm_lightning.supports import Binary, Gaussian, Support


class RBMLogits(nn.Module):
    r"""Logits of a restricted Boltzmann machine over x, a one-hot label y and binary hidden units h.

    .. math::
        -E(x, y, h) &= b \cdot z + d_y + h \cdot (c + U_{\cdot y} + W z) \\
        f_y(x) &= b \cdot z + d_y + \sum_j \mathrm{softplus}(c_j + U_{jy} + (W z)_j)

    On :class:`~ebm_lightning.supports.Binary`, z is x. On :class:`~ebm_lightning.supports.Gaussian`,
    z = (x - mean) / std. With the Gaussian reference density, z given h is normal with mean b + W'h and unit variance:
    a Gaussian-Bernoulli RBM with fixed standard deviations. With one class this is a plain RBM with free energy -f.

    References:
        Larochelle & Bengio, Classification using discriminative restricted Boltzmann machines, 2008.
        Welling, Rosen-Zvi & Hinton, Exponential family harmoniums, 2004, for the Gaussian case.

    Arguments:
        num_visible: V, the number of components of x.
        num_hidden: H.
        num_classes: K.
        support: Binary or Gaussian with V components in any shape. ``Binary((V,))`` by default.

    Raises:
        ValueError: A number is below 1, or the support is of another kind or size.
    """

    data_mean: Tensor
    class_counts: Tensor

    def __init__(self, num_visible: int, num_hidden: int, num_classes: int, support: Support | None = None) -> None:
        super().__init__()
        for name, value in (("num_visible", num_visible), ("num_hidden", num_hidden), ("num_classes", num_classes)):
            check_integer(name, value, at_least=1)
        self.num_visible = num_visible
        self.num_hidden = num_hidden
        self.num_classes = num_classes
        self.support = _checked_support(support or Binary((num_visible,)), num_visible)
        width = max(num_visible, num_hidden) ** -0.5  # Larochelle & Bengio, sec. 6
        self.weight = nn.Parameter(torch.empty(num_hidden, num_visible).uniform_(-width, width))
        self.class_weight = nn.Parameter(torch.empty(num_hidden, num_classes).uniform_(-width, width))
        self.visible_bias = nn.Parameter(torch.zeros(num_visible))
        self.hidden_bias = nn.Parameter(torch.zeros(num_hidden))
        self.class_bias = nn.Parameter(torch.zeros(num_classes))
        self.register_buffer("data_mean", torch.zeros(num_visible))
        self.register_buffer("class_counts", torch.zeros(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """f(x), shape (N, K). In float32 or better also under autocast, since rounding it would change the density."""
        with torch.autocast(x.device.type, enabled=False):
            z = self.standardized(x)
            fields = self._hidden_fields(z)[:, None] + self.class_weight.T.to(z.dtype)
            return softplus(fields).sum(2) + (z @ self.visible_bias.to(z.dtype))[:, None] + self.class_bias

    # Conditional distributions.

    def hidden_logits(self, x: Tensor, y: Tensor) -> Tensor:
        """Log odds of each hidden unit given x and labels (N,), shape (N, H)."""
        return self._hidden_fields(self.standardized(x)) + self.class_weight.T[y]

    def visible_fields(self, h: Tensor) -> Tensor:
        """b + W'h, shape (N, V): log odds of each binary unit, or mean of each standardized Gaussian unit."""
        return self.visible_bias + h @ self.weight.to(h.dtype)

    def class_logits(self, h: Tensor) -> Tensor:
        """Logits of the label given h, shape (N, K)."""
        return self.class_bias + h @ self.class_weight.to(h.dtype)

    def draw_visible(self, h: Tensor, generator: torch.Generator | None) -> Tensor:
        """A draw of x given h, shape (N, *shape)."""
        fields, shape = self.visible_fields(h), (len(h), *(self.support.shape or ()))
        if isinstance(self.support, Gaussian):
            noise = torch.randn(fields.shape, generator=generator, device=h.device, dtype=h.dtype)
            return self.support.destandardize((fields + noise).view(shape))
        return bernoulli(fields, generator).view(shape)

    # Exact sums.

    def log_sum_visible(self, h: Tensor) -> Tensor:
        r"""Log of the sum over x (or the integral against q) of exp(-E(x, y, h)) for each class, shape (N, K)."""
        fields = self.visible_fields(h)
        summed = 0.5 * fields.square() if isinstance(self.support, Gaussian) else softplus(fields)
        return self.class_logits(h) + (h @ self.hidden_bias.to(h.dtype) + summed.sum(1))[:, None]

    # Base rates for annealing.

    @torch.no_grad()
    def observe(self, x: Tensor, y: Tensor) -> None:
        """Update the mean of the data and the class counts, from which annealing takes its base rates.

        Arguments:
            x: Shape (N, *shape).
            y: Labels (N,), where -1 counts 1 / K for each class, or probabilities (N, K).
        """
        shares = y if y.ndim == 2 else one_hot(y.clamp(min=0), self.num_classes).to(self.class_counts)
        if y.ndim == 1:
            shares[y < 0] = 1 / self.num_classes
        self.class_counts += shares.sum(0)
        self.data_mean += (x.flatten(1).float().mean(0) - self.data_mean) * (len(y) / self.class_counts.sum())

    def standardized(self, x: Tensor) -> Tensor:
        """z, shape (N, V), in float32 or better."""
        if isinstance(self.support, Gaussian):
            x = self.support.standardize(x)
        z = x.flatten(1)
        return z.to(self.weight.dtype) if z.dtype in (torch.bfloat16, torch.float16) else z

    def _hidden_fields(self, z: Tensor) -> Tensor:
        """c + W z, shape (N, H), in the precision of z, since sums over all states need float64."""
        return linear(z, self.weight.to(z.dtype), self.hidden_bias.to(z.dtype))


def bernoulli(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Independent draws from {0, 1} with these log odds, in the dtype of ``logits``."""
    u = torch.rand(logits.shape, generator=generator, device=logits.device, dtype=logits.dtype)
    return (u < logits.sigmoid()).to(logits.dtype)


def categorical(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """One draw from the softmax of each row, shape (N,), int64."""
    return torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)


def _checked_support(support: Support, num_visible: int) -> Support:
    if not isinstance(support, Binary | Gaussian):
        raise ValueError(
            f"'support' should be Binary or Gaussian for an RBM, got {type(support).__name__}. Binarize images, or "
            "use Gaussian(mean, std, shape) for real numbers."
        )
    size = torch.Size(support.shape).numel()
    if size != num_visible:
        raise ValueError(f"'num_visible' should be the size of 'support' {support.shape}, {size}, got {num_visible}.")
    return support
