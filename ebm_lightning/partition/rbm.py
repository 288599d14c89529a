"""Log Z of a binary restricted Boltzmann machine, with classes or without, by annealing with block Gibbs sweeps."""

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ebm_lightning.boltzmann import RBMLogits, bernoulli, categorical
from ebm_lightning.energies import Energy, JointEnergy
from ebm_lightning.partition.ais import stream_of
from ebm_lightning.partition.islands import Island, combine, island_sizes
from ebm_lightning.partition.log_z import LogZ, effective_share
from ebm_lightning.partition.plan import Plan
from ebm_lightning.samplers import MALA
from ebm_lightning.streams import make_generator
from ebm_lightning.supports import Binary


@dataclasses.dataclass(frozen=True)
class _Machine:
    """Parameters in float64: W (V, H), U (H, K), biases b, c, d; and the base's fields of x (V,) and y (K,)."""

    weights: Tensor
    class_weights: Tensor
    visible: Tensor
    hidden: Tensor
    classes: Tensor
    base_visible: Tensor
    base_classes: Tensor

    @property
    def base_log_z(self) -> Tensor:
        return softplus(self.base_visible).sum() + len(self.hidden) * math.log(2) + self.base_classes.logsumexp(0)

    def hidden_fields(self, v: Tensor) -> Tensor:
        """At beta 1, for each class, shape (N, K, H)."""
        return (self.hidden + v @ self.weights)[:, None] + self.class_weights.T

    def log_p(self, beta: float, v: Tensor, fields: Tensor) -> Tensor:
        """log p*_beta(v, y) for each class, hidden units summed out, shape (N, K)."""
        visible, classes = (
            torch.lerp(self.base_visible, self.visible, beta),
            torch.lerp(self.base_classes, self.classes, beta),
        )
        return softplus(beta * fields).sum(2) + (v @ visible)[:, None] + classes

    def start(self, n: int, generator: torch.Generator) -> Tensor:
        return bernoulli(self.base_visible.expand(n, -1), generator)

    def sweep(self, beta: float, fields: Tensor, log_p: Tensor, generator: torch.Generator) -> Tensor:
        """y given v, h given both, v given h: exact conditionals of p_beta."""
        y = categorical(log_p, generator)
        h = bernoulli(beta * fields[torch.arange(len(y)), y], generator)
        return bernoulli(torch.lerp(self.base_visible, self.visible + h @ self.weights.T, beta), generator)


def rbm_ais(
    weights: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    data_mean: Tensor | None,
    temperatures: int = 1000,
    chains: int = 100,
    generator: torch.Generator | None = None,
) -> LogZ:
    r"""log Z of E(v, h) = -v W h - b v - c h, the hidden units summed out, from independent base rates.

    .. math:: \log p^*_\beta(v) = (1 - \beta) b_0 v + \beta b v + \sum_j \log(1 + e^{\beta (c + v W)_j})

    The base matters more than the temperatures: from a uniform base, an RBM trained on MNIST is missed by ten nats
    with an effective sample size that looks healthy. That is why ``data_mean`` has no default.

    References:
        Salakhutdinov & Murray, On the quantitative analysis of deep belief networks, 2008, sec. 4.1.

    Arguments:
        weights: W, shape (V, H).
        visible_bias: b, shape (V,).
        hidden_bias: c, shape (H,).
        data_mean: Mean of the training data, shape (V,), in [0, 1], for the base rates. None takes those of b alone,
            which is right for weak weights and misses a trained RBM by as much as the uniform base.
        temperatures: Steps of beta, evenly spaced: one block Gibbs sweep each.
        chains: In all, in at least 10 islands with streams of their own.
        generator: Its seed starts the streams; its device is where chains run.

    Raises:
        ValueError: Fewer than 20 chains, no temperatures, or ``data_mean`` outside [0, 1].
    """
    b = visible_bias.detach().double()
    one = torch.zeros(1, dtype=torch.float64)
    machine = _Machine(
        weights=weights.detach().double(),
        class_weights=torch.zeros(len(hidden_bias), 1, dtype=torch.float64),
        visible=b,
        hidden=hidden_bias.detach().double(),
        classes=one,
        base_visible=b if data_mean is None else _log_odds(data_mean),
        base_classes=one,
    )
    return dataclasses.replace(_anneal(machine, temperatures, chains, generator), per_class=None)


