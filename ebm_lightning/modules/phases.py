"""What keeps a JEM's training step cheap: when one forward pass serves two terms, and graphs that are freed early."""

import functools
import inspect
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn


def differs_in_training(network: nn.Module) -> bool:
    """Whether some module of ``network`` may compute otherwise in train mode than in eval mode.

    Dropout and batch norm do; so may anything whose class mentions ``training``, has hooks, or is compiled to where one
    cannot look.
    """
    training = [m for m in network.modules() if m.training]
    return any(_hidden(m) or _mentions_training(type(m)) for m in training)  # type: ignore[arg-type]


def settled(term: Tensor, network: nn.Module) -> Tensor:
    """The same ``term`` with the same gradient in the weights of ``network``, which is computed at once.

    The graph behind it, which is as large as a batch's activations, is then free before the next one is made. Not under
    float16, whose gradients have to wait for the gradient scaler.

    Arguments:
        term: A scalar of the loss.
        network: The module whose parameters it depends on, and nothing else that learns.
    """
    weights = [p for p in network.parameters() if p.requires_grad]
    half = torch.is_autocast_enabled(term.device.type) and torch.get_autocast_dtype(term.device.type) is torch.float16
    if not weights or not term.requires_grad or half:
        return term
    gradients = torch.autograd.grad(term, weights, allow_unused=True)
    used = [(p, g) for p, g in zip(weights, gradients, strict=True) if g is not None]
    value: Tensor = _Settled.apply(term.detach(), [g for _, g in used], *(p for p, _ in used))
    return value


class _Settled(torch.autograd.Function):
    """A value whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *weights: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(scale * g for g in ctx.saved_tensors)


def _hidden(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule) or bool(module._forward_hooks or module._forward_pre_hooks)


@functools.cache
def _mentions_training(cls: type[nn.Module]) -> bool:
    own = cls.__mro__[: cls.__mro__.index(nn.Module)]
    members = [member for base in own for member in vars(base).values()]
    functions = [getattr(m, "fget", None) or getattr(m, "__func__", m) for m in members]
    codes = [inspect.unwrap(f).__code__ for f in functions if inspect.isfunction(f)]
    return any("training" in _names(code) for code in codes)


def _names(code: CodeType) -> set[str]:
    """All names that the code looks up, those of functions inside it too."""
    inner = [_names(c) for c in code.co_consts if isinstance(c, CodeType)]
    return set(code.co_names).union(*inner)
