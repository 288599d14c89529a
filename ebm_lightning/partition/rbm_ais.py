"""log Z of binary restricted Boltzmann machines, with or without classes, by annealing with block Gibbs sweeps."""

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ebm_lightning.checks import check_integer, check_number
from ebm_lightning.energies import Energy, JointEnergy
from ebm_lightning.partition.log_z import LogZ, relative_ess
from ebm_lightning.partition.smc import Island, OneProcess, Ranks, combine, island_sizes, run_islands
from ebm_lightning.rbm import RBMLogits, bernoulli, categorical
from ebm_lightning.rng import make_generator, seed_and_device
from ebm_lightning.samplers.base import Progress
from ebm_lightning.supports import Binary


@dataclasses.dataclass(frozen=True)
class _RBM:
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


def rbm_ais(
    weights: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    data_mean: Tensor | None,
    temperatures: int = 1000,
    num_chains: int = 100,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> LogZ:
    r"""log Z of the RBM E(v, h) = -v W h - b v - c h, by annealing from independent visible units.

    .. math:: \log p^*_\beta(v) = (1 - \beta) b_0 v + \beta b v + \sum_j \log(1 + e^{\beta (c + v W)_j})

    The base rates b_0 matter more than the number of temperatures. From uniform base rates, log Z of an RBM trained
    on MNIST is wrong by ten nats while the effective sample size looks healthy. So ``data_mean`` has no default.

    References:
        Salakhutdinov & Murray, On the quantitative analysis of deep belief networks, 2008, sec. 4.1.

    Arguments:
        weights: W, shape (V, H).
        visible_bias: b, shape (V,).
        hidden_bias: c, shape (H,).
        data_mean: Mean of the training data, shape (V,), in [0, 1], for the base rates. None uses b for b_0, which is
            accurate for small weights. For a trained RBM it is as bad as uniform base rates.
        temperatures: Number of evenly spaced steps of beta, with one block Gibbs sweep each.
        num_chains: Total number of chains. They run in at least 10 islands with separate random streams.
        generator: Its seed starts the streams of the islands, its device is where chains run.
        progress, ranks: As for :func:`~ebm_lightning.ais`.

    Raises:
        ValueError: Fewer than 20 chains, no temperatures, or ``data_mean`` outside [0, 1].
    """
    b = visible_bias.detach().double()
    one = torch.zeros(1, dtype=torch.float64)
    machine = _RBM(
        weights=weights.detach().double(),
        class_weights=torch.zeros(len(hidden_bias), 1, dtype=torch.float64),
        visible=b,
        hidden=hidden_bias.detach().double(),
        classes=one,
        base_visible=b if data_mean is None else _log_odds(data_mean),
        base_classes=one,
    )
    return dataclasses.replace(_anneal(machine, temperatures, num_chains, generator, progress, ranks), per_class=None)


def classification_rbm_ais(
    energy: Energy,
    *,
    data_mean: Tensor | None = None,
    temperatures: int = 1000,
    num_chains: int = 100,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> LogZ:
    r"""log Z and log Z_y of a classification RBM on binary units, by annealing from the base rates of its data.

    .. math:: \log p^*_\beta(x) = (1 - \beta) b_0 x + \beta b x
        + \log \sum_y e^{(1 - \beta) r_y + \beta d_y} \prod_j (1 + e^{\beta (c_j + U_{jy} + (W x)_j)})

    The label and the hidden units are summed out of the weights. r_y is the log of the fraction of class y in the
    training data.

    References:
        Salakhutdinov & Murray 2008, sec. 4.1.

    Arguments:
        energy: The energy of a :class:`~ebm_lightning.modules.ClassificationRBM`.
        data_mean: Mean of the data, shape (V,), in [0, 1]; by default that of the RBM's training data.
        temperatures, num_chains, generator, progress, ranks: As for :func:`rbm_ais`.

    Raises:
        ValueError: ``energy`` is not that of an RBM on binary units at temperature 1, or ``data_mean`` is None for an
            RBM that has seen no data, and the errors of :func:`rbm_ais`.
    """
    rbm = _binary_rbm(energy)
    seen = bool(rbm.class_counts.sum() > 0)
    if data_mean is None and not seen:
        raise ValueError(
            "'data_mean' should be given for an RBM that was not trained by ClassificationRBM, got None. Pass the mean "
            "of the data to classification_rbm_ais. With uniform base rates log Z may be wrong by ten nats."
        )
    machine = _RBM(
        weights=rbm.weight.detach().double().T,
        class_weights=rbm.class_weight.detach().double(),
        visible=rbm.visible_bias.detach().double(),
        hidden=rbm.hidden_bias.detach().double(),
        classes=rbm.class_bias.detach().double(),
        base_visible=_log_odds(rbm.data_mean if data_mean is None else data_mean.flatten()),
        base_classes=(rbm.class_counts + 1).double().log().log_softmax(0),  # + 1: classes without data stay possible
    )
    return _anneal(machine, temperatures, num_chains, generator, progress, ranks)


@torch.no_grad()
def _anneal(
    machine: _RBM,
    temperatures: int,
    num_chains: int,
    generator: torch.Generator | None,
    progress: Progress | None,
    ranks: Ranks | None,
) -> LogZ:
    check_integer("temperatures", temperatures, at_least=1)
    sizes = island_sizes(num_chains, None)
    seed, device = seed_and_device(generator)
    machine = _RBM(*(getattr(machine, field.name).to(device) for field in dataclasses.fields(machine)))
    betas = torch.linspace(0, 1, temperatures + 1, dtype=torch.float64)

    def run(number: int, n: int, progress_iter: Iterator[int]) -> Island:
        return _island(machine, n, betas, make_generator(seed, "rbm island", number, device=device), progress_iter)

    islands = run_islands(run, sizes, temperatures, ranks or OneProcess(), progress)
    return combine(islands, betas, resampled=False, gradient_evaluations=num_chains * (1 + temperatures))


def _island(machine: _RBM, n: int, betas: Tensor, generator: torch.Generator, progress_iter: Iterator[int]) -> Island:
    v = machine.base_samples(n, generator)
    log_w, ess = machine.base_log_z.expand(n).clone(), []
    for previous, beta, _ in zip(betas[:-1].tolist(), betas[1:].tolist(), progress_iter, strict=False):
        fields = machine.hidden_fields(v)
        log_p = machine.log_p(beta, v, fields)
        log_w += log_p.logsumexp(1) - machine.log_p(previous, v, fields).logsumexp(1)
        ess.append(relative_ess(log_w))
        v = machine.sweep(beta, fields, log_p, generator)
    log_p_y = machine.log_p(1.0, v, machine.hidden_fields(v)).log_softmax(1)
    log_class = (log_w.log_softmax(0)[:, None] + log_p_y).logsumexp(0)
    return Island(log_w.cpu(), log_class.cpu(), torch.tensor(ess), torch.ones(len(ess)))


def _binary_rbm(energy: Energy) -> RBMLogits:
    rbm = energy.classifier if isinstance(energy, JointEnergy) and energy.temperature == 1 else None
    if not isinstance(rbm, RBMLogits) or not isinstance(rbm.support, Binary):
        raise ValueError(
            f"'energy' should be that of a ClassificationRBM on Binary at temperature 1, got {type(energy).__name__}. "
            "Sum the states of other energies with enumerate_log_z, or use ais on a Box, Gaussian or Euclidean support."
        )
    return rbm


def _log_odds(mean: Tensor) -> Tensor:
    """Log odds of smoothed base rates. Smoothing leaves a small probability for pixels that are never on."""
    for extreme in mean.aminmax():
        check_number("data_mean", float(extreme), at_least=0, at_most=1)
    return (0.05 + 0.9 * mean.double()).logit()
