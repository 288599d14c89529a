"""Persistent chains that are resampled when the model changes."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ebm_lightning.chains.replay import ReplayBuffer
from ebm_lightning.samplers.resampling import systematic
from ebm_lightning.supports import Support


class ReweightedBuffer(ReplayBuffer):
    r"""Persistent chains that are weighted and resampled when the model changes.

    A chain that cannot cross from one mode to another does not notice that training has changed the mass of its mode:
    the chains then keep the masses that they began with, and nothing corrects the model's. Here each chain that is
    drawn gets a weight for the change of the model since it last moved, and the chains of a batch are resampled by
    their weights before they move:

    .. math:: \log w \leftarrow \log w + \log \frac{\tilde p_t(x)}{\tilde p_s(x)}

    New chains are samples of the reference density q, with the weight :math:`\tilde p_t(x) / q(x)`. So the negatives
    are weighted samples of the model however slowly the chains mix, and the mean weight estimates log Z while the model
    trains. The cost is one evaluation of the network for each chain of a batch. Kernels have to keep the model's
    distribution, such as MALA, HMC or NoiseRefresh.

    References:
        Carbone, Hua, Coste & Vanden-Eijnden, Efficient training of energy-based models using Jarzynski equality, 2023,
        algorithms 1 and 4. https://arxiv.org/abs/2305.19414

    Arguments:
        size: Number of chains on each rank, at least the batch size.
        reinit_prob: Probability that a drawn chain is replaced by a sample of q, which survives if the model gives it
            enough density. These find modes that no chain is in.

    Raises:
        ValueError: ``size`` is below 1, or ``reinit_prob`` is outside [0, 1].
    """

    def __init__(self, size: int = 1000, reinit_prob: float = 0.0) -> None:
        super().__init__(size, reinit_prob)

    def setup(self, support: Support, num_classes: int | None = None, generator: torch.Generator | None = None) -> None:
        """As for :class:`ReplayBuffer`.

        Raises:
            ValueError: The chains have classes.
        """
        if num_classes is not None:
            raise ValueError(
                "'chains' should be a ReplayBuffer for class-conditional chains, got a ReweightedBuffer: the masses of "
                "the classes do not matter there."
            )
        super().setup(support, num_classes, generator)

    @property
    def log_weight(self) -> Tensor:
        """Log weight of each chain, shape (size,), float64: the chains of one batch have the same after resampling."""
        return self._values("log_weight")

    @property
    def log_z(self) -> float:
        """Estimate of log Z of the last models, relative to the reference density, in nats.

        It is somewhat low, because training raises the energy of these very chains.
        """
        return float(self.log_weight.logsumexp(0)) - math.log(self.size)

    def reweight(
        self,
        index: Tensor | None,
        x: Tensor,
        log_tilt: Callable[[Tensor], Tensor],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        assert index is not None
        new = self.age[index] == 0
        change = log_tilt(x).double() - self._values("log_tilt")[index].masked_fill(new, 0)
        log_weight = self.log_weight[index].masked_fill(new, 0) + change
        kept = systematic(log_weight.softmax(0), generator)
        self.log_weight[index] = log_weight.logsumexp(0) - math.log(len(index))
        self.age[index] = self.age[index][kept]
        return x[kept]

    def remember(self, index: Tensor | None, log_tilt: Tensor) -> None:
        self._values("log_tilt")[index] = log_tilt.detach().double()

    def _new(self, slots: Tensor, generator: torch.Generator | None, device: torch.device | None) -> dict[str, Tensor]:
        new = super()._new(slots, generator, device)
        zero = torch.zeros(len(slots), dtype=torch.float64, device=new["x"].device)
        return new | {"log_weight": zero, "log_tilt": zero.clone()}
