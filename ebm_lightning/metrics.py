"""Metrics whose state is reduced over batches and ranks."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities import dim_zero_cat


class OODScores(Metric):
    """Scores of data in and out of distribution; computes how well they tell them apart.

    Scores are any real numbers, infinite ones included, larger for data in distribution. They are compared by their
    ranks: torchmetrics' own AUROC would squash logits of 20 and 200 to the same 1.0. ``compute`` gives

    - ``auroc``: the probability that data in distribution score higher, ties counting half; 0.5 is chance.
    - ``fpr95``: the share of foreign data at or above the largest threshold that keeps at least 95 % of the data in
      distribution; 0 is best, and 0.95 or more is chance. Nothing is interpolated, so ties count as taken for data.

    References:
        Hendrycks & Gimpel 2017. https://arxiv.org/abs/1610.02136
        Liang, Li & Srikant, Enhancing the reliability of out-of-distribution image detection, 2018, for FPR95.
        https://arxiv.org/abs/1706.02690

    Raises:
        ValueError: A score is NaN.
    """

    full_state_update = False
    higher_is_better = True
    inside: list[Tensor]
    outside: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("inside", default=[], dist_reduce_fx="cat")
        self.add_state("outside", default=[], dist_reduce_fx="cat")

    def update(self, inside: Tensor, outside: Tensor) -> None:
        """Add scores of shape (N,) and (M,); either may be empty."""
        for name, scores in (("inside", inside), ("outside", outside)):
            if torch.isnan(scores).any():
                raise ValueError(f"'{name}' should hold no NaN, got {int(torch.isnan(scores).sum())} of {len(scores)}.")
        self.inside.append(inside)
        self.outside.append(outside)

    def scores(self) -> tuple[Tensor, Tensor]:
        """All scores so far, in and out of distribution; of every rank once the metric is synchronised."""
        return dim_zero_cat(self.inside), dim_zero_cat(self.outside)

    def compute(self) -> dict[str, Tensor]:
        inside, outside = self.scores()
        return {"auroc": self._auroc(inside, outside), "fpr95": self._fpr95(inside, outside)}

    def _auroc(self, inside: Tensor, outside: Tensor) -> Tensor:
        target = torch.cat([torch.ones_like(inside), torch.zeros_like(outside)]).long()
        ranks = torch.cat([inside, outside]).unique(return_inverse=True)[1]
        return binary_auroc(ranks.double() / max(1, int(ranks.max())), target)

    def _fpr95(self, inside: Tensor, outside: Tensor) -> Tensor:
        kept = -(-95 * len(inside) // 100)  # 95 % rounded up, in integers: 0.95 n may land above a whole number
        threshold = inside.sort(descending=True).values[kept - 1]
        return (outside >= threshold).double().mean()
