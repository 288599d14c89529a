"""Log Z of a binary restricted Boltzmann machine by annealing with block Gibbs sweeps."""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ebm_lightning.partition.ais import stream_of
from ebm_lightning.partition.islands import Island, combine, island_sizes
from ebm_lightning.partition.log_z import LogZ, effective_share
from ebm_lightning.partition.plan import Plan
from ebm_lightning.samplers import MALA
from ebm_lightning.streams import make_generator


def rbm_ais(
    weights: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    data_mean: Tensor | None = None,
    temperatures: int = 1000,
    chains: int = 100,
    generator: torch.Generator | None = None,
) -> LogZ:
    r"""log Z of E(v, h) = -v W h - b v - c h, the hidden units summed out, from independent base rates.

    .. math:: \log p^*_\beta(v) = (1 - \beta) b_0 v + \beta b v + \sum_j \log(1 + e^{\beta (c + v W)_j})

    The base matters more than the temperatures: from a uniform base, an RBM trained on MNIST is missed by ten nats
    with an effective sample size that looks healthy. Give ``data_mean``.

    References:
        Salakhutdinov & Murray, On the quantitative analysis of deep belief networks, 2008, sec. 4.1.

    Arguments:
        weights: W, shape (V, H).
        visible_bias: b, shape (V,).
        hidden_bias: c, shape (H,).
        data_mean: Mean of the training data, shape (V,), in [0, 1], for the base rates; b alone by default.
        temperatures: Steps of beta, evenly spaced: one block Gibbs sweep each.
        chains: In all, in at least 10 islands with streams of their own.
        generator: Its seed starts the streams; its device is where chains run.

    Raises:
        ValueError: Fewer than 20 chains, or ``data_mean`` outside [0, 1].
    """
    seed, device = stream_of(generator)
    w, b, c = (t.detach().double().to(device) for t in (weights, visible_bias, hidden_bias))
    base = b if data_mean is None else _log_odds(data_mean.double().to(device))
    betas = torch.linspace(0, 1, temperatures + 1, dtype=torch.float64)
    islands = []
    for number, n in enumerate(island_sizes(chains, None)):
        rng = make_generator(seed, "rbm island", number, device=device)
        v = _bernoulli(base.expand(n, -1), rng)
        log_w = torch.full((n,), float(softplus(base).sum()) + len(c) * math.log(2), dtype=torch.float64, device=device)
        curve = []
        for previous, beta in zip(betas[:-1].tolist(), betas[1:].tolist(), strict=True):
            field = c + v @ w
            log_w += (beta - previous) * (v @ (b - base)) + (softplus(beta * field) - softplus(previous * field)).sum(1)
            curve.append(effective_share(log_w))
            h = _bernoulli(beta * field, rng)
            v = _bernoulli((1 - beta) * base + beta * (b + h @ w.T), rng)
        islands.append(Island(log_w.cpu(), None, torch.tensor(curve), torch.ones(temperatures)))
    plan = Plan(betas, torch.ones(temperatures), 0)
    return combine(islands, plan, MALA(), resample=False)


def _bernoulli(logits: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.rand(logits.shape, generator=generator, device=logits.device) < logits.sigmoid()).double()


def _log_odds(mean: Tensor) -> Tensor:
    """Of smoothed base rates: a pixel that is never on keeps a small chance."""
    if not ((mean >= 0) & (mean <= 1)).all():
        raise ValueError(f"'data_mean' should be in [0, 1], got {float(mean.min()):.3g} to {float(mean.max()):.3g}.")
    return (0.05 + 0.9 * mean).logit()
