"""How chains are computed: in which precision, layout of weights, and compiled or not. Their law stays."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ebm_lightning.energies import Energy, JointEnergy
from ebm_lightning.samplers.gradient import evaluating
from ebm_lightning.samplers.quiet import modules_of

# Autocast runs all of these layers in half precision. By exact type: a subclass may do more.
_CAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Compute:
    """How the network is evaluated while chains move, for one call of a sampler or for all chains of a JEM.

    The default changes nothing. ``Compute.auto()`` is the quick choice: on CPUs and GPUs made for bfloat16 the body of
    the network runs in it, everywhere convolutions work on channels-last tensors. Weights are laid out and rounded once
    for all steps of a call, in copies; the module has its own back afterwards. Positions, steps, the classifier's last
    linear layer, logsumexp and acceptance stay in float32 or better in every mode.

    =================  ============================================================================================
    mode               the same law?
    =================  ============================================================================================
    ``fp32``           the reference
    ``channels_last``  yes, up to the rounding of sums taken in another order
    ``compile``        likewise
    ``chunk_size``     likewise
    ``bf16``           of the energy as rounded: HMC and MALA are exact for it, SGLD follows its gradient. Log Z is
                       that of the rounded model, so :func:`~ebm_lightning.ais` and ``AISLogZ`` never use it unasked
    =================  ============================================================================================

    What each mode gains is in ``docs/speed.md``.

    Arguments:
        precision: "fp32" or "bf16" of the network's body, whatever the surroundings are; "auto" is bf16 where the
            device has instructions for it; None leaves it to what surrounds the call (``Trainer(precision=...)``).
            Under bf16 a layer that the network itself takes out of autocast has to convert its weights too.
        channels_last: Lay out the weights of two-dimensional convolutions so that images are kept channels-last.
        compile: Energy and gradient in x in one graph of ``torch.compile``. The first call takes seconds to minutes;
            where the compiler fails, a warning says so and the chains run uncompiled. Passes of :class:`PYLD`, which
            looks inside the network, are not compiled.
        chunk_size: Chains evaluated at a time; None takes all of them. On CPU a chunk whose activations fit in the
            cache spares the page faults of large blocks, about 16 of 28x28 images; on a GPU it saves memory alone.
            Passes of :class:`PYLD` are whole.

    Raises:
        ValueError: ``precision`` is none of these, or ``chunk_size`` is below 1.
    """

    precision: Literal["fp32", "bf16", "auto"] | None = None
    channels_last: bool = False
    compile: bool = False
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in (None, "fp32", "bf16", "auto"):
            raise ValueError(f"'precision' should be 'fp32', 'bf16', 'auto' or None, got {self.precision!r}.")
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"'chunk_size' should be at least 1 or None, got {self.chunk_size}.")

    @classmethod
    def auto(cls) -> "Compute":
        """The choice by device: bf16 where the hardware has it, channels-last everywhere, nothing compiled."""
        return cls("auto", channels_last=True)

    def in_bf16(self, device: torch.device) -> bool:
        """Whether ``precision`` means bf16 on ``device``."""
        return self.precision == "bf16" or (self.precision == "auto" and made_for_bf16(device))

    @contextmanager
    def applied(self, energy: Energy, device: torch.device) -> Iterator[None]:
        """The modules behind ``energy`` as they are to be evaluated on ``device``; frozen ones stay frozen."""
        cast = self.in_bf16(device)
        joint = next((m for m in modules_of(energy) if isinstance(m, JointEnergy)), None)
        with ExitStack() as stack:
            if self.precision is not None:
                stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16, enabled=cast))
            if joint is not None and torch.is_autocast_enabled(device.type):
                stack.enter_context(joint.head_in_float32())
            if cast or self.channels_last:
                stack.enter_context(_copied_weights(energy, joint, cast, self.channels_last))
            stack.enter_context(evaluating(self.compile, self.chunk_size))
            yield


def made_for_bf16(device: torch.device) -> bool:
    """Whether ``device`` multiplies matrices in bfloat16 by instructions of its own."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in names)


@contextmanager
def _copied_weights(energy: Energy, joint: JointEnergy | None, cast: bool, channels_last: bool) -> Iterator[None]:
    """Convolutions and linear layers with copies of their weights, rounded and laid out once for many evaluations.

    Autocast would round the frozen weights in every evaluation anew. Exchanging parameters, and not their data, leaves
    optimisers and DDP's hooks alone.
    """
    head = None if joint is None else joint.head
    copies: dict[int, nn.Parameter] = {}  # by the original, which may be tied
    layers = [m for m in modules_of(energy) if type(m) in _CAST]
    originals = [(m, name, p) for m in layers for name, p in m._parameters.items() if p is not None]
    try:
        for module, name, p in originals:
            dtype = torch.bfloat16 if cast and p.dtype == torch.float32 and module is not head else p.dtype
            if id(p) not in copies or copies[id(p)].dtype != dtype:
                copies[id(p)] = nn.Parameter(_laid_out(p.detach().to(dtype), channels_last), requires_grad=False)
            module._parameters[name] = copies[id(p)]
        yield
    finally:
        for module, name, p in originals:
            module._parameters[name] = p


def _laid_out(weight: Tensor, channels_last: bool) -> Tensor:
    # A clone even where there is one channel, whose strides would leave the layout open.
    return weight.clone(memory_format=torch.channels_last) if channels_last and weight.ndim == 4 else weight
