"""Mass nearer to the center than all chains, or farther from it, measured by scaled copies of the chains.

In many dimensions a component that is wider or narrower than the others lies in a shell of its own radius, and no chain
may have come there. Moving all chains towards their mean or away from it finds it.
"""

import math

import torch
from torch import Tensor

from ebm_lightning.energies import Energy
from ebm_lightning.partition.student import RUN_AGAIN
from ebm_lightning.samplers import frozen
from ebm_lightning.supports import Box, Support

COPIES = 250  # chains that are scaled
SCALES = 24  # on each side of 1
LARGEST = 4.0
LEAST = 0.04  # nats that may be missed
ERRORS = 4.0  # standard errors by which what is missed has to exceed 0
WHY = (
    "The model has heavy tails or a part of another width: copies of the chains, scaled by {:.2g} around their mean, "
    f"find at least {{:.2g}} nats of log Z where no chain is. {RUN_AGAIN}, or pass data= of all parts."
)


def missed_shells(energy: Energy, support: Support, x: Tensor, log_w: Tensor) -> tuple[str, int]:
    r"""Why mass is missed at other distances from the mean than those of the chains; empty if no sign of it was found.

    For draws x of the model, with mean m and in D dimensions,

    .. math:: \mathbb{E}\left[ s^D \frac{p(m + s (x - m))}{p(x)} 1_A(m + s (x - m)) \right] = P(A) \text{ for a set } A
        \text{ of scaled draws}

    A is what is farther from the mean than all chains, or nearer. The support has to have no walls.

    Arguments:
        energy: Maps (N, *shape) to (N,).
        support: Its domain.
        x: Ends of the chains, shape (N, *shape).
        log_w: Their log weights, shape (N,).

    Returns:
        The reason, and the number of evaluations of the energy.
    """
    if isinstance(support, Box):
        return "", 0
    with frozen(energy), torch.no_grad():
        scale, nats, evaluations = _largest_miss(energy, x, log_w.double().to(x.device).softmax(0))
    return (WHY.format(scale, nats) if nats > LEAST else ""), evaluations


def _largest_miss(energy: Energy, x: Tensor, w: Tensor) -> tuple[float, float, int]:
    """The scale at which copies find most, what they find in nats of log Z, and the number of evaluations."""
    rows = x.flatten(1).double()
    mean = w @ rows
    std = (w @ (rows - mean).square()).sqrt().clamp(min=1e-30)
    radius = ((rows - mean) / std).norm(dim=1)
    nearest, farthest = float(radius.min()), float(radius.max())
    chosen = torch.linspace(0, len(x) - 1, min(len(x), COPIES), device=x.device).round().long()
    share = w[chosen] / w[chosen].sum()
    rows, radius, first = rows[chosen] - mean, radius[chosen], energy(x[chosen]).double()
    worst, evaluations = (0.0, 1.0), len(chosen)
    for exponent in torch.linspace(-1, 1, 2 * SCALES + 1).tolist():
        scale = LARGEST**exponent
        beyond = (scale * radius > farthest) | (scale * radius < nearest)
        if not beyond.any():
            continue
        copies = (mean + scale * rows[beyond]).to(x.dtype).view(-1, *x.shape[1:])
        log_ratio = first[beyond] - energy(copies).double() + len(mean) * math.log(scale)
        evaluations += len(copies)
        value = torch.zeros_like(first)
        value[beyond] = log_ratio.nan_to_num(nan=-math.inf).clamp(max=50).exp()
        mass = float(share @ value)
        error = float((share.square() @ (value - mass).square()).sqrt())
        if mass - ERRORS * error > worst[0]:
            worst = (mass - ERRORS * error, scale)
    return worst[1], math.log1p(worst[0]), evaluations
