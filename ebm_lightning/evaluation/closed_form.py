"""Densities of images that are fitted in closed form: what a trained density has to beat."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ebm_lightning.coordinates import Quantiles
from ebm_lightning.evaluation.metrics import bits_per_dim
from ebm_lightning.supports import Box, ClassGaussians


class Floor(NamedTuple):
    """What a density that is fitted in closed form reaches on test images.

    Attributes:
        bits_per_dim: In the units of the images before dequantization. Lower is better.
        accuracy: Of the classes that it finds most likely; None for a density without classes.
    """

    bits_per_dim: float
    accuracy: float | None


def closed_form_floors(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], box: Box, num_levels: int
) -> dict[str, Floor]:
    """Bits per dimension and accuracy of four densities.

    - "uniform": the uniform density on the box.
    - "histograms": one histogram of the levels of each pixel, pixels independent.
    - "class histograms": the same for each class, times the frequency of the class.
    - "class Gaussians": one Gaussian with full covariance for each class, ridge 1e-3.

    Histograms are smoothed as :class:`~ebm_lightning.Quantiles` does, with a tenth of a pseudo-count for each level.
    Gaussians have mass outside the box, which counts against them. No log Z is estimated.

    Arguments:
        train: Dequantized images in the box, shape (N, *shape), and labels, shape (N,).
        test: The same, to measure on.
        box: The box.
        num_levels: Levels of the images before dequantization.
    """
    (x, y), (x_test, y_test) = train, test
    gaussians, smoothing = ClassGaussians(1e-3), num_levels / 10
    gaussians.fit([(x, y)], int(y.max()) + 1)

    def histograms(rows: Tensor) -> Tensor:
        quantiles = Quantiles(box, num_levels, smoothing=smoothing).fit(rows)
        return quantiles.log_abs_det_jacobian(x_test, quantiles(x_test))

    def floor(log_prob: Tensor, log_joint: Tensor | None = None) -> Floor:
        bits = bits_per_dim(float(log_prob.mean()), box.shape, box.high - box.low, num_levels)
        return Floor(bits, None if log_joint is None else float((log_joint.argmax(1) == y_test).double().mean()))

    prior = y.bincount().double() / len(y)
    by_class = torch.stack([histograms(x[y == c]) + math.log(p) for c, p in enumerate(prior.tolist())], 1)
    normal = gaussians.log_joint(x_test)
    return {
        "uniform": floor(box.log_prob(x_test)),
        "histograms": floor(histograms(x)),
        "class histograms": floor(by_class.logsumexp(1), by_class),
        "class Gaussians": floor(normal.logsumexp(1), normal),
    }
