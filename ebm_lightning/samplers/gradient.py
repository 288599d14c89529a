"""The energy of each chain and its gradient in x, eager or compiled."""

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ebm_lightning.energies import Energy, check_energies
from ebm_lightning.samplers.freeze import called_modules

_compiling: ContextVar[bool] = ContextVar("compiling", default=False)
_chunk: ContextVar[int | None] = ContextVar("chunk", default=None)
_refused: "WeakSet[nn.Module]" = WeakSet()


def value_and_gradient(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """The energy of each chain, shape (N,), and its gradient in x, shape (N, *shape), both detached.

    The gradient is that of the batch sum, so that a chain does not depend on the number of chains. Samplers freeze the
    parameters first, so that their gradients are not computed.

    Raises:
        ValueError: The energy does not return one number for each chain.
    """
    chunk = _chunk.get()
    if chunk is not None and len(x) > chunk and called_modules(energy):
        parts = [value_and_gradient(_rows(energy, rows, len(x)), x[rows]) for rows in _slices(len(x), chunk)]
        return torch.cat([value for value, _ in parts]), torch.cat([gradient for _, gradient in parts])
    if _compiling.get() and not _in_float16(x):
        both = _compiled(energy, x)
        if both is not None:
            return both
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = energy(x)
        check_energies(value, x)
        scaled = _in_float16(x)
        # Autocast would also lower the precision of the backward pass of those operations that ran in float32.
        with torch.autocast(x.device.type, enabled=False):
            gradient = _scaled_gradient(value.sum(), x) if scaled else torch.autograd.grad(value.sum(), x)[0]
    return value.detach(), gradient


@contextmanager
def evaluating(compiled: bool, chunk_size: int | None) -> Iterator[None]:
    """Set how :func:`value_and_gradient` evaluates modules: compiled or not, and how many chains at a time."""
    tokens = _compiling.set(compiled), _chunk.set(chunk_size)
    try:
        yield
    finally:
        _compiling.reset(tokens[0])
        _chunk.reset(tokens[1])


def _slices(n: int, size: int) -> list[slice]:
    return [slice(i, i + size) for i in range(0, n, size)]


def _rows(energy: Any, rows: slice, n: int) -> Energy:
    """The energy of a slice of ``n`` chains: bound tensors with one entry per chain, such as labels, are sliced too."""
    if not isinstance(energy, functools.partial):
        return energy
    keywords = {k: v[rows] if isinstance(v, Tensor) and v.shape[:1] == (n,) else v for k, v in energy.keywords.items()}
    return functools.partial(_rows(energy.func, rows, n), *energy.args, **keywords)


def _compiled(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Value and gradient from one compiled graph. None if compilation is impossible, with a warning the first time."""
    from torch._dynamo.exc import TorchDynamoException  # takes about a second, so only if something is compiled

    modules = called_modules(energy)
    if modules and modules[0] in _refused:
        return None
    keywords: dict[str, Any] = {}
    function: Any = energy
    while isinstance(function, functools.partial) and not function.args:
        function, keywords = function.func, function.keywords | keywords
    if not modules or isinstance(function, functools.partial):
        warnings.warn(
            f"'compile' needs a module or its method as the energy, got {energy}. It runs uncompiled.", stacklevel=2
        )
        return None
    try:
        value, gradient = _graph()(function, x.detach(), keywords)
    except TorchDynamoException as error:
        _refused.add(modules[0])
        reason = str(error).strip().splitlines()[0]
        warnings.warn(
            f"'compile' failed for {type(modules[0]).__name__} ({type(error).__name__}: {reason}). Its chains run "
            "uncompiled, which only affects speed. Set compile=False to silence this warning.",
            stacklevel=2,
        )
        return None
    check_energies(value, x)
    return value.detach(), gradient.detach()


@functools.cache
def _graph() -> Callable[..., tuple[Tensor, Tensor]]:
    def graph(energy: Any, x: Tensor, keywords: dict[str, Any]) -> tuple[Tensor, Tensor]:
        value, pull_back = torch.func.vjp(lambda x: energy(x, **keywords), x)[:2]
        with torch.autocast(x.device.type, enabled=False):
            (gradient,) = pull_back(torch.ones_like(value))
        return value, gradient

    compiled: Callable[..., tuple[Tensor, Tensor]] = torch.compile(graph, fullgraph=True)
    return compiled


def _in_float16(x: Tensor) -> bool:
    device = x.device.type
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16


def _scaled_gradient(total: Tensor, x: Tensor) -> Tensor:
    """The gradient of a float16 network with loss scaling, since gradients below 6e-8 would underflow to 0.

    Lightning's gradient scaler only handles gradients of parameters. The scale is the largest of a few powers of 2
    without overflow. A power of 2 changes no digits, so a chain still does not depend on the other chains.
    """
    for scale in (2.0**16, 2.0**12, 2.0**8, 2.0**4, 1.0):
        (gradient,) = torch.autograd.grad(total, x, torch.full_like(total, scale), retain_graph=True)
        if torch.isfinite(gradient).all():
            break
    return gradient / scale
