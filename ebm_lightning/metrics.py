"""Metrics whose state is reduced over batches and ranks."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities import dim_zero_cat


class OODScores(Metric):
    """Scores of data in and out of distribution; computes the AUROC of telling them apart.

    Scores are any real numbers, infinite ones included, larger for data in distribution. They are compared by their
    ranks: torchmetrics' own AUROC would squash logits of 20 and 200 to the same 1.0.

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
        """Add scores of shape (N,) and (M,)."""
        for name, scores in (("inside", inside), ("outside", outside)):
            if torch.isnan(scores).any():
                raise ValueError(f"'{name}' should hold no NaN, got {int(torch.isnan(scores).sum())} of {len(scores)}.")
        self.inside.append(inside)
        self.outside.append(outside)

    def scores(self) -> tuple[Tensor, Tensor]:
        """All scores so far, in and out of distribution; of every rank once the metric is synchronised."""
        return dim_zero_cat(self.inside), dim_zero_cat(self.outside)

    def compute(self) -> Tensor:
        inside, outside = self.scores()
        target = torch.cat([torch.ones_like(inside), torch.zeros_like(outside)]).long()
        ranks = torch.cat([inside, outside]).unique(return_inverse=True)[1]
        return binary_auroc(ranks.double() / max(1, int(ranks.max())), target)
