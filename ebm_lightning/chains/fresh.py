"""Chains that are initialized for each batch, at the data or from the support's reference density."""

import torch
from torch import Tensor

from ebm_lightning.chains.base import Chains


class DataInit(Chains):
    """Chains that start at the data batch: contrastive divergence (CD-k), where k is the number of sampler steps.

    The gradient is biased for finite k, because chains do not visit regions far from the data.

    References:
        Hinton, Training products of experts by minimizing contrastive divergence, 2002.
    """

    def draw(
        self,
        n: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        data: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        if data is None or len(data) != n:
            rows = "None" if data is None else len(data)
            raise ValueError(f"'data' should hold {n} rows for chains to start at, got {rows}.")
        return data.detach().clone(), None


class SupportInit(Chains):
    """Chains that start from the support's reference density for each batch: short-run MCMC.

    References:
        Nijkamp et al., Learning non-convergent non-persistent short-run MCMC toward energy-based model, 2019.
        https://arxiv.org/abs/1904.09770
    """

    def draw(
        self,
        n: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        data: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        if self.support is None:
            raise RuntimeError("This SupportInit has no support yet. Call 'setup(support)' first; 'fit' does it.")
        return self.support.sample(n, generator=generator), None
