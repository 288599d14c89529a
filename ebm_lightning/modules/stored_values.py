"""Numbers that are computed from the weights of a model: kept in its checkpoints, and void once the weights change."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
MAX_TEXT = 1000  # bytes


class StoredValues(nn.Module):
    """A few numbers and a text, with a checksum of the weights for which they hold.

    All are integer buffers of fixed size: the numbers as the bits of float64, which neither ``model.half()`` nor a
    device without float64 changes, and which weight averaging can swap.

    Arguments:
        size: How many numbers.
    """

    bits: Tensor
    text_bytes: Tensor
    checksum: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("bits", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("text_bytes", torch.zeros(MAX_TEXT, dtype=torch.uint8))
        self.register_buffer("checksum", torch.zeros((), dtype=torch.int64))  # 0: nothing is stored

    @torch.no_grad()
    def store(self, model: nn.Module, numbers: Sequence[float], text: str = "") -> None:
        """Keep ``numbers`` and ``text``, which hold for the present weights of ``model``."""
        encoded = text.encode()[:MAX_TEXT].ljust(MAX_TEXT, b"\0")
        self.bits.copy_(torch.tensor(numbers, dtype=torch.float64).view(torch.int64))
        self.text_bytes.copy_(torch.tensor(list(encoded), dtype=torch.uint8))
        self.checksum.fill_(weight_checksum(model))

    @property
    def present(self) -> bool:
        """Whether something is stored, for these or for earlier weights."""
        return bool(self.checksum != 0)

    def holds_for(self, model: nn.Module) -> bool:
        """Whether what is stored was computed from the present weights of ``model``."""
        return self.present and int(self.checksum) == weight_checksum(model)

    @property
    def numbers(self) -> list[float]:
        return self.bits.cpu().view(torch.float64).tolist()

    @property
    def text(self) -> str:
        return bytes(self.text_bytes.tolist()).rstrip(b"\0").decode(errors="ignore")


@torch.no_grad()
def weight_checksum(model: nn.Module) -> int:
    """An integer that changes with any weight or buffer of floating point numbers. Never 0.

    It is made from the bits of the numbers, in integers, so it is the same on every device and in any order of
    summation.
    """
    sums = [tensor.view(INTEGERS[tensor.element_size()]).sum(dtype=torch.int64) for tensor in _floats(model)]
    if not sums:
        return 1
    odd = 2 * torch.arange(len(sums), device=sums[0].device) + 1  # so that tensors cannot trade places
    return int((torch.stack([s.to(odd.device) for s in sums]) * odd).sum()) or 1


def _floats(model: nn.Module) -> Iterator[Tensor]:
    for group in (model.parameters(), model.buffers()):
        yield from (tensor.detach() for tensor in group if tensor.is_floating_point())
