"""Exact log Z of binary units by summing over all states; feasible up to about 20 units."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ebm_lightning.checks import check_number
from ebm_lightning.energies import Energy
from ebm_lightning.rbm import RBMLogits
from ebm_lightning.supports import Binary

MAX_UNITS = 20
MAX_SWEEP_UNITS = 12
SECONDS_PER_TERM = 2e-8  # per state and unit of the other layer, on one CPU thread (measured for 784 x 20 units)


def enumerate_log_z(energy: Energy, units: int, chunk_size: int = 8192) -> float:
    """log Z in nats of an energy on {0, 1}^units, by summing over all 2^units states.

    Arguments:
        energy: Maps (N, units) to (N,).
        units: Number of binary units.
        chunk_size: Number of states to evaluate at once.

    Raises:
        ValueError: More than 20 units.
    """
    with torch.no_grad():
        log_p = [(-energy(states).double()).logsumexp(0) for states in binary_states(units, chunk_size)]
    return float(torch.stack(log_p).logsumexp(0))


def rbm_log_z(weights: Tensor, visible_bias: Tensor, hidden_bias: Tensor, chunk_size: int = 8192) -> float:
    r"""log Z in nats of the binary RBM E(v, h) = -v W h - b v - c h, by summing over the states of its smaller layer.

    .. math:: Z = \sum_h e^{c h} \prod_i (1 + e^{b_i + (W h)_i})

    Arguments:
        weights: W, shape (V, H).
        visible_bias: b, shape (V,).
        hidden_bias: c, shape (H,).
        chunk_size: Number of states to evaluate at once.

    Raises:
        ValueError: Both layers have more than 20 units.
    """
    w, b, c = weights.double(), visible_bias.double(), hidden_bias.double()
    if len(b) < len(c):
        w, b, c = w.T, c, b
    _check_units(len(c), len(b))

    def energy(h: Tensor) -> Tensor:
        return -(h.double() @ c) - softplus(h.double() @ w.T + b).sum(1)

    return enumerate_log_z(energy, len(c), chunk_size)


def rbm_class_log_z(rbm: RBMLogits, chunk_size: int = 8192) -> Tensor:
    r"""log Z_y of a classification RBM, by summing over the states of its smaller layer, shape (K,), float64.

    .. math:: Z_y = e^{d_y} \sum_h e^{h \cdot (c + U_{\cdot y})} \prod_i (1 + e^{b_i + (W'h)_i})

    Differentiable: the gradient of its logsumexp is the negative phase of the likelihood gradient. Gaussian visible
    units are integrated in closed form.

    Arguments:
        rbm: The network.
        chunk_size: Number of states to evaluate at once. With a gradient, the graph of all chunks is kept.

    Raises:
        ValueError: The layer to sum over has more than 20 units.
    """
    over_visible = isinstance(rbm.support, Binary) and rbm.num_visible < rbm.num_hidden
    units, other = (rbm.num_visible, rbm.num_hidden) if over_visible else (rbm.num_hidden, rbm.num_visible)
    _check_units(units, other * (rbm.num_classes if over_visible else 1))
    log_p = [
        (rbm(states) if over_visible else rbm.log_sum_visible(states)).logsumexp(0)
        for states in (chunk.to(rbm.weight.device).double() for chunk in binary_states(units, chunk_size))
    ]
    return torch.stack(log_p).logsumexp(0)


@torch.no_grad()
def sweep_matrix(rbm: RBMLogits) -> Tensor:
    r"""Transition matrix of one block Gibbs sweep of a binary RBM: P(x', y' | x, y), whose rows sum to 1.

    .. math:: P = \sum_h p(h | x, y) \, p(x' | h) \, p(y' | h)

    Its k-th power gives the distribution of CD-k's chains, and so the exact bias of contrastive divergence.

    Arguments:
        rbm: The network.

    Returns:
        Shape (2^V K, 2^V K), float64. Index i K + y is the i-th state of :func:`binary_states` with label y.

    Raises:
        ValueError: A layer has more than 12 units, or the visible units are not binary.
    """
    if not isinstance(rbm.support, Binary):
        raise ValueError(
            f"'rbm' should be on Binary for a matrix over all states, got {type(rbm.support).__name__}. Average over "
            "chains instead."
        )
    for name, units in (("num_visible", rbm.num_visible), ("num_hidden", rbm.num_hidden)):
        check_number(name, units, at_most=MAX_SWEEP_UNITS, remedy="Average over chains instead.")
    x, h = (torch.cat(list(binary_states(units))).double() for units in (rbm.num_visible, rbm.num_hidden))
    labels = torch.arange(rbm.num_classes)
    up = rbm.hidden_logits(x.repeat_interleave(len(labels), 0), labels.repeat(len(x)))
    visible, classes = rbm.visible_fields(h), rbm.class_logits(h).log_softmax(1)
    down = _log_bernoulli(visible, x)[:, :, None] + classes[:, None]
    return _log_bernoulli(up, h).exp() @ down.flatten(1).exp()


def _log_bernoulli(logits: Tensor, states: Tensor) -> Tensor:
    """Log probability of each state (S, D) under each row of log odds (N, D), shape (N, S)."""
    return logits @ states.T - softplus(logits).sum(1, keepdim=True)


def binary_states(units: int, chunk_size: int = 8192) -> Iterator[Tensor]:
    """All states of {0, 1}^units, float32, in chunks of shape (chunk, units).

    Raises:
        ValueError: More than 20 units.
    """
    _check_units(units, units)
    return ((n[:, None] >> torch.arange(units) & 1).float() for n in torch.arange(2**units).split(chunk_size))


def _check_units(units: int, terms: int) -> None:
    """Refuse sums over too many states. ``terms`` is the cost of one state, in units of the other layer."""
    if units > MAX_UNITS:
        check_number("units", units, at_most=MAX_UNITS, remedy=f"{_cost(units, terms)} Use annealing: rbm_ais.")


def _cost(units: int, terms: int) -> str:
    if units > 60:
        return f"2^{units} states are too many to sum."
    hours, gib = 2.0**units * terms * SECONDS_PER_TERM / 3600, 2.0**units * terms * 8 / 2**30
    time = f"{hours * 3600:.0f} seconds" if hours < 1 else f"{hours:.3g} hours"
    return (
        f"Summing 2^{units} states would take about {time} on one CPU thread, and {gib:.3g} GiB of memory with a "
        "gradient."
    )
