"""Mixture densities, and one fitted to data as a proposal that covers the regions where data lie."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ebm_lightning.checks import check_number
from ebm_lightning.partition.clusters import clusters
from ebm_lightning.partition.proposals import Normal
from ebm_lightning.supports import Binary, Box, Density, Support
from ebm_lightning.supports.density import device_of

REFERENCE_WEIGHT = 0.1  # covers what is outside the regions of the data; .25 is less accurate in 784 dimensions
RELATIVE_FLOOR = 0.1  # smallest standard deviation of a component, relative to the root mean square of all of them
PRIOR_COUNT = 2.0  # worth of the pooled variance, in data points, where a cluster has few of them
SAME_WALLS = "Give all components the same box, such as Normal.fit(data, box)."


class Mixture(Density):
    r"""A mixture of densities on one domain.

    .. math:: q(x) = \sum_k weight_k \, q_k(x)

    Arguments:
        components: The densities q_k. All are on R^D, or all have the same walls.
        weights: Shape (K,), positive; divided by their sum. Equal by default.

    Raises:
        ValueError: No component, components on different domains or of infinite mass, or weights that are not K
            positive numbers.
    """

    def __init__(self, components: Sequence[Density], weights: Tensor | None = None) -> None:
        self.components = list(components)
        self.box = _common_box(self.components)
        weights = torch.ones(len(components)) if weights is None else torch.as_tensor(weights)
        if weights.shape != (len(components),):
            raise ValueError(
                f"'weights' should have shape ({len(components)},), got {tuple(weights.shape)}. Give one weight for "
                "each component."
            )
        for extreme in weights.aminmax():
            check_number("weights", float(extreme), above=0, below=math.inf)
        self.weights = weights.double() / weights.double().sum()
        self._normals = _StackedNormals([c for c in self.components if isinstance(c, Normal)])
        self._others = [c for c in self.components if not isinstance(c, Normal)]
        is_normal = torch.tensor([isinstance(c, Normal) for c in self.components])
        self._position = torch.cat([is_normal.nonzero()[:, 0], (~is_normal).nonzero()[:, 0]]).argsort()

    def log_prob(self, x: Tensor) -> Tensor:
        return self.joint_log_prob(x).logsumexp(1)

    def joint_log_prob(self, x: Tensor) -> Tensor:
        """log(weight_k q_k(x)), shape (N, K), float64, in nats."""
        others = [density.log_prob(x).double()[:, None] for density in self._others]
        log_p = torch.cat([self._normals.log_prob(x), *others], 1)[:, self._position.to(x.device)]
        return log_p + self.weights.log().to(x.device)

    def log_prob_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        others = [density.log_prob_and_gradient(x) for density in self._others]
        log_p = torch.cat([self._normals.log_prob(x), *[log_p[:, None] for log_p, _ in others]], 1)
        joint = log_p + self.weights[self._position.argsort()].log().to(x.device)
        share, n = joint.softmax(1), len(self._normals)
        gradient = self._normals.weighted_gradient(x, share[:, :n])
        for weight, (_, of_component) in zip(share[:, n:].T.to(x.dtype), others, strict=True):
            gradient = gradient + weight.view(-1, *[1] * (x.ndim - 1)) * of_component
        return joint.logsumexp(1), gradient

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        device = device_of(generator, device) or "cpu"
        component = torch.multinomial(self.weights.to(device), n, replacement=True, generator=generator)
        order = component.argsort(stable=True)
        counts = component.bincount(minlength=len(self.components)).tolist()
        sorted_samples = torch.cat(
            [
                density.sample(count, generator=generator, device=device)
                for density, count in zip(self.components, counts, strict=True)
            ]
        )
        return sorted_samples[order.argsort()]


class _StackedNormals:
    """The K normal components of a mixture, evaluated together: one matrix product in place of K passes over x."""

    def __init__(self, normals: list[Normal]) -> None:
        self.count = len(normals)
        if normals:
            mean = torch.stack([normal.mean.flatten() for normal in normals], 1)
            self.precision = torch.stack([normal.std.flatten() for normal in normals], 1) ** -2
            self.linear = mean * self.precision
            at_mean = torch.stack([normal.log_prob(normal.mean[None])[0].cpu() for normal in normals])
            self.constant = at_mean - 0.5 * (mean.square() * self.precision).sum(0)

    def __len__(self) -> int:
        return self.count

    def log_prob(self, x: Tensor) -> Tensor:
        """log q_k(x), shape (N, K), float64."""
        if not self.count:
            return torch.empty(len(x), 0, dtype=torch.float64, device=x.device)
        rows = x.flatten(1).double()
        quadratic = 0.5 * rows.square() @ self.precision.to(x.device)
        return rows @ self.linear.to(x.device) - quadratic + self.constant.to(x.device)

    def weighted_gradient(self, x: Tensor, share: Tensor) -> Tensor:
        """Sum over k of share_k times the gradient of log q_k(x), in the shape and type of ``x``."""
        if not self.count:
            return torch.zeros_like(x)
        pull = share @ self.linear.to(x.device).T
        return (pull - x.flatten(1).double() * (share @ self.precision.to(x.device).T)).view_as(x).to(x.dtype)


def data_base(
    data: Tensor,
    labels: Tensor | None,
    support: Support,
    *,
    reference_weight: float = REFERENCE_WEIGHT,
) -> Mixture:
    """A proposal that covers the regions where data lie, and with less weight the rest of the support.

    It has normal components with independent coordinates, truncated to the box if the support is one: one for each
    class, or several where the points of a class fall into clusters. The last component is the reference density of
    the support. Where its mass is infinite, a normal density twice as wide as the data takes its place.

    Arguments:
        data: Points from the regions of interest, such as training data, shape (N, *shape), at least 2. Some hundred
            suffice.
        labels: Class of each point, shape (N,). None finds clusters in all of the data.
        support: Domain of the energy.
        reference_weight: Weight of the last component, in [0, 1). 0 leaves it out.

    Raises:
        ValueError: Data outside the support, fewer than 2 points, a number of labels that differs from that of the
            data, a weight outside [0, 1), or a discrete support.
    """
    check_number("reference_weight", reference_weight, at_least=0, below=1)
    support.check(data, "data")
    if len(data) < 2:
        raise ValueError(f"'data' should be at least 2 points, got {len(data)}. Give some hundred.")
    box = support if isinstance(support, Box) else None
    parts = clusters(data, labels)
    counts = torch.tensor([float(len(part)) for part in parts], dtype=torch.float64)
    normals: list[Density] = [Normal(mean, std, box) for mean, std in _moments(parts)]
    if reference_weight == 0:
        return Mixture(normals, counts)
    weights = torch.cat([counts / counts.sum() * (1 - reference_weight), torch.tensor([reference_weight]).double()])
    return Mixture([*normals, _reference(data, support)], weights)


def _moments(parts: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Mean and standard deviation of each cluster, each of shape (*shape), float64."""
    means = [part.double().mean(0) for part in parts]
    squares = [(part - mean).square().sum(0) for part, mean in zip(parts, means, strict=True)]
    pooled = sum(squares, torch.zeros_like(means[0])) / max(1, sum(map(len, parts)) - len(parts))
    spread = torch.cat(parts).double().std(0).square().mean()
    moments = []
    for part, mean, square in zip(parts, means, squares, strict=True):
        variance = (square + PRIOR_COUNT * pooled) / (len(part) - 1 + PRIOR_COUNT)
        floor = torch.maximum(RELATIVE_FLOOR**2 * variance.mean(), 1e-8 * spread + 1e-12)
        log_variance = _shrunk(variance.clamp(min=floor).log(), 2 / (len(part) - 1 + PRIOR_COUNT))
        moments.append((mean, ((1 + 1 / len(part)) * log_variance.exp()).sqrt()))
    return moments


