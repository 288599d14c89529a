"""The classification RBM as a classifier: logits in closed form, and the conditionals that block Gibbs draws from.

Given the hidden units, pixels and label are independent; given pixels and label, so are the hidden units. Summing the
hidden units out leaves logits, so that a :class:`~ebm_lightning.energies.JointEnergy` of this network is the RBM.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from ebm_lightning.supports import Binary, Gaussian, Support


class RBMLogits(nn.Module):
    r"""Logits of a restricted Boltzmann machine over x, a one-hot label y and binary hidden units h.

    .. math::
        -E(x, y, h) &= b \cdot z + d_y + h \cdot (c + U_{\cdot y} + W z) \\
        f_y(x) &= b \cdot z + d_y + \sum_j \mathrm{softplus}(c_j + U_{jy} + (W z)_j)

    On :class:`~ebm_lightning.supports.Binary` z is x. On :class:`~ebm_lightning.supports.Gaussian` z = (x - mean) / std
    and the reference density does the rest: given h, z is normal with mean b + W'h and unit variance, which is the
    Gaussian-Bernoulli RBM with fixed deviations. One class makes it a plain RBM, with -f its free energy.

    References:
        Larochelle & Bengio, Classification using discriminative restricted Boltzmann machines, 2008.
        Welling, Rosen-Zvi & Hinton, Exponential family harmoniums, 2004, for the Gaussian case.

    Arguments:
        num_visible: V, the number of components of x.
        num_hidden: H.
        num_classes: K.
        support: Binary or Gaussian, of V components in any shape; ``Binary((V,))`` by default.

    Raises:
        ValueError: A number below 1, or a support of another kind or size.
    """

    data_mean: Tensor
    class_counts: Tensor

    def __init__(self, num_visible: int, num_hidden: int, num_classes: int, support: Support | None = None) -> None:
        super().__init__()
        for name, value in (("num_visible", num_visible), ("num_hidden", num_hidden), ("num_classes", num_classes)):
            if value < 1:
                raise ValueError(f"'{name}' should be at least 1, got {value}.")
        self.num_visible = num_visible
        self.num_hidden = num_hidden
        self.num_classes = num_classes
        self.support = _checked(support or Binary((num_visible,)), num_visible)
        width = max(num_visible, num_hidden) ** -0.5  # Larochelle & Bengio, sec. 6
        self.weight = nn.Parameter(torch.empty(num_hidden, num_visible).uniform_(-width, width))
        self.class_weight = nn.Parameter(torch.empty(num_hidden, num_classes).uniform_(-width, width))
        self.visible_bias = nn.Parameter(torch.zeros(num_visible))
        self.hidden_bias = nn.Parameter(torch.zeros(num_hidden))
        self.class_bias = nn.Parameter(torch.zeros(num_classes))
        self.register_buffer("data_mean", torch.zeros(num_visible))
        self.register_buffer("class_counts", torch.zeros(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """f(x), shape (N, K); in float32 or better under autocast too, for rounding these is rounding the density."""
        with torch.autocast(x.device.type, enabled=False):
            z = self.standardised(x)
            fields = self._hidden_fields(z)[:, None] + self.class_weight.T.to(z.dtype)
            return softplus(fields).sum(2) + (z @ self.visible_bias.to(z.dtype))[:, None] + self.class_bias

    # The conditionals.

    def hidden_logits(self, x: Tensor, y: Tensor) -> Tensor:
        """Log odds of each hidden unit given x and labels (N,), shape (N, H)."""
        return self._hidden_fields(self.standardised(x)) + self.class_weight.T[y]

    def visible_fields(self, h: Tensor) -> Tensor:
        """b + W'h, shape (N, V): log odds of each binary unit, or mean of each standardised Gaussian one."""
        return self.visible_bias + h @ self.weight.to(h.dtype)

    def class_logits(self, h: Tensor) -> Tensor:
        """Logits of the label given h, shape (N, K)."""
        return self.class_bias + h @ self.class_weight.to(h.dtype)

    def draw_visible(self, h: Tensor, generator: torch.Generator | None) -> Tensor:
        """x given h, shape (N, *shape)."""
        fields, shape = self.visible_fields(h), (len(h), *(self.support.shape or ()))
        if isinstance(self.support, Gaussian):
            noise = torch.randn(fields.shape, generator=generator, device=h.device, dtype=h.dtype)
            return self.support.destandardise((fields + noise).view(shape))
        return bernoulli(fields, generator).view(shape)

    # The exact sums.

    def log_sum_visible(self, h: Tensor) -> Tensor:
        r"""log of the sum over x (integral against q) of exp(-E(x, y, h)), for each class, shape (N, K)."""
        fields = self.visible_fields(h)
        summed = 0.5 * fields.square() if isinstance(self.support, Gaussian) else softplus(fields)
        return self.class_logits(h) + (h @ self.hidden_bias.to(h.dtype) + summed.sum(1))[:, None]

    # What annealing starts from.

    @torch.no_grad()
    def observe(self, x: Tensor, y: Tensor) -> None:
        """Take a batch into the running mean of the data and the counts of classes: the base rates of annealing."""
        counts = torch.bincount(y, minlength=self.num_classes).to(self.class_counts)
        self.class_counts += counts
        self.data_mean += (x.flatten(1).float().mean(0) - self.data_mean) * (len(y) / self.class_counts.sum())

    def standardised(self, x: Tensor) -> Tensor:
        """z, shape (N, V), in float32 or better."""
        if isinstance(self.support, Gaussian):
            x = self.support.standardise(x)
        z = x.flatten(1)
        return z.to(self.weight.dtype) if z.dtype in (torch.bfloat16, torch.float16) else z

    def _hidden_fields(self, z: Tensor) -> Tensor:
        """c + W z, shape (N, H), in the precision of z: sums over all states want float64."""
        return linear(z, self.weight.to(z.dtype), self.hidden_bias.to(z.dtype))


def bernoulli(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Independent draws of {0, 1} with these log odds, of the logits' dtype."""
    u = torch.rand(logits.shape, generator=generator, device=logits.device, dtype=logits.dtype)
    return (u < logits.sigmoid()).to(logits.dtype)


def categorical(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """One draw from each row's softmax, shape (N,), int64."""
    return torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)


def _checked(support: Support, num_visible: int) -> Support:
    if not isinstance(support, Binary | Gaussian):
        raise ValueError(
            f"'support' should be Binary or Gaussian for an RBM, got {type(support).__name__}. Binarise images, or "
            "take Gaussian(mean, std, shape) for real numbers."
        )
    size = torch.Size(support.shape).numel()
    if size != num_visible:
        raise ValueError(f"'num_visible' should be the size of 'support' {support.shape}, {size}, got {num_visible}.")
    return support
