"""Logits whose class probabilities and whose density are separate outputs of one network."""

import torch
from torch import Tensor, nn

from ebm_lightning.checks import check_number


class SplitLogits(nn.Module):
    r"""K logits from a network with K + 1 outputs (c, g): the softmax is that of c, and the logsumexp is g, bounded.

    .. math:: f(x)[y] = \log \text{softmax}(c(x))[y] + b \tanh(g(x) / b), \qquad
        \log \sum_y e^{f(x)[y]} = b \tanh(g(x) / b)

    The softmax does not depend on what is added to all logits. A classifier whose logits grow with its confidence
    therefore makes x more or less likely by accident; here the two are free of each other. A joint energy model with
    such logits is within a factor of :math:`e^b` of its reference density, so there is no far region of large density,
    log Z is in [-b, b], and annealing is short.

    Arguments:
        network: Maps (N, *shape) to (N, K + 1).
        bound: b, in nats: about as much as the model can gain over its reference density.

    Raises:
        ValueError: ``bound`` is not positive.
    """

    def __init__(self, network: nn.Module, bound: float = 8.0) -> None:
        super().__init__()
        self.network = network
        self.bound: float = check_number("bound", bound, above=0)

    def forward(self, x: Tensor) -> Tensor:
        output = self.network(x)
        output = output.float() if output.dtype in (torch.bfloat16, torch.float16) else output
        return output[:, :-1].log_softmax(1) + self.bound * (output[:, -1:] / self.bound).tanh()
