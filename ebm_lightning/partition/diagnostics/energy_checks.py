"""Checks of what is annealed: arguments of the right kind, and an energy that is one number for each x."""

import math
from typing import Any, get_args

import torch
from torch import Tensor

from ebm_lightning.checks import check_integer
from ebm_lightning.energies import Energy, check_energies
from ebm_lightning.partition.annealing_path import Schedule
from ebm_lightning.partition.diagnostics.domains import checked_support
from ebm_lightning.partition.proposals import check_samples, checked_proposal
from ebm_lightning.samplers import HMC, NoiseRefresh, Sampler
from ebm_lightning.samplers.freeze import frozen, modules_of
from ebm_lightning.supports import Binary, Density, Support

POINTS = 32  # at which the energy is evaluated three times before annealing
MAX_ROUNDING = 0.01  # nats


def checked_arguments(
    energy: Energy,
    support: Support,
    *,
    proposal: Density | None,
    kernel: HMC | NoiseRefresh | None,
    temperatures: int | None,
    schedule: Schedule,
    generator: torch.Generator | None,
    chunk_size: int | None = None,
) -> tuple[Density, int]:
    """Check the arguments of annealing, and evaluate the energy at a few draws of the proposal.

    Arguments are as for :func:`~ebm_lightning.ais`. On Binary, where energies are checked by the RBM, the energy is not
    evaluated.

    Returns:
        The density at which annealing starts, see :func:`~ebm_lightning.partition.proposals.checked_proposal`, and the
        number of evaluations.

    Raises:
        ValueError: An argument of the wrong kind, infinite mass and no proposal, a proposal that draws points outside
            the support, an energy made for another support, or the errors of :func:`check_energy`.
    """
    check_settings(support, kernel, temperatures, schedule, generator)
    if isinstance(support, Binary):
        return support, 0
    if not callable(energy):
        raise ValueError(f"'energy' should be callable, got {energy!r}. Pass a module, a method or a function.")
    start = checked_proposal(proposal, checked_support(energy, support))
    device = torch.device("cpu") if generator is None else generator.device
    x = check_samples(start, support, device)
    return start, check_energy(energy, x[: min(POINTS, chunk_size or POINTS)])


def check_settings(
    support: Support,
    kernel: HMC | NoiseRefresh | None,
    temperatures: int | None,
    schedule: Schedule,
    generator: torch.Generator | None,
) -> None:
    """Check the kind and range of arguments that do not depend on the energy.

    Raises:
        ValueError: One of them is not what it should be.
    """
    if not isinstance(support, Support):
        raise ValueError(f"'support' should be a Support such as Box(low, high, shape), got {support!r}.")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(
            f"'generator' should be a torch.Generator or None, got {generator!r}. Use torch.Generator().manual_seed(0)."
        )
    check_integer("temperatures", temperatures, at_least=1, optional=True)
    if schedule not in get_args(Schedule):
        names = ", ".join(map(repr, get_args(Schedule)))
        raise ValueError(f"'schedule' should be one of {names}, got {schedule!r}.")
    if kernel is not None and not isinstance(kernel, HMC | NoiseRefresh):
        raise ValueError(f"'kernel' should be GHMC(), HMC() or MALA(), got {_kernel_fault(kernel)}")


def check_energy(energy: Energy, x: Tensor) -> int:
    """Check that an energy maps ``x`` to one number for each row, that depends on nothing else.

    The energy is evaluated twice, then on both halves of ``x``, with its modules in eval mode. +inf is zero density.

    Arguments:
        energy: Maps (N, *shape) to (N,).
        x: Points in the domain, shape (N, *shape).

    Returns:
        The number of evaluations, 3 N.

    Raises:
        ValueError: Another shape, no gradient in x, NaN, -inf, +inf everywhere, an energy that changes from call to
            call or with the rows that it is evaluated with, or weights in another precision than ``x``.
    """
    with frozen(energy), torch.inference_mode(False), torch.no_grad():
        x = x.clone()
        first = _first_energy(energy, x)
        again = _energies(energy, x)
        halves = torch.cat([_energies(energy, part) for part in x.tensor_split(2) if len(part)])
    _check_values(first)
    eps = _eps(energy, first)
    change = _difference(first, again, 32 * eps, 32 * eps)
    if change:
        raise ValueError(
            f"'energy' should depend on x alone, got values that differ by up to {change:.3g} nats from one call to "
            "the next. Remove its random numbers; call .eval() on its modules, for dropout."
        )
    change = _difference(first, halves, max(1e-3, 4 * eps), 8 * eps)
    if change:
        raise ValueError(
            f"'energy' should treat each row separately, got values that differ by up to {change:.3g} nats where a "
            "batch is split. Call .eval() on its modules, for batch norm, and do not normalize over the batch."
        )
    return 3 * len(x)


