"""What keeps a JEM's training step cheap: when one forward pass serves two terms, and graphs that are freed early."""

from typing import Any

import torch
from torch import Tensor, nn

# What computes alike in both modes. By exact type: a subclass, or a parametrised layer, may do otherwise.
_ALIKE = (
    *(nn.Sequential, nn.ModuleList, nn.Identity, nn.Flatten, nn.Unflatten),
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LayerNorm, nn.GroupNorm),
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Tanh, nn.Sigmoid),
    *(nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)


def differs_in_training(network: nn.Module) -> bool:
    """Whether some module of ``network`` may compute otherwise in train mode than in eval mode.

    True unless every module that is in train mode is known not to: one of PyTorch's common layers, or one of this
    library's networks, and without hooks. A network of the user's own is not known; it costs a pass more, and no error.
    """
    return any(m.training and not _alike(m) for m in network.modules())


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


def _alike(module: nn.Module) -> bool:
    known = type(module) in _ALIKE or type(module).__module__.startswith("ebm_lightning.")
    return known and not module._forward_hooks and not module._forward_pre_hooks
