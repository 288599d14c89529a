"""Several classifiers as one: their logits are added."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SumLogits(nn.Module):
    r"""The sum of the logits of several classifiers, a product of experts.

    .. math:: f(x)[y] = \sum_i f_i(x)[y]

    ``SumLogits([ClassGaussians(), network])`` begins at the predictions of the Gaussians, which the network corrects.

    Arguments:
        networks: Each maps (N, *shape) to logits (N, K).

    Raises:
        ValueError: There are none.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        if not networks:
            raise ValueError("'networks' should hold at least one network, got none.")
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([network(x) for network in self.networks]).sum(0)