def rounding_error(energy: Tensor, dtype: torch.dtype | None = None) -> float:
    """Largest rounding error of a typical energy, in nats: eps of its precision times the median of abs(E).

    Energies in float64 whose values are all float32 numbers count as float32.

    Arguments:
        energy: Energies of chains at beta = 1, shape (N,). Infinite ones are left out.
        dtype: Precision in which they were computed; by default that of the values.
    """
    values = energy[energy.isfinite()].double()
    if not len(values):
        return 0.0
    dtype = dtype or energy.dtype
    if dtype == torch.float64 and bool((values.float().double() == values).all()):
        dtype = torch.float32
    return torch.finfo(dtype).eps * float(values.abs().median())


def imprecise(error: float) -> str:
    """Why energies that are rounded by ``error`` nats do not give a reliable log Z; empty if they do."""
    if error <= MAX_ROUNDING:
        return ""
    return (
        f"Energies are so large that rounding changes them by up to {error:.2g} nats (more than {MAX_ROUNDING}): "
        "subtract a constant inside the energy, or compute it in float64, as lambda x: energy(x.double())."
    )


def _kernel_fault(kernel: Any) -> str:
    if isinstance(kernel, type):
        return f"the class {kernel.__name__}. Create an instance: {kernel.__name__}()."
    if isinstance(kernel, Sampler):
        return (
            f"{type(kernel).__name__}. It has no acceptance step, so its chains do not follow the distribution that "
            "the weights assume. Use GHMC()."
        )
    return f"{kernel!r}. Use GHMC()."


def _first_energy(energy: Energy, x: Tensor) -> Tensor:
    """The energies of ``x``, detached, after a check of their shape and graph."""
    with torch.enable_grad():
        try:
            value = energy(x.requires_grad_())
        except RuntimeError as error:
            dtypes = sorted(str(dtype) for dtype in _dtypes(energy) - {x.dtype})
            if "type" not in str(error) or not dtypes:
                raise
            raise ValueError(
                f"'energy' should accept x in {x.dtype}, the precision of chains, got weights in {', '.join(dtypes)}. "
                "Convert the module by .float(), or pass lambda x: energy(x.to(dtype)) with the dtype of its weights."
            ) from error
    check_energies(value, x)
    if not value.requires_grad:
        raise ValueError(
            "'energy' should be differentiable in x, got values without a graph. Do not call .detach() or no_grad in "
            "it; add 0 * x.flatten(1).sum(1) to a constant energy."
        )
    x.requires_grad_(False)
    return value.detach()


def _energies(energy: Energy, x: Tensor) -> Tensor:
    value = energy(x)
    check_energies(value, x)
    return value


def _check_values(energy: Tensor) -> None:
    bad = int((energy.isnan() | (energy == -math.inf)).sum())
    if bad:
        raise ValueError(
            f"'energy' should be finite inside the support, or +inf where the density is 0, got NaN or -inf at {bad} "
            f"of {len(energy)} points. Check it for logarithms and roots of negative numbers."
        )
    if bool((energy == math.inf).all()):
        raise ValueError(
            f"'energy' should be finite where the proposal draws its samples, got +inf at all {len(energy)} points. "
            "Use a proposal, or a support, that covers the region of finite energy."
        )


def _difference(a: Tensor, b: Tensor, of_spread: float, of_size: float) -> float:
    """Largest distance of ``a`` and ``b`` if it exceeds what rounding explains, else 0."""
    a, b = a.double(), b.double()
    finite = a[a.isfinite()]
    spread = float((finite - finite.median()).abs().median())
    tolerance = of_spread * (1 + spread) + of_size * float(finite.abs().max())
    distance = torch.where(a == b, 0.0, (a - b).abs()).nan_to_num(nan=math.inf)
    largest = float(distance.max())
    return largest if largest > tolerance else 0.0


def default_generator(energy: Energy) -> torch.Generator | None:
    """A generator on the device of the weights behind ``energy``; None if they are on the CPU or there are none."""
    tensors = (t for m in modules_of(energy) for t in (*m.parameters(recurse=False), *m.buffers(recurse=False)))
    device = next((t.device for t in tensors), torch.device("cpu"))
    if device.type == "cpu":
        return None
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, ())))


def _dtypes(energy: Energy) -> set[torch.dtype]:
    """The floating point types of the weights behind an energy."""
    parameters = (p for module in modules_of(energy) for p in module.parameters(recurse=False))
    return {p.dtype for p in parameters if p.is_floating_point()}


def _eps(energy: Energy, value: Tensor) -> float:
    """Relative rounding error of the coarsest precision in use."""
    dtypes = _dtypes(energy) | {value.dtype}
    if torch.is_autocast_enabled(value.device.type):
        dtypes.add(torch.get_autocast_dtype(value.device.type))
    return max(torch.finfo(dtype).eps for dtype in dtypes)
