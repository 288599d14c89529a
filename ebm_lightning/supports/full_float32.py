"""Float32 without the shortcuts of accelerators."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32(device_type: str) -> Iterator[None]:
    """Compute without autocast and, on GPUs, without TF32, which has 10 bits of mantissa.

    A density whose log q comes from a convolution and whose samples come from matrix products needs both to agree.

    Arguments:
        device_type: Of the tensors, such as "cuda".
    """
    with torch.autocast(device_type, enabled=False):
        if device_type != "cuda":
            yield
            return
        cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
        names = ("enabled", "benchmark", "benchmark_limit", "deterministic")
        torch.set_float32_matmul_precision("highest")
        try:
            with cudnn.flags(allow_tf32=False, **{name: getattr(cudnn, name) for name in names}):
                yield
        finally:
            torch.set_float32_matmul_precision(precision)
