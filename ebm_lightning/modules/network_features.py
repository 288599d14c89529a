"""Features of a trained network: what one of its layers returns, for each input, with the logits of the same pass."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ebm_lightning.checks import check_integer
from ebm_lightning.contracts import call_classifier
from ebm_lightning.coordinates import Identity
from ebm_lightning.energies import last_linear
from ebm_lightning.modules.conditional import ConditionalEBM
from ebm_lightning.supports.base import all_finite

Layer = str | Callable[[Tensor], Tensor] | None
"""Name of a submodule, a function of the inputs, or None for the input of the last linear layer."""
SHOWN = 40  # names of layers in an error


class FeatureBatch(NamedTuple):
    """A batch of features instead of inputs, as the loaders of cached features yield it.

    Attributes:
        features: Shape (N, D).
        y: Labels, shape (N,); None if there are none.
    """

    features: Tensor
    y: Tensor | None


class NetworkFeatures(nn.Module):
    """A frozen network, and where its features are.

    Arguments:
        network: Maps inputs to logits (N, K), in eval mode. Its parameters are frozen.
        layer: Name of a submodule that returns features (N, D), or (N, D, 1, 1) as pooling does; or a function that
            maps inputs to features (N, D); by default the input of the last linear layer.
        num_features: D. By default that of the linear layer that follows.

    Raises:
        ValueError: The network is in train mode, has no such layer, or D is needed and unknown.
    """

    def __init__(self, network: nn.Module, layer: Layer = None, num_features: int | None = None) -> None:
        super().__init__()
        self.inputs: nn.Module = nn.Identity()
        if isinstance(network, ConditionalEBM):
            if not isinstance(network.coordinates, Identity):
                self.inputs = network.coordinates
            network = network.classifier
        self.network = network
        check_eval_mode(network)
        self._names = {name: module for name, module in network.named_modules() if name}
        self.layer = self._checked_layer(layer)
        self.num_features: int = check_integer("num_features", num_features, at_least=1, optional=True) or self._width()
        self.requires_grad_(False)

    @property
    def last_linear(self) -> nn.Linear | None:
        """The last linear layer, if the features are its input: logits are a linear function of the features."""
        return self._last_linear() if self.layer is None else None

    def forward(self, x: Tensor) -> Tensor:
        """Features, shape (N, D), float32, without a gradient.

        Raises:
            ValueError: They are not of shape (N, D), or not finite, or the network is in train mode.
        """
        if self.layer is None or isinstance(self.layer, str):
            return self.with_logits(x)[0]
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return self._checked(self.layer(self._inputs(x)), x)

    def with_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, D) and the network's logits (N, K): in one pass, except for a function."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            x = self._inputs(x)
            if callable(self.layer):
                return self._checked(self.layer(x), x), call_classifier(self.network, x)
            recorded: list[Any] = []
            handle = self._record(recorded)
            try:
                logits = call_classifier(self.network, x)
            finally:
                handle.remove()
        if not recorded:
            raise ValueError(
                f"'features' should name a layer that the network uses, got {self.layer!r}, which was not called. "
                "Choose another layer."
            )
        return self._checked(recorded[-1], x), logits

    def _inputs(self, x: Tensor) -> Tensor:
        check_eval_mode(self.network)
        inputs: Tensor = self.inputs(x)
        return inputs

    def _record(self, recorded: list[Any]) -> Any:
        if self.layer is None:
            return self._last_linear().register_forward_pre_hook(lambda _, args: recorded.append(args[0]))
        return self._names[cast(str, self.layer)].register_forward_hook(lambda _, args, output: recorded.append(output))

    def _checked(self, z: Any, x: Tensor) -> Tensor:
        where = "the features" if not isinstance(self.layer, str) else f"layer {self.layer!r}"
        if not isinstance(z, Tensor):
            raise ValueError(
                f"'features' should return a tensor (N, D), got a {type(z).__name__} from {where}. Pass a function, "
                "such as lambda x: network.encoder(x).last_hidden_state[:, 0]."
            )
        if z.ndim > 2 and z[0, :].numel() == z.shape[1]:
            z = z.flatten(1)
        if z.ndim != 2 or len(z) != len(x):
            raise ValueError(
                f"'features' should have shape ({len(x)}, D), got {tuple(z.shape)} from {where}. Choose a layer after "
                "pooling or flattening, or pass a function, such as lambda x: network.layer4(x).mean((2, 3))."
            )
        if z.shape[1] != self.num_features:
            raise ValueError(
                f"'num_features' should be {z.shape[1]}, the width of {where}, got {self.num_features}. Pass "
                f"num_features={z.shape[1]}."
            )
        z = z.detach().float()
        if not all_finite(z):
            rows = int((~torch.isfinite(z)).any(1).sum())
            raise ValueError(
                f"'features' should be finite, got NaN or infinite ones in {rows} of {len(z)} rows of {where}. Check "
                "the inputs and the weights; in half precision, convert the network by network.float()."
            )
        return z

    def _checked_layer(self, layer: Layer) -> Layer:
        if layer is None:
            self._last_linear()
        elif isinstance(layer, str) and layer not in self._names:
            raise ValueError(f"'features' should name a layer of the network, got {layer!r}. {self._shown_names()}")
        elif not isinstance(layer, str) and not callable(layer):
            raise ValueError(
                f"'features' should be the name of a layer, a function or None, got a {type(layer).__name__}. After "
                "loading, pass the function, as in 'load_from_checkpoint(path, features=...)'."
            )
        return layer

    def _shown_names(self) -> str:
        last = f"The last {SHOWN} of {len(self._names)}" if len(self._names) > SHOWN else "Its"
        return f"{last} layers: {', '.join(list(self._names)[-SHOWN:])}."

    def _last_linear(self) -> nn.Linear:
        layer = last_linear(self.network)
        if layer is not None:
            return layer
        raise ValueError(
            f"'features' should be given for a network without a linear layer, such as {type(self.network).__name__}. "
            "Name a layer that returns (N, D), or pass a function."
        )

    def _width(self) -> int:
        """The width of the features by the linear layers of the network. Checked at the first batch."""
        if self.layer is None:
            return self._last_linear().in_features
        if isinstance(self.layer, str):
            names = list(self._names)
            following = [self._names[name] for name in names[names.index(self.layer) :]]
            if isinstance(following[0], nn.Linear):
                return following[0].out_features
            for module in following[1:]:
                if isinstance(module, nn.Linear):
                    return module.in_features
        raise ValueError("'num_features' should be given, the number of features D, got None. Pass num_features=D.")


def check_eval_mode(network: nn.Module) -> None:
    """Check that no part of a network is in train mode.

    Raises:
        ValueError: A part is.
    """
    name = next((name for name, module in network.named_modules() if module.training), None)
    if name is not None:
        part = f"its part {name!r} is" if name else f"{type(network).__name__} is"
        raise ValueError(
            f"'network' should be in eval mode, but {part} in train mode: dropout and batch norm would make features "
            "random. Call network.eval()."
        )
