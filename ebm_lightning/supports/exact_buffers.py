"""Modules whose buffers keep their precision."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class ExactBuffers(nn.Module):
    """A module whose buffers move between devices but keep their type.

    ``model.bfloat16()`` and ``Trainer(precision="bf16-true")`` convert all buffers. For a table of cumulative
    probabilities or an inverse covariance that would destroy what it says.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> "ExactBuffers":
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, *args, **kwargs)  # type: ignore[no-untyped-call]
        for name, buffer in exact.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype and moved.device.type != "mps":  # mps has no float64
                self._buffers[name] = buffer.to(moved.device)
        return self