def classification_rbm_ais(
    energy: Energy,
    *,
    data_mean: Tensor | None = None,
    temperatures: int = 1000,
    chains: int = 100,
    generator: torch.Generator | None = None,
) -> LogZ:
    r"""log Z and every log Z_y of a classification RBM on binary units, from the base rates of its training data.

    .. math:: \log p^*_\beta(x) = (1 - \beta) b_0 x + \beta b x
        + \log \sum_y e^{(1 - \beta) r_y + \beta d_y} \prod_j (1 + e^{\beta (c_j + U_{jy} + (W x)_j)})

    The label and the hidden units are summed out of the weights; r_y is the log share of class y in training.

    References:
        Salakhutdinov & Murray 2008, sec. 4.1.

    Arguments:
        energy: That of a :class:`~ebm_lightning.modules.ClassificationRBM`.
        data_mean: Mean of the data, shape (V,), in [0, 1]; by default that which the RBM was trained on.
        temperatures, chains, generator: As for :func:`rbm_ais`.

    Raises:
        ValueError: Not the energy of an RBM on binary units at temperature 1, or one that saw no data where
            ``data_mean`` is not given; and whatever :func:`rbm_ais` raises.
    """
    rbm = _binary_rbm(energy)
    seen = bool(rbm.class_counts.sum() > 0)
    if data_mean is None and not seen:
        raise ValueError(
            "'data_mean' should be given for an RBM that was not trained by ClassificationRBM, got None. Pass the mean "
            "of the data: from uniform base rates log Z may be missed by ten nats."
        )
    shares = (rbm.class_counts + 1).double().log().log_softmax(0)
    machine = _Machine(
        weights=rbm.weight.detach().double().T,
        class_weights=rbm.class_weight.detach().double(),
        visible=rbm.visible_bias.detach().double(),
        hidden=rbm.hidden_bias.detach().double(),
        classes=rbm.class_bias.detach().double(),
        base_visible=_log_odds(rbm.data_mean if data_mean is None else data_mean.flatten()),
        base_classes=shares,
    )
    return _anneal(machine, temperatures, chains, generator)


@torch.no_grad()
def _anneal(machine: _Machine, temperatures: int, chains: int, generator: torch.Generator | None) -> LogZ:
    if temperatures < 1:
        raise ValueError(f"'temperatures' should be at least 1, got {temperatures}.")
    seed, device = stream_of(generator)
    machine = _Machine(*(getattr(machine, field.name).to(device) for field in dataclasses.fields(machine)))
    betas = torch.linspace(0, 1, temperatures + 1, dtype=torch.float64)
    islands = [
        _island(machine, n, betas, make_generator(seed, "rbm island", number, device=device))
        for number, n in enumerate(island_sizes(chains, None))
    ]
    return combine(islands, Plan(betas, torch.ones(temperatures), 0), MALA(), resample=False)


def _island(machine: _Machine, n: int, betas: Tensor, generator: torch.Generator) -> Island:
    v = machine.start(n, generator)
    log_w, curve = machine.base_log_z.expand(n).clone(), []
    for previous, beta in zip(betas[:-1].tolist(), betas[1:].tolist(), strict=True):
        fields = machine.hidden_fields(v)
        log_p = machine.log_p(beta, v, fields)
        log_w += log_p.logsumexp(1) - machine.log_p(previous, v, fields).logsumexp(1)
        curve.append(effective_share(log_w))
        v = machine.sweep(beta, fields, log_p, generator)
    log_p_y = machine.log_p(1.0, v, machine.hidden_fields(v)).log_softmax(1)
    log_class = (log_w.log_softmax(0)[:, None] + log_p_y).logsumexp(0)
    return Island(log_w.cpu(), log_class.cpu(), torch.tensor(curve), torch.ones(len(curve)))


def _binary_rbm(energy: Energy) -> RBMLogits:
    rbm = energy.classifier if isinstance(energy, JointEnergy) and energy.temperature == 1 else None
    if not isinstance(rbm, RBMLogits) or not isinstance(rbm.support, Binary):
        raise ValueError(
            f"'energy' should be that of a ClassificationRBM on Binary at temperature 1, got {type(energy).__name__}. "
            "Use ais for continuous data."
        )
    return rbm


def _log_odds(mean: Tensor) -> Tensor:
    """Of smoothed base rates: a pixel that is never on keeps a small chance."""
    if not ((mean >= 0) & (mean <= 1)).all():
        raise ValueError(f"'data_mean' should be in [0, 1], got {float(mean.min()):.3g} to {float(mean.max()):.3g}.")
    return (0.05 + 0.9 * mean.double()).logit()
