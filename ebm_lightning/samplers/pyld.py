"""Proximal-YOPO Langevin dynamics (PYLD), the sampler of JEM++."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ebm_lightning.checks import check_integer, plain_numbers
from ebm_lightning.energies import Energy, JointEnergy
from ebm_lightning.samplers.base import Sampler, State
from ebm_lightning.samplers.freeze import called_modules
from ebm_lightning.samplers.gradient import value_and_gradient
from ebm_lightning.samplers.sgld import SGLD
from ebm_lightning.supports import Support

# For these layers the gradient of <h(x), p> does not depend on x. Matched by exact type: a subclass may do more.
_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Flatten, nn.Identity)


@dataclass(frozen=True)
class PYLD(Sampler):
    r"""Langevin steps that backpropagate through the whole network once for every N steps.

    The other steps only backpropagate through the network's first layer h:

    .. math::
        p = \frac{\partial E}{\partial h}(x_0), \qquad
        x_{j+1} = x_j - \epsilon \, \mathrm{clamp}(\nabla_x [\langle h(x_j), p \rangle - \log q(x_j)]), \quad j < N

    Noise s is added to the last of the N inner steps. The first inner step uses the full gradient, so that
    ``inner_steps=1`` is :class:`SGLD`.

    If h is linear in x, as the first convolution of JEM++ is, then <h(x), p> is linear and its gradient is the same in
    all inner steps. On a box the chain is then that of SGLD with step size N epsilon and a clamped gradient, see
    :attr:`as_sgld`, so inner steps have no advantage over a longer step. They can have one for a nonlinear first block,
    which ``first`` selects.

    By default h is the first layer that is called with x itself, including Flatten. The rest of the network must depend
    on x only through h; other networks raise an error.

    References:
        Yang & Ji, JEM++: improved techniques for training JEM, 2021, alg. 1. https://arxiv.org/abs/2109.09032
        Zhang et al., You only propagate once, 2019. https://arxiv.org/abs/1905.00877

    Arguments:
        step_size: epsilon of an inner step, in squared units of x per unit of energy.
        noise_std: s, in units of x, added once every N inner steps. Give either this or ``temperature``; 0 if neither
            is given.
        steps: M, passes through the network per call.
        inner_steps: N, inner steps per pass.
        temperature: T, which sets s = sqrt(2 N epsilon T).
        max_gradient: Clamps each component of the gradient in every inner step. None does not clamp.
        boundary: What happens to an inner step that leaves the support: "clamp", which accumulates mass on the walls,
            or "reflect".
        first: Name of the submodule of the classifier that is h, such as "layers.0". None finds it automatically.

    Raises:
        ValueError: A number is out of range, or ``noise_std`` and ``temperature`` are both given. When called: no layer
            is called with x itself, or the energy also depends on x in other ways than through h.
    """

    step_size: float = 0.2
    noise_std: float | None = None
    steps: int = 10
    inner_steps: int = 5
    temperature: float | None = None
    max_gradient: float | None = 1.0
    boundary: Literal["reflect", "clamp"] = "clamp"
    first: str | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_integer("inner_steps", self.inner_steps, at_least=1)
        # SGLD checks the arguments that both have.
        SGLD(self.step_size, self.noise_std, self.steps, self.temperature, self.max_gradient, self.boundary)

    @classmethod
    def jempp(cls, steps: int = 10, inner_steps: int = 5) -> "PYLD":
        """The settings of JEM++ for images in [-1, 1]: no noise, gradients clamped at 1, x clamped to the box."""
        return cls(0.2, 0.0, steps, inner_steps, max_gradient=1.0, boundary="clamp")

    @property
    def as_sgld(self) -> SGLD:
        """SGLD with step size N epsilon. It gives the same chain if the first layer is linear, except at walls."""
        noiseless = self.noise_std is None and self.temperature is None
        return SGLD(
            step_size=self.inner_steps * self.step_size,
            noise_std=0.0 if noiseless else self.noise_std,
            steps=self.steps,
            temperature=self.temperature,
            max_gradient=self.max_gradient,
            boundary=self.boundary,
        )

    @property
    def noise(self) -> float:
        """s, given directly or by the temperature."""
        return self.as_sgld.noise

    @property
    def implied_temperature(self) -> float:
        """T = s^2 / (2 N epsilon), as for :attr:`as_sgld`. 0 in JEM++, which adds no noise."""
        return self.as_sgld.implied_temperature

    def scale_step(self, factor: float) -> "PYLD":
        noise_std = None if self.noise_std is None else self.noise_std * factor**0.5
        return replace(self, step_size=self.step_size * factor, noise_std=noise_std)

    def transitions(
        self, energy: Energy, x: Tensor, support: Support, generator: torch.Generator | None
    ) -> Iterator[State]:
        inside = support.reflect if self.boundary == "reflect" else support.clamp
        limit, noise_std = self.max_gradient, self.noise
        split = _Split(energy, self.first)
        for step in range(self.steps):
            value, gradient = split(x, check=step == 0 and self.inner_steps > 1)
            inner = gradient
            for j in range(self.inner_steps):
                if j and not split.linear:
                    inner = value_and_gradient(split.hamiltonian, x)[1]
                drift = inner if limit is None else inner.clamp(-limit, limit)
                moved = x.add(drift, alpha=-self.step_size)
                if noise_std and j == self.inner_steps - 1:
                    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
                    moved.add_(noise, alpha=noise_std)
                x = inside(moved)
            yield State(x, value, gradient)


class _Split:
    """An energy split after its first layer h, which the first call finds.

    Attributes:
        linear: Whether the gradient of :meth:`hamiltonian` does not depend on x.
    """

    def __init__(self, energy: Energy, first: str | None) -> None:
        modules = called_modules(energy)
        if not modules:
            raise ValueError(
                f"'energy' should be a module or its method for PYLD, which needs its first layer, got {energy}. "
                "Use SGLD."
            )
        root = modules[0]
        self.energy = energy
        self.network = root.classifier if isinstance(root, JointEnergy) else root
        self.support = root.support if isinstance(root, JointEnergy) else None
        layers = [m for m in _layers(self.network) if m is not root]
        self.candidates = layers if first is None else [_named(self.network, first)]
        self.p = torch.empty(0)
        self.linear = False

    def __call__(self, x: Tensor, check: bool) -> tuple[Tensor, Tensor]:
        """The energy of each chain and its full gradient. Records p during the backward pass.

        Raises:
            ValueError: As for :class:`PYLD`.
        """
        value, gradient = value_and_gradient(self._recorded, x)
        if check:
            _, through = value_and_gradient(self.hamiltonian, x)
            if (through - gradient).norm() > 0.01 * gradient.norm():
                raise ValueError(
                    f"'first' should be the only way of x into {type(self.network).__name__}, which has another one, "
                    "such as a skip connection. Name a submodule that contains both, or use SGLD."
                )
            self.linear = self._is_linear(x)
        return value, gradient

    def hamiltonian(self, x: Tensor) -> Tensor:
        """<h(x), p> - log q(x), shape (N,)."""
        product = (self.candidates[0](x) * self.p).reshape(len(x), -1).sum(1)
        return product if self.support is None else product - self.support.log_q(x)

    def _recorded(self, x: Tensor) -> Tensor:
        """E(x), with hooks that record p in the backward pass."""
        found: list[nn.Module] = []
        scale: list[Tensor] = []

        def keep(gradient: Tensor) -> None:
            # In float16 the loss is scaled, and the gradient of the energy itself is that scale.
            self.p = gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / scale[-1]

        def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not found and args and args[0] is x and isinstance(output, Tensor) and output.requires_grad:
                found.append(module)
                output.register_hook(keep)

        handles = [module.register_forward_hook(record) for module in self.candidates]
        try:
            value = self.energy(x)
        finally:
            for handle in handles:
                handle.remove()
        if not found:
            raise ValueError(
                f"'first' should be a layer that is called with x itself; {type(self.network).__name__} has none: it "
                "changes x first. Move that change into a layer, name another submodule, or use SGLD."
            )
        self.candidates = found
        value.register_hook(lambda gradient: scale.append(gradient.flatten()[0]))
        return value

    def _is_linear(self, x: Tensor) -> bool:
        with torch.enable_grad():
            flat = self.support is None or not self.support.log_q(x.detach().requires_grad_()).requires_grad
        return flat and type(self.candidates[0]) in _LINEAR and not self.candidates[0]._forward_hooks


def _layers(network: nn.Module) -> list[nn.Module]:
    """The leaf modules of ``network``. Children that parametrize a weight do not count."""
    return [m for m in network.modules() if all(name == "parametrizations" for name, _ in m.named_children())]


def _named(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError:
        names = ", ".join(n for n, _ in network.named_modules() if n)
        raise ValueError(f"'first' should name a submodule of the classifier, got {name!r}. It has {names}.") from None
