"""SADA-JEM: a joint energy model trained with sharpness-aware minimization."""

from typing import Any

from torch import Tensor, nn

from ebm_lightning.chains import Chains
from ebm_lightning.checks import check_number
from ebm_lightning.modules.conditional import Terms
from ebm_lightning.modules.jem import JEM
from ebm_lightning.modules.sam import SavedWeights, frozen_statistics, perturb_weights, restore_weights
from ebm_lightning.samplers import Sampler
from ebm_lightning.supports import Support


class SADAJEM(JEM):
    r"""A :class:`JEM` whose update uses the gradient at the worst point near the weights.

    .. math::
        w \leftarrow w - \eta \nabla L(w + e), \qquad
        e = \rho \frac{T^2 \nabla L(w)}{|T \nabla L(w)|}, \qquad T = \mathrm{diag} |w| \text{ or } I

    Both passes of a step use the same batch, the same noise, the same weighted terms and the same negatives, which are
    sampled once, at w. A step therefore costs two training passes but no additional sampling. Batch-norm statistics are
    updated in the first pass only. Each rank computes e from its own batch; DDP averages the gradients at w + e.

    SADA-JEM takes the data of p(x) from a second loader without augmentation: set ``separate_batch_size`` of the data
    module. With ``rho`` 0 this is :class:`JEM`.

    References:
        Yang, Su & Ji, Towards bridging the performance gaps of joint energy-based models, 2023.
        https://arxiv.org/abs/2209.07959
        Foret et al., Sharpness-aware minimization, 2021, eq. 2. https://arxiv.org/abs/2010.01412
        Kwon et al., ASAM, 2021, eq. 3, for T = diag |w|. https://arxiv.org/abs/2102.11600

    Arguments:
        rho: Length of the perturbation e, in units of the weights, or relative to them if ``adaptive``. The paper
            uses 2.
        adaptive: T = diag |w|, so that large weights move further (ASAM); otherwise T = I (SAM).

    The other arguments are those of :class:`JEM`.

    Raises:
        ValueError: ``rho`` is negative, or an error of :class:`JEM`.
        RuntimeError: Training in float16, whose gradient scaler does not scale the gradient that gives e.
    """

    def __init__(
        self,
        classifier: nn.Module,
        num_classes: int,
        support: Support | None = None,
        sampler: Sampler | None = None,
        chains: Chains | None = None,
        *,
        rho: float = 2.0,
        adaptive: bool = True,
        **jem_arguments: Any,
    ) -> None:
        super().__init__(classifier, num_classes, support, sampler, chains, **jem_arguments)
        self.rho: float = check_number("rho", rho, at_least=0)
        self.adaptive = adaptive
        self._negatives: dict[bool, Tensor] | None = None
        self._saved_weights: SavedWeights = []

    def negatives(self, u: Tensor, y: Tensor | None = None) -> Tensor:
        """As for :class:`JEM`, but the second pass of a step reuses those of the first."""
        if self._negatives is None:
            return super().negatives(u, y)
        marginal = y is None
        if marginal not in self._negatives:
            self._negatives[marginal] = super().negatives(u, y)
        return self._negatives[marginal]

    def compute_loss(self, *batch: Tensor) -> tuple[Tensor, Terms]:
        """The loss at w + e, and its terms at w. The weights stay at w + e until ``on_after_backward``."""
        if not self.rho:
            return super().compute_loss(*batch)
        self._negatives = {}
        try:
            loss, terms = super().compute_loss(*batch)
            self._saved_weights = perturb_weights(loss, self.parameters(), self.rho, self.adaptive)
            with frozen_statistics(self):
                return super().compute_loss(*batch)[0], terms
        except BaseException:
            restore_weights(self._saved_weights)
            raise
        finally:
            self._negatives = None

    def on_after_backward(self) -> None:
        super().on_after_backward()
        restore_weights(self._saved_weights)

    def prepare_fit(self) -> None:
        if self.rho and self.trainer.precision in ("16-mixed", "16-true"):
            raise RuntimeError(
                f"'precision' should be bf16-mixed or 32-true for SADAJEM, got {self.trainer.precision}: the gradient "
                "that perturbs the weights is not scaled and would underflow in float16."
            )
        super().prepare_fit()
