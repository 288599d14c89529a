"""Log Z of binary units by summing all their states: exact, and out of reach beyond some twenty of them."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ebm_lightning.boltzmann import RBMLogits
from ebm_lightning.energies import Energy
from ebm_lightning.supports import Binary

MOST_UNITS = 20
MOST_SWEPT = 12
SECONDS_PER_TERM = 2e-8  # for one unit of the other layer in one state, on one CPU thread (measured, 784 x 20)


def enumeration(energy: Energy, units: int, chunk_size: int = 8192) -> float:
    """log Z in nats of an energy on {0, 1}^units, by summing all 2^units states.

    Raises:
        ValueError: More than 20 units.
    """
    with torch.no_grad():
        log_p = [(-energy(states).double()).logsumexp(0) for states in binary_states(units, chunk_size)]
    return float(torch.stack(log_p).logsumexp(0))


def rbm_log_z(weights: Tensor, visible_bias: Tensor, hidden_bias: Tensor, chunk_size: int = 8192) -> float:
    r"""log Z in nats of a binary RBM, E(v, h) = -v W h - b v - c h, by summing the states of its smaller layer.

    .. math:: Z = \sum_h e^{c h} \prod_i (1 + e^{b_i + (W h)_i})

    Arguments:
        weights: W, shape (V, H).
        visible_bias: b, shape (V,).
        hidden_bias: c, shape (H,).
        chunk_size: States summed at once.

    Raises:
        ValueError: Both layers have more than 20 units.
    """
    w, b, c = weights.double(), visible_bias.double(), hidden_bias.double()
    if len(b) < len(c):
        w, b, c = w.T, c, b
    _affordable(len(c), len(b))

    def energy(h: Tensor) -> Tensor:
        return -(h.double() @ c) - softplus(h.double() @ w.T + b).sum(1)

    return enumeration(energy, len(c), chunk_size)


def rbm_class_log_z(rbm: RBMLogits, chunk_size: int = 8192) -> Tensor:
    r"""log Z_y of a classification RBM by summing the states of its smaller layer, shape (K,), float64.

    .. math:: Z_y = e^{d_y} \sum_h e^{h \cdot (c + U_{\cdot y})} \prod_i (1 + e^{b_i + (W'h)_i})

    Differentiable: the gradient of its logsumexp is the whole negative phase. Gaussian visible units are integrated in
    closed form.

    Arguments:
        rbm: The network.
        chunk_size: States summed at once; with a gradient all of them are kept.

    Raises:
        ValueError: The layer to sum has more than 20 units.
    """
    over_visible = isinstance(rbm.support, Binary) and rbm.num_visible < rbm.num_hidden
    units, other = (rbm.num_visible, rbm.num_hidden) if over_visible else (rbm.num_hidden, rbm.num_visible)
    _affordable(units, other * (rbm.num_classes if over_visible else 1))
    log_p = [
        (rbm(states) if over_visible else rbm.log_sum_visible(states)).logsumexp(0)
        for states in (chunk.to(rbm.weight.device).double() for chunk in binary_states(units, chunk_size))
    ]
    return torch.stack(log_p).logsumexp(0)


@torch.no_grad()
def sweep_matrix(rbm: RBMLogits) -> Tensor:
    r"""The exact law of one block Gibbs sweep of a binary RBM: P(x', y' | x, y), rows summing to 1.

    .. math:: P = \sum_h p(h | x, y) \, p(x' | h) \, p(y' | h)

    Its k-th power is the law of CD-k's chains, so contrastive divergence's bias needs no sampling to be known.

    Arguments:
        rbm: The network. State i K + y is the i-th of :func:`binary_states` with label y.

    Returns:
        Shape (2^V K, 2^V K), float64.

    Raises:
        ValueError: A layer has more than 12 units, or visible units that are not binary.
    """
    if not isinstance(rbm.support, Binary) or max(rbm.num_visible, rbm.num_hidden) > MOST_SWEPT:
        raise ValueError(
            f"'rbm' should have binary layers of at most {MOST_SWEPT} units for a matrix over all states, got "
            f"{rbm.num_visible} and {rbm.num_hidden} on {type(rbm.support).__name__}. Average over chains instead."
        )
    x, h = (torch.cat(list(binary_states(units))).double() for units in (rbm.num_visible, rbm.num_hidden))
    labels = torch.arange(rbm.num_classes)
    up = rbm.hidden_logits(x.repeat_interleave(len(labels), 0), labels.repeat(len(x)))
    visible, classes = rbm.visible_fields(h), rbm.class_logits(h).log_softmax(1)
    down = _log_bernoulli(visible, x)[:, :, None] + classes[:, None]
    return _log_bernoulli(up, h).exp() @ down.flatten(1).exp()


def _log_bernoulli(logits: Tensor, states: Tensor) -> Tensor:
    """log probability of each state (S, D) under each row of log odds (N, D), shape (N, S)."""
    return logits @ states.T - softplus(logits).sum(1, keepdim=True)


def binary_states(units: int, chunk_size: int = 8192) -> Iterator[Tensor]:
    """All states of {0, 1}^units, float32, in chunks of shape (chunk, units)."""
    _affordable(units, units)
    return ((n[:, None] >> torch.arange(units) & 1).float() for n in torch.arange(2**units).split(chunk_size))


def _affordable(units: int, terms: int) -> None:
    if units <= MOST_UNITS:
        return
    hours, gib = 2.0**units * terms * SECONDS_PER_TERM / 3600, 2.0**units * terms * 8 / 2**30
    time = f"{hours * 3600:.0f} seconds" if hours < 1 else f"{hours:.3g} hours"
    raise ValueError(
        f"'units' should be at most {MOST_UNITS} to enumerate, got {units}: 2^{units} states would take about {time} "
        f"on one CPU thread, and {gib:.3g} GiB with a gradient. Use annealing: rbm_ais."
    )
