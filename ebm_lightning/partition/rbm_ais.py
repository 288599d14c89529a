"""log Z of binary restricted Boltzmann machines, with or without classes, by annealing with block Gibbs sweeps."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebm_lightning.checks import check_integer, check_number
from ebm_lightning.energies import Energy, JointEnergy
from ebm_lightning.partition.binary_rbm import BinaryRBM
from ebm_lightning.partition.islands import Island
from ebm_lightning.partition.log_z import LogZ, relative_ess
from ebm_lightning.partition.rbm_bound import end_rates, hold_against_bound
from ebm_lightning.partition.smc import OneProcess, Ranks, combine, island_sizes, run_islands
from ebm_lightning.rbm import RBMLogits
from ebm_lightning.rng import make_generator, seed_and_device
from ebm_lightning.samplers.base import Progress
from ebm_lightning.supports import Binary


def rbm_ais(
    weights: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    data_mean: Tensor | None = None,
    data: Tensor | None = None,
    temperatures: int = 1000,
    num_chains: int = 100,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> LogZ:
    r"""log Z of the RBM E(v, h) = -v W h - b v - c h, by annealing from independent visible units.

    .. math:: \log p^*_\beta(v) = (1 - \beta) b_0 v + \beta b v + \sum_j \log(1 + e^{\beta (c + v W)_j})

    The base rates b_0 matter more than the number of temperatures. From other base rates than those of the data, log Z
    of an RBM trained on MNIST is wrong by ten nats while the effective sample size looks healthy. So the estimate is
    checked against a deterministic lower bound, :func:`~ebm_lightning.partition.rbm_bound.rbm_lower_bound`, and is not
    reliable if it falls below it, in total or in the states in which some unit is on or off. Without ``data`` and
    ``data_mean`` it is reliable only within 1 nat of the bound. The bound costs at most 15 % of the sweeps, or 1000
    sweeps of one chain. For layers that are small enough for that, it is the exact log Z.

    References:
        Salakhutdinov & Murray, On the quantitative analysis of deep belief networks, 2008, sec. 4.1.

    Arguments:
        weights: W, shape (V, H).
        visible_bias: b, shape (V,).
        hidden_bias: c, shape (H,).
        data_mean: Mean of the training data, shape (V,), in [0, 1], for the base rates. By default that of ``data``, or
            else b is used for b_0, which is accurate for small weights only.
        data: Samples of 0 and 1, shape (N, V), such as a few hundred rows of the training data. Chains of the bound
            start there.
        temperatures: Number of evenly spaced steps of beta, with one block Gibbs sweep each.
        num_chains: Total number of chains. They run in at least 10 islands with separate random streams.
        generator: Its seed starts the streams of the islands, its device is where chains run.
        progress, ranks: As for :func:`~ebm_lightning.ais`.

    Raises:
        ValueError: Fewer than 20 chains, no temperatures, or a tensor of another shape, kind or range.
    """
    w = _checked("weights", weights, (None, None)).double()
    b = _checked("visible_bias", visible_bias, (w.shape[0],)).to(w)
    c = _checked("hidden_bias", hidden_bias, (w.shape[1],)).to(w)
    samples = _samples(data, len(b))
    mean = None if samples is None else samples.mean(0, dtype=torch.float64)
    if data_mean is not None:
        mean = _mean(data_mean, len(b))
    one = b.new_zeros(1)
    machine = BinaryRBM(w, c.new_zeros(len(c), 1), b, c, one, b if mean is None else _log_odds(mean), one)
    run = _Run(temperatures, num_chains, generator, progress, ranks or OneProcess())
    return dataclasses.replace(_anneal(machine, samples, mean is not None, run), per_class=None, per_class_std_err=None)


def classification_rbm_ais(
    energy: Energy,
    *,
    data: Tensor | None = None,
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
        data: Samples of 0 and 1, shape (N, *shape), where chains of the lower bound of :func:`rbm_ais` start.
        data_mean: Mean of the data, shape (V,), in [0, 1]; by default that of the RBM's training data, or else of
            ``data``.
        temperatures, num_chains, generator, progress, ranks: As for :func:`rbm_ais`.

    Raises:
        ValueError: ``energy`` is not that of an RBM on binary units at temperature 1, or there are neither ``data`` nor
            ``data_mean`` for an RBM that has seen no data, and the errors of :func:`rbm_ais`.
    """
    rbm = _binary_rbm(energy)
    samples = _samples(data, rbm.num_visible)
    machine = BinaryRBM(
        weights=rbm.weight.detach().double().T,
        class_weights=rbm.class_weight.detach().double(),
        visible=rbm.visible_bias.detach().double(),
        hidden=rbm.hidden_bias.detach().double(),
        classes=rbm.class_bias.detach().double(),
        base_visible=_log_odds(_base_rates(rbm, samples, data_mean)),
        base_classes=(rbm.class_counts + 1).double().log().log_softmax(0),  # + 1: classes without data stay possible
    )
    return _anneal(machine, samples, True, _Run(temperatures, num_chains, generator, progress, ranks or OneProcess()))


class _Run(NamedTuple):
    """Settings of annealing, as for :func:`rbm_ais`."""

    temperatures: int
    num_chains: int
    generator: torch.Generator | None
    progress: Progress | None
    ranks: Ranks


