"""Buffers that keep their type.

Mutants that these tests kill: a conversion and back; buffers that stay on their device; parameters, or the buffers of
other modules, that keep their type.
"""

import torch
from torch import nn

from ebm_lightning.supports.exact_buffers import ExactBuffers


class Table(ExactBuffers):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1 / 3]))
        self.register_buffer("table", torch.tensor([1 / 3], dtype=torch.float64))
        self.register_buffer("empty", None)
        self.inner = nn.BatchNorm1d(1)


def test_only_its_own_buffers_keep_their_type():
    module = nn.Sequential(Table(), nn.BatchNorm1d(1)).half()
    table = module[0]
    assert table.table.dtype == torch.float64
    assert table.table.item() == 1 / 3
    assert table.empty is None
    assert table.weight.dtype == table.inner.running_var.dtype == module[1].running_var.dtype == torch.float16
    assert torch.equal(module.double()[0].table, torch.tensor([1 / 3], dtype=torch.float64))


def test_buffers_move_with_their_module():
    module = Table().to("meta", torch.bfloat16)
    assert module.table.device.type == "meta"
    assert module.table.dtype == torch.float64
    assert module.weight.dtype == torch.bfloat16
