"""Sharpness-aware training of a joint energy model: each step looks at the loss a little way uphill."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ebm_lightning.chains import Chains
from ebm_lightning.modules.conditional import LRSchedulerCallable, OptimizerCallable
from ebm_lightning.modules.jem import JEM
from ebm_lightning.samplers import Compute, Sampler
from ebm_lightning.supports import Support


class SADAJEM(JEM):
    r"""A JEM whose weights move by the gradient at the sharpest point nearby.

    .. math::
        w \leftarrow w - \eta \nabla L(w + e), \qquad
        e = \rho \frac{T^2 \nabla L(w)}{|T \nabla L(w)|}, \qquad T = \mathrm{diag} |w| \text{, or } I

    Both losses have the same batch, the same noise and the same negatives, which are sampled once, at w, and every term
    with its weight. A step costs two passes of training, but no more sampling. Batch-norm statistics move in the first
    pass alone. Each rank climbs by the gradient of its own batch, and ranks average the gradient found there.

    SADA-JEM's positives for p(x) come from a second loader without augmentation: give the data
    ``separate_batch_size``. ``rho`` 0 gives :class:`JEM`.

    References:
        Yang, Su & Ji, Towards bridging the performance gaps of joint energy-based models, 2023.
        https://arxiv.org/abs/2209.07959
        Foret et al., Sharpness-aware minimization, 2021, eq. 2. https://arxiv.org/abs/2010.01412
        Kwon et al., ASAM, 2021, eq. 3, for T = |w|. https://arxiv.org/abs/2102.11600

    Arguments:
        rho: Distance climbed, in units of the weights; with ``adaptive`` relative to them. SADA-JEM takes 2.
        adaptive: Climb further along large weights (ASAM).

    The other arguments are those of :class:`JEM`.

    Raises:
        ValueError: ``rho`` is negative, and whatever :class:`JEM` raises.
        RuntimeError: Under float16, whose scaler does not know of the first gradient.
    """

    def __init__(
        self,
        classifier: nn.Module,
        num_classes: int,
        support: Support,
        sampler: Sampler | None = None,
        chains: Chains | None = None,
        *,
        rho: float = 2.0,
        adaptive: bool = True,
        conditional_weight: float = 1.0,
        generative_weight: float = 1.0,
        joint_weight: float = 0.0,
        class_conditional_weight: float = 0.0,
        energy_l2: float = 0.1,
        data_noise: float = 0.0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        compute: Compute | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            classifier,
            num_classes,
            support,
            sampler,
            chains,
            conditional_weight=conditional_weight,
            generative_weight=generative_weight,
            joint_weight=joint_weight,
            class_conditional_weight=class_conditional_weight,
            energy_l2=energy_l2,
            data_noise=data_noise,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            compute=compute,
            seed=seed,
        )
        if not rho >= 0:
            raise ValueError(f"'rho' should be 0 or positive, got {rho}.")
        self.rho = rho
        self.adaptive = adaptive
        self._negatives: dict[bool, Tensor] | None = None
        self._weights: list[tuple[nn.Parameter, Tensor]] = []

    def negatives(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """As for :class:`JEM`; the second pass of a step gets those of the first."""
        if self._negatives is None:
            return super().negatives(x, y)
        if (y is None) not in self._negatives:
            self._negatives[y is None] = super().negatives(x, y)
        return self._negatives[y is None]

    def compute_loss(self, *batch: Tensor) -> tuple[Tensor, dict[str, tuple[float, Tensor]]]:
        if not self.rho:
            return super().compute_loss(*batch)
        self._negatives = {}
        try:
            loss, terms = super().compute_loss(*batch)
            self._climb(loss)
            with frozen_statistics(self):
                return super().compute_loss(*batch)[0], terms
        except BaseException:
            self._descend()
            raise
        finally:
            self._negatives = None

    def on_fit_start(self) -> None:
        if self.rho and self.trainer.precision in ("16-mixed", "16-true"):
            raise RuntimeError(
                f"'precision' should be bf16-mixed or 32-true for SADAJEM, got {self.trainer.precision}: the gradient "
                "that it climbs by is not scaled, and would be lost in float16."
            )
        super().on_fit_start()

    def on_after_backward(self) -> None:
        super().on_after_backward()
        self._descend()

    @torch.no_grad()
    def _climb(self, loss: Tensor) -> None:
        """Move the weights by e, and note where they were."""
        weights = [p for p in self.parameters() if p.requires_grad]
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        moved = [(p, g) for p, g in zip(weights, gradients, strict=True) if g is not None]
        scaled = [g * p.abs() if self.adaptive else g for p, g in moved]
        length = torch.stack([g.norm() for g in scaled]).norm()
        self._weights = [(p, p.clone()) for p, _ in moved]
        for (p, _), g in zip(moved, scaled, strict=True):
            p.add_(self.rho * (g * p.abs() if self.adaptive else g) / (length + 1e-12))
        torch.clear_autocast_cache()  # it holds the weights of the first pass

    @torch.no_grad()
    def _descend(self) -> None:
        """Put the weights back, bit for bit."""
        for p, there in self._weights:
            p.copy_(there)
        self._weights = []


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norm normalises by the batch as ever, and its running statistics stay as they are."""
    layers: list[tuple[Any, float | None, Tensor | None]] = [
        (m, m.momentum, None if m.num_batches_tracked is None else m.num_batches_tracked.clone())
        for m in module.modules()
        if isinstance(m, _BatchNorm) and m.training
    ]
    for layer, _, _ in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum, count in layers:
            layer.momentum = momentum
            if count is not None:
                layer.num_batches_tracked.copy_(count)
