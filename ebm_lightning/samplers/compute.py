"""How the network is evaluated while chains move: precision, memory layout, compilation and chunk size."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ebm_lightning.checks import check_integer, plain_numbers
from ebm_lightning.energies import Energy, JointEnergy
from ebm_lightning.samplers.freeze import modules_of
from ebm_lightning.samplers.gradient import evaluating

# Autocast runs all of these layers in half precision. Matched by exact type: a subclass may do more.
_CAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Compute:
    """How the network is evaluated while chains move, for one sampler call or for all chains of a JEM.

    The default changes nothing. ``Compute.auto()`` is the fast choice: the body of the network runs in bfloat16 on CPUs
    and GPUs with bfloat16 instructions, and convolutions use channels-last tensors on all devices.

    Weights are converted once for all steps of a call, in copies. The module's own weights are restored afterwards.
    Positions, steps, the classifier's last linear layer, logsumexp and acceptance are in float32 or better in every
    mode.

    =================  ============================================================================================
    mode               same distribution of the chains?
    =================  ============================================================================================
    ``fp32``           reference
    ``channels_last``  yes, except for rounding: sums are taken in another order
    ``compile``        yes, except for rounding
    ``chunk_size``     yes, except for rounding
    ``bf16``           that of the rounded energy: HMC and MALA are exact for it, SGLD follows its gradient. Log Z is
                       that of the rounded model, so :func:`~ebm_lightning.ais` and ``AISLogZ`` do not use this mode
    =================  ============================================================================================

    ``docs/speed.md`` lists the speedup of each mode.

    Arguments:
        precision: "fp32" or "bf16" for the body of the network, regardless of a surrounding autocast. "auto" is bf16 if
            the device has instructions for it. None inherits the precision of the caller (``Trainer(precision=...)``).
            In bf16, a layer that the network excludes from autocast has to convert its weights too.
        channels_last: Store the weights of 2d convolutions channels-last, so that images become channels-last.
        compile: Compute energy and gradient in one graph of ``torch.compile``. The first call takes seconds to minutes.
            If compilation fails, a warning is issued and the chains run uncompiled. Passes of :class:`PYLD`, which
            inspects the network, are not compiled.
        chunk_size: Number of chains to evaluate at a time. None evaluates all. On CPU, a chunk whose activations fit in
            the cache (about 16 images of 28x28) avoids the page faults of large blocks; on GPU, chunks only save
            memory. Passes of :class:`PYLD` are not chunked.

    Raises:
        ValueError: ``precision`` is unknown, or ``chunk_size`` is below 1.
    """

    precision: Literal["fp32", "bf16", "auto"] | None = None
    channels_last: bool = False
    compile: bool = False
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        if self.precision not in (None, "fp32", "bf16", "auto"):
            raise ValueError(f"'precision' should be 'fp32', 'bf16', 'auto' or None, got {self.precision!r}.")
        check_integer("chunk_size", self.chunk_size, at_least=1, optional=True)

    @classmethod
    def auto(cls) -> "Compute":
        """bf16 if the device has instructions for it, channels-last, not compiled."""
        return cls("auto", channels_last=True)

    def in_bf16(self, device: torch.device) -> bool:
        """Whether the body of the network runs in bf16 on ``device``, given ``precision``."""
        return self.precision == "bf16" or (self.precision == "auto" and made_for_bf16(device))

    @contextmanager
    def applied(self, energy: Energy, device: torch.device) -> Iterator[None]:
        """Apply these settings to the modules behind ``energy``, which stay frozen if they are. Restored on exit."""
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
    """Whether ``device`` has native instructions for bfloat16 matrix products."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in names)


@contextmanager
def _copied_weights(energy: Energy, joint: JointEnergy | None, cast: bool, channels_last: bool) -> Iterator[None]:
    """Replace the weights of convolutions and linear layers by converted copies, once for many evaluations.

    Autocast would round the frozen weights again in every evaluation. Replacing parameters instead of their data does
    not affect optimizers and DDP's hooks.
    """
    head = None if joint is None else joint.head
    copies: dict[int, nn.Parameter] = {}  # by id of the original, since weights may be tied
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
    # Clone, because with one channel the strides are ambiguous and a conversion would do nothing.
    return weight.clone(memory_format=torch.channels_last) if channels_last and weight.ndim == 4 else weight
