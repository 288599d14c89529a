"""What a classifier sees before it decides: the features that distances between sets of images are measured in."""

from typing import Any

from torch import Tensor, nn


class Penultimate(nn.Module):
    """The input of a classifier's last linear layer.

    For small grey images, which the Inception network was never shown, these features of a classifier trained on the
    same data stand in. A distance in them depends on that classifier: never call it FID without saying so, and compare
    models by one and the same.

    Arguments:
        classifier: Maps (N, *shape) to logits.

    Raises:
        ValueError: There is no linear layer.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self._last()

    def forward(self, x: Tensor) -> Tensor:
        """Features, shape (N, D)."""
        seen: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen.append(args[0].flatten(1))

        handle = self._last().register_forward_pre_hook(keep)
        try:
            self.classifier(x)
        finally:
            handle.remove()
        return seen[-1]

    def _last(self) -> nn.Linear:
        for module in reversed(list(self.classifier.modules())):
            if isinstance(module, nn.Linear):
                return module
        raise ValueError(
            f"'classifier' should have a linear layer, got {type(self.classifier).__name__} without one. Give a module "
            "of your own that maps images to features (N, D)."
        )