@torch.no_grad()
def _anneal(machine: BinaryRBM, data: Tensor | None, informed: bool, settings: _Run) -> LogZ:
    """``informed``: whether the base rates are those of data."""
    temperatures, num_chains, ranks = settings.temperatures, settings.num_chains, settings.ranks
    check_integer("temperatures", temperatures, at_least=1)
    sizes = island_sizes(num_chains, None)
    seed, device = seed_and_device(settings.generator)
    machine = machine.to(device)
    betas = torch.linspace(0, 1, temperatures + 1, dtype=torch.float64)

    def run(number: int, n: int, progress_iter: Iterator[int]) -> Island:
        return _island(machine, n, betas, make_generator(seed, "rbm island", number, device=device), progress_iter)

    islands = run_islands(run, sizes, temperatures, ranks, settings.progress)
    result = combine(islands, betas, resampled=False, gradient_evaluations=num_chains * (1 + temperatures))
    ends = torch.cat([island.ends for island in islands]).to(device)
    generator = make_generator(seed, "rbm bound", device=device)
    checked: LogZ = ranks.broadcast(hold_against_bound(result, machine, ends, data, informed, generator))
    return checked


def _island(
    machine: BinaryRBM, n: int, betas: Tensor, generator: torch.Generator, progress_iter: Iterator[int]
) -> Island:
    """One island, whose ends are the :func:`~ebm_lightning.partition.rbm_bound.end_rates` of its chains."""
    v = machine.base_samples(n, generator)
    log_w, ess = machine.base_log_z.expand(n).clone(), []
    for previous, beta, _ in zip(betas[:-1].tolist(), betas[1:].tolist(), progress_iter, strict=False):
        fields = machine.hidden_fields(v)
        log_p = machine.log_p(beta, v, fields)
        log_w += log_p.logsumexp(1) - machine.log_p(previous, v, fields).logsumexp(1)
        ess.append(relative_ess(log_w))
        v = machine.sweep(beta, fields, log_p, generator)
    log_p_y = machine.log_p(1.0, v, machine.hidden_fields(v)).log_softmax(1)
    return Island(log_w.cpu(), log_p_y.cpu(), torch.tensor(ess), torch.ones(len(ess)), end_rates(machine, v).cpu())


def _binary_rbm(energy: Energy) -> RBMLogits:
    rbm = energy.classifier if isinstance(energy, JointEnergy) and energy.temperature == 1 else None
    if not isinstance(rbm, RBMLogits) or not isinstance(rbm.support, Binary):
        raise ValueError(
            f"'energy' should be that of a ClassificationRBM on Binary at temperature 1, got {type(energy).__name__}. "
            "Sum the states of other energies with enumerate_log_z, or use ais on a Box, Gaussian or Euclidean support."
        )
    return rbm


def _base_rates(rbm: RBMLogits, samples: Tensor | None, data_mean: Tensor | None) -> Tensor:
    if data_mean is not None:
        return _mean(data_mean, rbm.num_visible)
    if rbm.class_counts.sum() > 0:
        return rbm.data_mean
    if samples is None:
        raise ValueError(
            "'data_mean' should be given for an RBM that was not trained by ClassificationRBM, got None. Pass the mean "
            "of the data to classification_rbm_ais. With uniform base rates log Z may be wrong by ten nats."
        )
    return samples.mean(0, dtype=torch.float64)


def _log_odds(mean: Tensor) -> Tensor:
    """Log odds of smoothed base rates. Smoothing leaves a small probability for pixels that are never on."""
    return (0.05 + 0.9 * mean.double()).logit()


def _mean(mean: Tensor, units: int) -> Tensor:
    flat = mean.flatten() if isinstance(mean, Tensor) else mean
    checked = _checked("data_mean", flat, (units,), remedy="For samples in place of their mean, pass 'data'.")
    for extreme in checked.aminmax():
        check_number("data_mean", float(extreme), at_least=0, at_most=1)
    return checked


def _samples(data: Tensor | None, units: int) -> Tensor | None:
    if data is None:
        return None
    flat = data.flatten(1) if isinstance(data, Tensor) and data.ndim > 1 else data
    samples = _checked("data", flat, (None, units), remedy="For a mean over samples, pass 'data_mean'.")
    if not len(samples) or not ((samples == 0) | (samples == 1)).all():
        got = "values between them" if len(samples) else "no rows"
        raise ValueError(
            f"'data' should be samples of 0 and 1, got {got}. Binarize gray values: torch.bernoulli(data)."
        )
    return samples


def _checked(name: str, value: Any, shape: tuple[int | None, ...], remedy: str = "") -> Tensor:
    """``value`` without gradient, after checks of its kind and shape; None in ``shape`` is any size."""
    wanted = str(shape).replace("None", "any")
    if not isinstance(value, Tensor):
        kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
        raise ValueError(f"'{name}' should be a tensor of shape {wanted}, got {kind}. Convert it with torch.as_tensor.")
    fits = value.ndim == len(shape) and all(s in (None, n) for s, n in zip(shape, value.shape, strict=True))
    if not fits or value.is_complex():
        got = f"{value.dtype} of shape {tuple(value.shape)}"
        raise ValueError(f"'{name}' should be a real tensor of shape {wanted}, got {got}. {remedy}".rstrip())
    if not value.isfinite().all():
        raise ValueError(f"'{name}' should be finite, got NaN or infinity. Check the training of the RBM.")
    return value.detach()