def _shrunk(log_variance: Tensor, noise: float) -> Tensor:
    """Shrink log variances, shape (*shape), toward their mean, by the fraction of the spread due to sampling."""
    mean, spread = log_variance.mean(), float(log_variance.var(correction=0))
    kept = max(0.0, 1 - noise / spread) if spread > 0 else 0.0
    return mean + kept * (log_variance - mean)


def _reference(data: Tensor, support: Support) -> Density:
    if support.log_mass < math.inf:
        return support
    return Normal(data.double().mean(0), 2 * data.double().std(0).clamp(min=1e-6))


def _common_box(components: list[Density]) -> Box | None:
    if not components:
        raise ValueError("'components' should be at least one density, got none.")
    if any(isinstance(component, Binary) for component in components):
        raise ValueError("'components' should be densities of continuous x, got Binary. Use a Box or Gaussian.")
    if any(isinstance(component, Support) and component.log_mass == math.inf for component in components):
        raise ValueError(
            "'components' should have finite mass, got a support without a reference. Use Normal(mean, std)."
        )
    boxes = [component if isinstance(component, Box) else component.box for component in components]
    walls = {None if box is None else (box.low, box.high) for box in boxes}
    if len(walls) > 1:
        raise ValueError(f"'components' should have the same domain, got walls {sorted(walls, key=str)}. {SAME_WALLS}")
    return boxes[0]
