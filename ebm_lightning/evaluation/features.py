"""Features of a classifier for FID and similar distances between sets of images."""

from typing import Any

from torch import Tensor, nn

from ebm_lightning.energies import last_linear


class Penultimate(nn.Module):
    """The input of a classifier's last linear layer.

    The Inception network was not trained on small gray images. For these, the features of a classifier that was trained
    on the same data are used instead. A distance depends on the classifier: report which one was used, and
    use the same one for all models that you compare.

    Arguments:
        classifier: Maps (N, *shape) to logits.

    Raises:
        ValueError: The classifier has no linear layer.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self._last_linear()

    def forward(self, x: Tensor) -> Tensor:
        """Features, shape (N, D)."""
        features: list[Tensor] = []

        def record(module: nn.Module, args: tuple[Any, ...]) -> None:
            features.append(args[0].flatten(1))

        handle = self._last_linear().register_forward_pre_hook(record)
        try:
            self.classifier(x)
        finally:
            handle.remove()
        return features[-1]

    def _last_linear(self) -> nn.Linear:
        layer = last_linear(self.classifier)
        if layer is not None:
            return layer
        raise ValueError(
            f"'classifier' should have a linear layer, got {type(self.classifier).__name__} without one. Pass a module "
            "that maps images to features (N, D) instead."
        )
