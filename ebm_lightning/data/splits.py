"""Splits in which each class has its share."""

import torch
from torch import Tensor


def stratified_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A random order of which every stretch holds the classes in the shares that they have in all, up to rounding.

    Its first n are thus a stratified sample, and among its first m > n.

    Arguments:
        labels: Shape (N,).
        generator: Source of the order.

    Returns:
        A permutation of 0..N-1, shape (N,).
    """
    order = torch.randperm(len(labels), generator=generator)
    shuffled, place = labels[order], torch.empty(len(labels), dtype=torch.double)
    for label in labels.unique():
        members = shuffled == label
        n = int(members.sum())
        # Evenly spread over (0, 1): the classes are then merged like the teeth of combs.
        place[members] = (torch.arange(n, dtype=torch.double) + 0.5) / n
    return order[place.argsort(stable=True)]
