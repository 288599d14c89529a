"""How a training step saves compute and memory: one forward pass for two terms, and graphs that are freed early."""

from typing import Any

import torch
from torch import Tensor, nn

# Layers that behave identically in train and eval mode. By exact type: a subclass or a parametrized layer may differ.
_SAME_IN_BOTH_MODES = (
    *(nn.Sequential, nn.ModuleList, nn.Identity, nn.Flatten, nn.Unflatten),
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LayerNorm, nn.GroupNorm),
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Tanh, nn.Sigmoid),
    *(nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)


def differs_in_training(network: nn.Module) -> bool:
    """Whether ``network``, in its current modes, may give another output than in eval mode.

    False only if every module in train mode is known to behave identically in both modes: a common PyTorch layer or a
    network of this library, without hooks. Other modules are assumed to differ, which is always
    correct but costs an extra forward pass.
    """
    return any(m.training and not _same_in_both_modes(m) for m in network.modules())


def precompute_gradient(term: Tensor, network: nn.Module) -> Tensor:
    """Backpropagate ``term`` now, free its graph, and return a scalar that replays the stored gradient.

    The result has the value and the gradient of ``term``. Activations of one batch are thus freed before the next
    forward pass. Under float16 autocast ``term`` is returned unchanged, because its gradient has to be computed from a
    scaled loss.

    Arguments:
        term: A scalar term of the loss.
        network: Holds every parameter that ``term`` depends on.
    """
    weights = [p for p in network.parameters() if p.requires_grad]
    half = torch.is_autocast_enabled(term.device.type) and torch.get_autocast_dtype(term.device.type) is torch.float16
    if not weights or not term.requires_grad or half:
        return term
    gradients = torch.autograd.grad(term, weights, allow_unused=True)
    used = [(p, g) for p, g in zip(weights, gradients, strict=True) if g is not None]
    value: Tensor = _PrecomputedGradient.apply(term.detach(), [g for _, g in used], *(p for p, _ in used))
    return value


class _PrecomputedGradient(torch.autograd.Function):
    """A scalar with known gradients in the weights."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *weights: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(scale * g for g in ctx.saved_tensors)


def _same_in_both_modes(module: nn.Module) -> bool:
    known = type(module) in _SAME_IN_BOTH_MODES or type(module).__module__.startswith("ebm_lightning.")
    return known and not module._forward_hooks and not module._forward_pre_hooks
