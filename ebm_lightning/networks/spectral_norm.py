"""Networks with a bounded gradient."""

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class SpectrallyNormalized(nn.Module):
    """A network with spectral normalization of all convolutions and linear layers, which bounds the energy's gradient.

    Each weight matrix has largest singular value 1. The power iteration runs only in training mode, so chains, which
    use eval mode, do not advance it. A convolution is normalized by the norm of its kernel reshaped to a matrix, as is
    usual; this approximates the norm of the convolution.

    References:
        Miyato et al., Spectral normalization for generative adversarial networks, 2018.
        https://arxiv.org/abs/1802.05957

    Arguments:
        network: Maps (N, *shape) to logits (N, K). Its layers are modified in place.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        for layer in list(network.modules()):
            if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                spectral_norm(layer)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits
