"""A Gaussian for each class: a density, and the classifier that it implies."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ebm_lightning.checks import check_integer, check_number
from ebm_lightning.supports.density import FittedDensity, Progress, one_process
from ebm_lightning.supports.exact_buffers import ExactBuffers

STATE = ("counts", "means", "factors")


class ClassGaussians(ExactBuffers, FittedDensity):
    r"""A Gaussian for each class, with the mean and covariance of its data, and their mixture.

    .. math:: x | y \sim N(\mu_y, (1 - \lambda) \Sigma_y + \lambda \bar\Sigma + ridge \, I), \qquad p(y) = n_y / n

    with the average covariance within the classes. It serves as

    - the initial distribution of chains, ``ReplayBuffer(initial=ClassGaussians())``: the informative initialization of
      JEM++. Samples with a label come from its class, samples without one from the mixture. Initial points outside a
      box are clamped to it. Checkpoints do not contain this fit; a resumed run fits the same data again.
    - the reference density of a model, ``Euclidean(shape, reference=ClassGaussians())``. It is then part of the model,
      and of its checkpoints.
    - a classifier: called as a network it returns log p(y|x), shape (N, K), as quadratic discriminant analysis does.

    ``Trainer.fit`` fits the Gaussians in one pass over the training data as loaded, including augmentation. The fit
    needs 8 K D^2 bytes of memory (float64) and its result as much: 0.8 GB for ten classes of 3x32x32 images.

    References:
        Yang & Ji, JEM++: improved techniques for training JEM, 2021, sec. 3.3. https://arxiv.org/abs/2109.09032
        Friedman, Regularized discriminant analysis, 1989, for the shrinkage.

    Arguments:
        ridge: Variance added to every component, in squared units of x. It keeps the covariance invertible if a
            component is constant or a class has fewer images than D.
        shrinkage: lambda, from 0 (each class has another covariance) to 1 (all have the same).
        passes: Passes over the data for the fit. Several average over dequantization noise, which is new in each.

    Raises:
        ValueError: ``ridge`` is negative, ``passes`` is below 1, or ``shrinkage`` is outside [0, 1].
    """

    _counts: Tensor
    _means: Tensor
    _factors: Tensor
    _shape: Tensor
    _inverses: Tensor

    def __init__(self, ridge: float = 1e-4, shrinkage: float = 0.0, passes: int = 1) -> None:
        super().__init__()
        self.ridge = check_number("ridge", ridge, at_least=0)
        self.shrinkage = check_number("shrinkage", shrinkage, at_least=0, at_most=1)
        self.passes = check_integer("passes", passes, at_least=1)
        for name in STATE:
            self.register_buffer(f"_{name}", torch.empty(0))
        self.register_buffer("_shape", torch.empty(0, dtype=torch.long))
        self.register_buffer("_inverses", torch.empty(0), persistent=False)

    @property
    def fitted(self) -> bool:
        """Whether the Gaussians are known, from :meth:`fit` or from a checkpoint."""
        return self._counts.numel() > 0

    @property
    def counts(self) -> Tensor:
        """Images of each class, shape (K,)."""
        return self._known("_counts")

    @property
    def means(self) -> Tensor:
        """mu, shape (K, D)."""
        return self._known("_means")

    @property
    def factors(self) -> Tensor:
        """Lower Cholesky factors of the covariances, shape (K, D, D)."""
        return self._known("_factors")

    def fit(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        num_classes: int,
        all_reduce: Callable[[Tensor], Tensor] = one_process,
        progress: Progress | None = None,
    ) -> None:
        """Fit all classes in one pass over ``batches``. Arguments as for :meth:`FittedDensity.fit`.

        Raises:
            ValueError: A class has fewer than 2 images, data have no label, or the covariance of a class is singular
                because ``ridge`` is too small.
        """
        counts, sums, products, shape = self._totals(batches, num_classes)
        counts, sums = all_reduce(counts), all_reduce(sums)
        if counts.min() < 2:
            few = int(counts.argmin())
            raise ValueError(
                f"'batches' should hold at least 2 images of each class for ClassGaussians, got {int(counts[few])} of "
                f"class {few}. Give more data, or drop 'initial'."
            )
        means = sums / counts[:, None]
        # One class at a time: the matrices are large, and 'all_reduce' may copy them.
        for y in range(num_classes):
            products[y] = all_reduce(products[y]).sub_(counts[y] * means[y].outer(means[y])).div_(counts[y] - 1)
        factors = self._factors_of(products, counts)
        device = self._counts.device
        self._counts, self._means, self._factors = (t.float().to(device) for t in (counts, means, factors))
        self._shape = torch.tensor(shape, device=device)
        self._invert()

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        if device is None:
            device = "cpu" if generator is None else generator.device
        self._move(device)
        if labels is None:
            labels = torch.multinomial(self.counts, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, device=device, dtype=self.means.dtype)
        with torch.autocast(z.device.type, enabled=False):
            x = (self.means[labels] + _by_class(z, labels, self.factors)).view(n, *self._shape.tolist())
        # A trainer with precision "64-true" changes the default type, which samples of a Box have too.
        return x.to(torch.promote_types(x.dtype, torch.get_default_dtype()))

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log density of the mixture, :math:`\log \sum_y (n_y / n) N(x; \mu_y, \Sigma_y)`, shape (N,), float64."""
        return self.log_joint(x).logsumexp(1)

    def forward(self, x: Tensor) -> Tensor:
        """log p(y|x), shape (N, K)."""
        return self.log_joint(x).log_softmax(1).to(x.dtype)

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, y) for all y, shape (N, K), float64."""
        self._move(x.device)
        with torch.autocast(x.device.type, enabled=False):
            rows = x.flatten(1).to(self._inverses.dtype)
            z = (rows[None] - self.means[:, None]) @ self._inverses.mT  # (K, N, D)
            squares = z.square().sum(2).T.double()
        log_det = self.factors.diagonal(dim1=1, dim2=2).double().log().sum(1)
        log_prior = (self.counts.double() / self.counts.sum()).log()
        return log_prior - log_det - 0.5 * squares - rows.shape[1] / 2 * math.log(2 * math.pi)

    def _move(self, device: torch.device | str) -> None:
        """Move the tables to ``device``. They are large, so they stay there."""
        if self.counts.device != torch.device(device):
            with torch.inference_mode(False):  # or gradients of later densities would fail
                self.to(device)

    def _known(self, name: str) -> Tensor:
        if not self.fitted:
            raise RuntimeError(
                "This ClassGaussians is not fitted yet. Call 'fit(batches, num_classes)' first; 'Trainer.fit' does it."
            )
        tensor: Tensor = getattr(self, name)
        return tensor

    def _totals(
        self, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int
    ) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
        """For each class the number of images (K,), and the sums of x (K, D) and of x x^T (K, D, D); the shape of x."""
        counts = torch.zeros(num_classes, dtype=torch.float64)
        sums, products = torch.empty(0), torch.empty(0)
        shape: tuple[int, ...] = ()
        for x, y in _rebatched(batches):
            if y.ndim == 2:
                raise ValueError(
                    f"'batches' should have a class for each image for ClassGaussians, got soft labels of shape "
                    f"{tuple(y.shape)}. Yield {{'clf': (mixed x, probabilities), 'gen': (x, y)}} in training."
                )
            if int(y.min()) < 0:
                raise ValueError("'batches' should have a label for each image for ClassGaussians, got unlabeled ones.")
            rows = x.double().flatten(1)
            if not sums.numel():
                shape, width = tuple(x.shape[1:]), rows.shape[1]
                sums, products = rows.new_zeros(num_classes, width), rows.new_zeros(num_classes, width, width)
            for c in y.unique().tolist():
                of_class = rows[y == c]
                counts[c] += len(of_class)
                sums[c] += of_class.sum(0)
                products[c].addmm_(of_class.T, of_class)
        if not sums.numel():
            raise ValueError("'batches' should hold images to fit ClassGaussians to, got none.")
        return counts, sums, products, shape

    def _factors_of(self, covariances: Tensor, counts: Tensor) -> Tensor:
        """Cholesky factors of the shrunk covariances (K, D, D). Changes ``covariances``."""
        if self.shrinkage:
            within = torch.einsum("k,kij->ij", counts / counts.sum(), covariances)
            covariances.lerp_(within.expand_as(covariances), self.shrinkage)
        covariances.diagonal(dim1=1, dim2=2).add_(self.ridge)
        factors, failed = torch.linalg.cholesky_ex(covariances)
        if failed.any():
            raise ValueError(
                f"'ridge' should be larger, got {self.ridge}: the covariance of class {int(failed.argmax())} is "
                "singular, for example because a component is constant. Use 1e-4."
            )
        return factors

    def _invert(self) -> None:
        identity = torch.eye(self._factors.shape[1], dtype=torch.float64, device=self._factors.device)
        for_each = identity.expand_as(self._factors)
        self._inverses = torch.linalg.solve_triangular(self._factors.double(), for_each, upper=False).float()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in (*STATE, "shape"):
            saved = state_dict.get(f"{prefix}_{name}")
            if saved is not None:  # buffers of another size, before the fit
                self._buffers[f"_{name}"] = torch.empty_like(saved, device=self._counts.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.fitted:
            self._invert()


def _rebatched(batches: Iterable[tuple[Tensor, Tensor]], rows: int = 2048) -> Iterator[tuple[Tensor, Tensor]]:
    """Merge batches to at least ``rows`` rows, except the last, since each batch costs a pass over K D^2 numbers."""
    waiting: list[tuple[Tensor, Tensor]] = []
    for x, y in batches:
        waiting.append((x.detach().cpu(), y.cpu()))
        if sum(len(x) for x, _ in waiting) >= rows:
            yield torch.cat([x for x, _ in waiting]), torch.cat([y for _, y in waiting])
            waiting = []
    if waiting:
        yield torch.cat([x for x, _ in waiting]), torch.cat([y for _, y in waiting])


def _by_class(z: Tensor, labels: Tensor, factors: Tensor) -> Tensor:
    """Multiply each row of ``z`` by the factor of its class. One product per class, since a factor per row is large."""
    order = labels.argsort(stable=True)
    counts = labels.bincount(minlength=len(factors)).tolist()
    parts = [rows @ factor.T for rows, factor in zip(z[order].split(counts), factors, strict=True)]
    moved = torch.empty_like(z)
    moved[order] = torch.cat(parts)
    return moved
