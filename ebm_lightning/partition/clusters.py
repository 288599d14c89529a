"""Clusters of data points, by k-means with a number of clusters that a likelihood criterion picks."""

import math

import torch
from torch import Tensor

from ebm_lightning.rng import make_generator

MAX_POINTS = 1000  # of all classes; more hardly change the clusters
COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40)  # numbers of clusters that are tried
MAX_CLUSTERS = 40  # of all classes
PATIENCE = 3  # counts without improvement before the search ends
POINTS_PER_CLUSTER = 5
RESTARTS = 3
LINK, LINKED_QUANTILES = 1.3, (0.1, 0.25, 0.5, 0.75)  # distance, relative to a quantile of those to the 5th neighbor
ITERATIONS = 15


def clusters(data: Tensor, labels: Tensor | None = None) -> list[Tensor]:
    """The points of each cluster, each of shape (n, *shape), from at most 1000 of the points.

    Each class is divided by k-means, or by single linkage where dense groups lie on a wide background. The number of
    clusters has the best BIC of a normal density with independent coordinates for each of them. A class without
    clusters stays whole. The result does not depend on global random state.

    References:
        Arthur & Vassilvitskii, k-means++: the advantages of careful seeding, 2007. Schwarz, 1978, for the BIC.

    Arguments:
        data: Shape (N, *shape).
        labels: Class of each point, shape (N,). None is one class.

    Raises:
        ValueError: There are not as many labels as points.
    """
    labels = torch.zeros(len(data), dtype=torch.long) if labels is None else torch.as_tensor(labels)
    if labels.shape != (len(data),):
        raise ValueError(f"'labels' should have shape ({len(data)},), got {tuple(labels.shape)}.")
    classes = labels.unique().tolist()
    scale = data.flatten(1).double().std(0).clamp(min=1e-12).cpu()
    parts = []
    for label in classes:
        points = data[labels.to(data.device) == label]
        kept = torch.randperm(len(points), generator=make_generator(0, "points"))[: max(2, MAX_POINTS // len(classes))]
        points = points[kept.to(points.device)]
        assigned = _best_partition(points.flatten(1).double().cpu() / scale, max(1, MAX_CLUSTERS // len(classes)))
        parts += [points[assigned.to(points.device) == k] for k in assigned.unique().tolist()]
    return parts


def _best_partition(rows: Tensor, most: int) -> Tensor:
    """The cluster of each row, shape (N,), of the partition into at most ``most`` clusters with the best criterion."""
    generator = make_generator(0, "clusters")
    best = torch.zeros(len(rows), dtype=torch.long)
    best_score, best_count = _criterion(rows, best), 1
    for dense in LINKED_QUANTILES if len(rows) > 2 * POINTS_PER_CLUSTER else ():
        assigned = _linked(rows, dense)
        score = _criterion(rows, assigned)
        if score > best_score and len(assigned.unique()) <= most:
            best, best_score = assigned, score
    for tried, count in enumerate(COUNTS):
        if count > min(most, len(rows) // POINTS_PER_CLUSTER) or tried - COUNTS.index(best_count) > PATIENCE:
            break
        for _ in range(RESTARTS if count > 1 else 0):
            assigned = _k_means(rows, count, generator)
            score = _criterion(rows, assigned)
            if score > best_score:
                best, best_score, best_count = assigned, score, count
    return best


def _k_means(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    centers = _seeds(rows, count, generator)
    assigned = torch.cdist(rows, centers).argmin(1)
    for _ in range(ITERATIONS):
        onehot = torch.nn.functional.one_hot(assigned, count).double()
        sizes = onehot.sum(0)
        centers = torch.where(sizes[:, None] > 0, onehot.T @ rows / sizes.clamp(min=1)[:, None], centers)
        previous, assigned = assigned, torch.cdist(rows, centers).argmin(1)
        if torch.equal(previous, assigned):
            break
    return assigned


def _linked(rows: Tensor, dense: float) -> Tensor:
    """Groups of points that are linked by short distances, and all others as one more cluster.

    Dense groups on a wide background are found so. k-means divides the background instead, because most of the
    squared distance is there.

    Arguments:
        rows: Shape (N, D).
        dense: The quantile of the distances to the 5th neighbor at which distances are short.
    """
    distances = torch.cdist(rows, rows)
    to_neighbor = distances.kthvalue(POINTS_PER_CLUSTER + 1, dim=1).values  # the first is the point itself
    linked = (distances <= LINK * to_neighbor.quantile(dense)).fill_diagonal_(True)  # also where points repeat
    label, n = torch.arange(len(rows)), len(rows)
    while True:  # every point takes the smallest label among its neighbors
        smallest = torch.where(linked, label, n).amin(1)
        smallest = smallest[smallest]
        if torch.equal(smallest, label):
            break
        label = smallest
    sizes = label.bincount(minlength=n)
    return torch.where(sizes[label] >= POINTS_PER_CLUSTER, label, n).unique(return_inverse=True)[1]


def _seeds(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Initial centers by k-means++: rows drawn with probability proportional to the squared distance to the nearest."""
    centers = rows[torch.randint(len(rows), (1,), generator=generator)]
    for _ in range(count - 1):
        squares = torch.cdist(rows, centers).amin(1).square() + 1e-12
        centers = torch.cat([centers, rows[torch.multinomial(squares, 1, generator=generator)]])
    return centers


def _criterion(rows: Tensor, assigned: Tensor) -> float:
    """Log likelihood of one diagonal normal density for each cluster, less the BIC penalty, in nats."""
    score = 0.0
    n, dimensions = rows.shape
    pooled = _within(rows, assigned)
    for k in assigned.unique().tolist():
        part = rows[assigned == k]
        variance = ((part - part.mean(0)).square().sum(0) + pooled) / len(part)  # the pooled variance: one prior point
        score += len(part) * (math.log(len(part) / n) - 0.5 * float(variance.clamp(min=1e-8).log().sum()))
    return score - dimensions * len(assigned.unique()) * math.log(n)


def _within(rows: Tensor, assigned: Tensor) -> Tensor:
    """Variance around the means of the clusters, shape (D,)."""
    centers = torch.stack(
        [rows[assigned == k].mean(0) for k in range(int(assigned.max()) + 1) if (assigned == k).any()]
    )
    index = assigned.unique(return_inverse=True)[1]
    return (rows - centers[index]).square().mean(0)
