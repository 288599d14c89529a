"""Langevin steps most of which go back through the network's first layer alone: the sampler of JEM++."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ebm_lightning.energies import Energy, JointEnergy
from ebm_lightning.samplers.base import Sampler, State
from ebm_lightning.samplers.gradient import value_and_gradient
from ebm_lightning.samplers.quiet import modules_of
from ebm_lightning.samplers.sgld import SGLD
from ebm_lightning.supports import Support

# Of these the gradient of <h(x), p> does not depend on x. By exact type: a subclass may do more.
_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Flatten, nn.Identity)


@dataclass(frozen=True)
class PYLD(Sampler):
    r"""Proximal-YOPO Langevin dynamics: one pass through the network for several steps of its first layer h.

    .. math::
        p = \frac{\partial E}{\partial h}(x_0), \qquad
        x_{j+1} = x_j - \epsilon \, \mathrm{clamp}(\nabla_x [\langle h(x_j), p \rangle - \log q(x_j)]), \quad j < N

    and noise s is added to the last of the N inner steps. The first of them follows the full gradient, so that
    ``inner_steps=1`` is :class:`SGLD`. Where h is linear in x, as JEM++'s convolution is, so is <h(x), p>: its gradient
    is the same in all inner steps, and the chain is, on a box, that of SGLD with the step N epsilon and the clamp on
    the gradient, see :attr:`as_sgld`. The inner steps then buy nothing that a longer step would not; they do for a
    first block that bends, named by ``first``.

    The first layer is the first one called with x itself, a Flatten included. Layers that follow it see x through it
    alone; a network that does not have one is refused.

    References:
        Yang & Ji, JEM++: improved techniques for training JEM, 2021, alg. 1. https://arxiv.org/abs/2109.09032
        Zhang et al., You only propagate once, 2019. https://arxiv.org/abs/1905.00877

    Arguments:
        step_size: epsilon of an inner step, in squared units of x per unit of energy.
        noise_std: s, in units of x, once every N inner steps. Either this or ``temperature``; 0 if neither is given.
        steps: M, passes through the network per call.
        inner_steps: N, steps for each pass.
        temperature: T; sets s = sqrt(2 N epsilon T).
        max_gradient: Clamps each component of an inner step's gradient; None does not.
        boundary: How an inner step that leaves the support comes back: "clamp", which piles mass up on the walls, or
            "reflect".
        first: Name of the submodule of the classifier that is h, such as "layers.0"; found by itself if None.

    Raises:
        ValueError: A negative number, no steps, or both ``noise_std`` and ``temperature``. In a call: no layer of the
            energy is called with x itself, or x reaches the energy in other ways too.
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
        if self.inner_steps < 1:
            raise ValueError(f"'inner_steps' should be at least 1, got {self.inner_steps}.")
        # It complains of what the two share.
        SGLD(self.step_size, self.noise_std, self.steps, self.temperature, self.max_gradient, self.boundary)

    @classmethod
    def jempp(cls, steps: int = 10, inner_steps: int = 5) -> "PYLD":
        """JEM++'s numbers for images in [-1, 1]: M = 10, N = 5, step 0.2, clamps at 1 and at the box, no noise."""
        return cls(0.2, 0.0, steps, inner_steps, max_gradient=1.0, boundary="clamp")

    @property
    def as_sgld(self) -> SGLD:
        """The SGLD that steps once, N times as far: the same chain where the first layer is linear, up to walls."""
        silent = self.noise_std is None and self.temperature is None
        return SGLD(
            step_size=self.inner_steps * self.step_size,
            noise_std=0.0 if silent else self.noise_std,
            steps=self.steps,
            temperature=self.temperature,
            max_gradient=self.max_gradient,
            boundary=self.boundary,
        )

    @property
    def noise(self) -> float:
        """s, however it was given."""
        return self.as_sgld.noise

    @property
    def implied_temperature(self) -> float:
        """T = s^2 / (2 N epsilon), that of :attr:`as_sgld`; 0 in JEM++, whose chains descend."""
        return self.as_sgld.implied_temperature

    def shortened(self, factor: float) -> "PYLD":
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
    """An energy cut behind its first layer, which the first call finds.

    Attributes:
        linear: Whether the gradient of :meth:`hamiltonian` does not depend on x.
    """

    def __init__(self, energy: Energy, first: str | None) -> None:
        modules = modules_of(energy)
        if not modules:
            raise ValueError(
                f"'energy' should be a module or its method for PYLD, which looks for the first layer, got {energy}. "
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
        """Each chain's energy and its full gradient; p is noted on the way back.

        Raises:
            ValueError: As for :class:`PYLD`.
        """
        value, gradient = value_and_gradient(self._watched, x)
        if check:
            _, through = value_and_gradient(self.hamiltonian, x)
            if (through - gradient).norm() > 0.01 * gradient.norm():
                raise ValueError(
                    f"'first' should be the only way of x into {type(self.network).__name__}, which has another, such "
                    "as a skip connection. Name a submodule that holds both, or use SGLD."
                )
            self.linear = self._is_linear(x)
        return value, gradient

    def hamiltonian(self, x: Tensor) -> Tensor:
        """<h(x), p> - log q(x), shape (N,)."""
        product = (self.candidates[0](x) * self.p).reshape(len(x), -1).sum(1)
        return product if self.support is None else product - self.support.log_q(x)

    def _watched(self, x: Tensor) -> Tensor:
        """E(x), with hooks that note p when it is differentiated."""
        found: list[nn.Module] = []
        scale: list[Tensor] = []

        def keep(gradient: Tensor) -> None:
            # Under float16 all is scaled by what the gradient of the energy itself is.
            self.p = gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / scale[-1]

        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not found and args and args[0] is x and isinstance(output, Tensor) and output.requires_grad:
                found.append(module)
                output.register_hook(keep)

        handles = [module.register_forward_hook(note) for module in self.candidates]
        try:
            value = self.energy(x)
        finally:
            for handle in handles:
                handle.remove()
        if not found:
            raise ValueError(
                f"'first' should be a layer that is called with x itself; {type(self.network).__name__} has none: it "
                "changes x first. Make what it does to x a layer, name a submodule that is, or use SGLD."
            )
        self.candidates = found
        value.register_hook(lambda gradient: scale.append(gradient.flatten()[0]))
        return value

    def _is_linear(self, x: Tensor) -> bool:
        with torch.enable_grad():
            flat = self.support is None or not self.support.log_q(x.detach().requires_grad_()).requires_grad
        return flat and type(self.candidates[0]) in _LINEAR and not self.candidates[0]._forward_hooks


def _layers(network: nn.Module) -> list[nn.Module]:
    """The modules of ``network`` that hold no others, but for what computes their weights."""
    return [m for m in network.modules() if all(name == "parametrizations" for name, _ in m.named_children())]


def _named(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError:
        names = ", ".join(n for n, _ in network.named_modules() if n)
        raise ValueError(f"'first' should name a submodule of the classifier, got {name!r}; it has {names}.") from None
