"""Where chains begin, and persistent ones begin anew, if not in the support's reference density: near the data."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ebm_lightning.supports import Support


class Start(ABC):
    """A density that is easy to draw from, in which a chain takes its first place.

    What a start holds is fitted before the first chain and then only read. Checkpoints leave it out: a run that goes on
    fits it to the same data again.

    Attributes:
        needs_data: Whether :meth:`fit` has to come before the first draw. ``Trainer.fit`` then calls it once for each
            module.
    """

    needs_data: bool = False

    def fit(  # noqa: B027 (a start may know nothing of the data)
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        num_classes: int,
        add_up: Callable[[Tensor], Tensor] = lambda total: total,
    ) -> None:
        """Learn from the data. Nothing by default.

        Arguments:
            batches: Images (n, *shape) and labels (n,).
            num_classes: K.
            add_up: Given a sum over the batches, the sum over those of every process.
        """

    @abstractmethod
    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """``n`` first places, shape (n, *shape), float32; chains then move them to the nearest point of the support.

        Arguments:
            n: Number of chains.
            labels: Class of each chain, shape (n,), where they have one.
            generator: Source of randomness.
            device: Where they are drawn; by default on the generator's device, if there is one.
        """


class ClassGaussians(Start):
    r"""A Gaussian for each class, with the mean and covariance of its training images: JEM++'s informative start.

    .. math:: x | y \sim N(\mu_y, \Sigma_y + ridge \, I)

    Chains that have a label start in its class; others take one as often as the data does. What lies outside a box is
    clamped to it. ``Trainer.fit`` fits it to one pass over the training data as loaded, so with its augmentation. Sums
    are in float64 and take 8 K D^2 bytes, what is kept 4 K D^2: 0.4 GB for ten classes of 3x32x32.

    References:
        Yang & Ji, JEM++: improved techniques for training JEM, 2021, sec. 3.3. https://arxiv.org/abs/2109.09032

    Arguments:
        ridge: Variance added to every component, in squared units of x, so that components that never vary, or fewer
            images than D, do not matter.

    Raises:
        ValueError: ``ridge`` is negative.
    """

    needs_data = True

    def __init__(self, ridge: float = 1e-4) -> None:
        if not ridge >= 0:
            raise ValueError(f"'ridge' should be 0 or positive, got {ridge}.")
        self.ridge = ridge
        self._shape: tuple[int, ...] = ()
        self._fitted: tuple[Tensor, Tensor, Tensor] | None = None

    def fit(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        num_classes: int,
        add_up: Callable[[Tensor], Tensor] = lambda total: total,
    ) -> None:
        """Fit all classes to one pass over ``batches``; arguments as for :class:`Start`.

        Raises:
            ValueError: A class has fewer than 2 images, or its covariance is singular and ``ridge`` too small.
        """
        counts, sums, products = self._totals(batches, num_classes)
        counts, sums = add_up(counts), add_up(sums)
        if counts.min() < 2:
            few = int(counts.argmin())
            raise ValueError(
                f"'batches' should hold at least 2 images of each class for ClassGaussians, got {int(counts[few])} of "
                f"class {few}. Give more data, or drop 'start'."
            )
        means = sums / counts[:, None]
        # One class after the other: each is large, and 'add_up' may copy it.
        factors = [self._factor(y, add_up(products[y]), counts[y], means[y]) for y in range(num_classes)]
        self._fitted = counts.float(), means.float(), torch.stack(factors)

    @property
    def counts(self) -> Tensor:
        """Images of each class, shape (K,)."""
        return self._known()[0]

    @property
    def means(self) -> Tensor:
        """mu, shape (K, D)."""
        return self._known()[1]

    @property
    def factors(self) -> Tensor:
        """Lower Cholesky factors of the covariances with their ridge, shape (K, D, D)."""
        return self._known()[2]

    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        if device is None:
            device = "cpu" if generator is None else generator.device
        counts, means, factors = (t.to(device) for t in self._known())
        self._fitted = counts, means, factors  # once on each device, for they are large
        if labels is None:
            labels = torch.multinomial(counts, n, replacement=True, generator=generator)
        z = torch.randn(n, means.shape[1], generator=generator, device=device)
        with torch.autocast(z.device.type, enabled=False):
            return (means[labels] + _by_class(z, labels, factors)).view(n, *self._shape)

    def _known(self) -> tuple[Tensor, Tensor, Tensor]:
        if self._fitted is None:
            raise RuntimeError(
                "This ClassGaussians is not fitted yet. Call 'fit(batches, num_classes)' first; 'Trainer.fit' does it."
            )
        return self._fitted

    def _totals(self, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of each class the number of images (K,), their sum (K, D) and that of x x^T (K, D, D)."""
        counts = torch.zeros(num_classes, dtype=torch.float64)
        sums, products = torch.empty(0), torch.empty(0)
        for x, y in _gathered(batches):
            rows = x.double().flatten(1)
            if not sums.numel():
                self._shape, width = tuple(x.shape[1:]), rows.shape[1]
                sums, products = rows.new_zeros(num_classes, width), rows.new_zeros(num_classes, width, width)
            for c in y.unique().tolist():
                own = rows[y == c]
                counts[c] += len(own)
                sums[c] += own.sum(0)
                products[c].addmm_(own.T, own)
        if not sums.numel():
            raise ValueError("'batches' should hold images to fit ClassGaussians to, got none.")
        return counts, sums, products

    def _factor(self, y: int, product: Tensor, count: Tensor, mean: Tensor) -> Tensor:
        covariance = product.sub(count * mean.outer(mean)).div_(count - 1)
        covariance.diagonal().add_(self.ridge)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if failed:
            raise ValueError(
                f"'ridge' should be larger, got {self.ridge}: the covariance of class {y} is singular, as where a "
                "component never varies. Use 1e-4."
            )
        return factor.float()


def first_places(
    start: Start | None,
    support: Support,
    n: int,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Where ``n`` chains begin, shape (n, *shape): drawn from ``start``, or else from the support's reference density.

    Arguments:
        start: Its draws are moved to the nearest point of the support.
        support: The domain of x.
        n: Number of chains.
        labels: Class of each chain, shape (n,), where they have one.
        generator: Source of randomness.
        device: Where they are drawn.
    """
    if start is None:
        return support.sample(n, generator=generator, device=device)
    return support.clamp(start.sample(n, labels, generator, device))


def _gathered(batches: Iterable[tuple[Tensor, Tensor]], rows: int = 2048) -> Iterator[tuple[Tensor, Tensor]]:
    """The same images in batches of at least ``rows``, but for the last: each one costs a pass over K D^2 numbers."""
    waiting: list[tuple[Tensor, Tensor]] = []
    for x, y in batches:
        waiting.append((x.detach().cpu(), y.cpu()))
        if sum(len(x) for x, _ in waiting) >= rows:
            yield torch.cat([x for x, _ in waiting]), torch.cat([y for _, y in waiting])
            waiting = []
    if waiting:
        yield torch.cat([x for x, _ in waiting]), torch.cat([y for _, y in waiting])


def _by_class(z: Tensor, labels: Tensor, factors: Tensor) -> Tensor:
    """Each row of ``z`` times its class's factor: one product a class, since a copy of it for each row is large."""
    order = labels.argsort(stable=True)
    counts = labels.bincount(minlength=len(factors)).tolist()
    parts = [rows @ factor.T for rows, factor in zip(z[order].split(counts), factors, strict=True)]
    moved = torch.empty_like(z)
    moved[order] = torch.cat(parts)
    return moved
