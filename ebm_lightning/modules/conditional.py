"""A classifier as a conditional energy model: trained by cross-entropy, with energies and scores."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from ebm_lightning.chains.sampling import sample_chains, with_steps
from ebm_lightning.checks import check_integer
from ebm_lightning.coordinates import Coordinates
from ebm_lightning.energies import JointEnergy
from ebm_lightning.modules.batches import Batch, as_pair, check_labels, generative_pair, has_two_parts
from ebm_lightning.modules.fit_coordinates import fit_coordinates
from ebm_lightning.modules.fit_densities import fit_densities
from ebm_lightning.resume.base import ResumableModule
from ebm_lightning.resume.hparams import rebuild
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import SGLD, Sampler
from ebm_lightning.samplers.base import Progress
from ebm_lightning.supports import Density, Euclidean, Support

Terms = dict[str, tuple[float, Tensor]]
"""Weight and value of each term of a loss, by its name."""
OptimizerCallable = Callable[[Iterable[Any]], torch.optim.Optimizer]
LRSchedulerCallable = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


class ConditionalEBM(ResumableModule):
    r"""Any classifier, trained by cross-entropy, that also gives E(x), E(x, y) and out-of-distribution scores.

    .. math:: -\log p(y|x) = E(x, y) - E(x) = -f(x)[y] + \log \sum_{y'} e^{f(x)[y']}

    Z and the reference density cancel, so training needs no sampling. Predictions are bit-equal to the classifier's.
    Batches are (x, y) with integer labels. A training batch may also be ``{"clf": (x, y), "gen": x}``, or with labels
    in the second part, which is for the generative terms of a :class:`JEM` and is ignored here. ``self.energy`` is the
    :class:`~ebm_lightning.energies.JointEnergy`.

    References:
        Grathwohl et al. 2020, sec. 3. https://arxiv.org/abs/1912.03263

    Arguments:
        classifier: Maps (N, *shape) to logits (N, K).
        num_classes: K, at least 2.
        support: Domain of x, against which batches are checked; all of R^D by default. With coordinates, the domain of
            u, by default their own.
        optimizer: Makes the optimizer from the parameters, such as ``functools.partial(torch.optim.Adam, lr=1e-3)``.
        lr_scheduler: Makes the learning-rate schedule from the optimizer. It is stepped after every optimizer step.
        coordinates: Invertible map u = T(x), such as ``Quantiles(Box(-1, 1, (1, 28, 28)), 256)``. The classifier sees u
            and chains move in u; batches, energies, scores and samples are of x. ``fit`` fits it to the training data
            if it is not fitted yet. One of a checkpoint is not fitted again.

    Raises:
        ValueError: ``num_classes`` is below 2. At the first batch: inputs outside the support, NaN, wrong shapes,
            labels outside the classes, or a classifier whose output is not (N, num_classes).
        RuntimeError: During training, if the loss is not finite.
    """

    halts_on_divergence = True  # a DivergenceGuard sets it to False and handles divergence itself

    def __init__(
        self,
        classifier: nn.Module,
        num_classes: int,
        support: Support | None = None,
        *,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        coordinates: Coordinates | None = None,
    ) -> None:
        super().__init__()
        check_integer("num_classes", num_classes, at_least=2)
        coordinates = rebuild(coordinates, Coordinates, "coordinates")
        support = rebuild(support, Support, "support") or (Euclidean() if coordinates is None else coordinates.codomain)
        self.energy = JointEnergy(rebuild(classifier, nn.Module, "classifier"), support, coordinates=coordinates)
        self.save_hyperparameters()
        self.num_classes = num_classes
        self.optimizer = rebuild(optimizer, torch.optim.Optimizer, "optimizer", partial=True)
        self.lr_scheduler = rebuild(lr_scheduler, torch.optim.lr_scheduler.LRScheduler, "lr_scheduler", partial=True)
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    @property
    def classifier(self) -> nn.Module:
        return self.energy.classifier

    @property
    def support(self) -> Support:
        """Domain of u, where chains move, with the reference density. Without coordinates that of x."""
        return self.energy.support

    @property
    def coordinates(self) -> Coordinates:
        """The map from x to u; the identity by default."""
        return self.energy.coordinates

    @property
    def domain(self) -> Support:
        """Domain of x."""
        return self.coordinates.domain

    @property
    def chain_energy(self) -> JointEnergy:
        """The energy of u, on ``support``, in which chains and annealing run. Without coordinates ``energy`` itself."""
        return self.energy.in_coordinates

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (N, K)."""
        return self._logits(self.coordinates(x))

    def _logits(self, u: Tensor) -> Tensor:
        """Logits of points in coordinates, shape (N, K)."""
        logits: Tensor = self.chain_energy.logits(u)
        if logits.shape[1] != self.num_classes:
            raise ValueError(
                f"'num_classes' should be the number of logits, got {self.num_classes} for a classifier with "
                f"{logits.shape[1]}. Change one of them."
            )
        return logits

    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        steps: int | None = None,
        sampler: Sampler | None = None,
        initial: Density | None = None,
        generator: torch.Generator | None = None,
        batch_size: int = 250,
        progress: Progress | None = None,
    ) -> Tensor:
        """Final states of ``n`` new chains, as x, shape (n, *shape), in eval mode and on the module's device.

        Arguments:
            n: Number of samples.
            y: Labels, shape (n,): chains then follow E(x, y) instead of E(x).
            steps: Steps of each chain; by default the sampler's own number.
            sampler: Moves the chains; by default the module's, and ``SGLD.jem()`` for one without.
            initial: Fitted distribution of the initial points; by default that of the module's chains, or the support's
                reference density. The support itself is also one. With coordinates it is a distribution of u.
            generator: Source of randomness, on the module's device; seeded with 0 by default.
            batch_size: Largest number of chains to run at once.
            progress: Wraps the loop over batches, such as ``tqdm.tqdm``.
        """
        u = sample_chains(
            self.chain_energy,
            self.support,
            with_steps(sampler or getattr(self, "sampler", None) or SGLD.jem(), steps),
            n,
            generator or make_generator(0, "sample", device=self.device),
            labels=None if y is None else y.to(self.device),
            initial=initial or getattr(getattr(self, "chains", None), "initial", None),
            compute=getattr(self, "compute", None),
            batch_size=batch_size,
            progress=progress,
        )
        with torch.no_grad():
            return self.coordinates.inv(u)

    # The loss: override these.

    def conditional_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """-log p(y|x), mean over the batch, in nats, from logits (N, K) and labels (N,)."""
        return F.cross_entropy(logits, y)

    def loss_terms(self, x: Tensor, y: Tensor) -> Terms:
        """The weight and value of each term of the loss. Term ``t`` is logged as ``train/loss_t``."""
        return {"clf": (1.0, self.conditional_loss(self(x), y))}

    def compute_loss(self, *batch: Tensor) -> tuple[Tensor, Terms]:
        """The weighted sum of the terms of the loss, and the terms.

        Raises:
            RuntimeError: The loss is not finite, and no DivergenceGuard handles it.
        """
        terms = self.loss_terms(*batch)
        loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
        if self.halts_on_divergence and not torch.isfinite(loss):
            raise RuntimeError(self._divergence_message({name: value for name, (_, value) in terms.items()}))
        return loss, terms

    # Lightning's hooks.

    def on_fit_start(self) -> None:
        fit_coordinates(self)
        if self.generator is None:
            fit_densities(self)
            self.start_chains()
        super().on_fit_start()

    def check_batch(self, x: Tensor, y: Tensor | None = None, *, unlabeled: bool = False) -> None:
        """Check that x is in its domain and that y holds classes, or also -1 if ``unlabeled``.

        Every step calls it: for each batch on the CPU, but only for the first on an accelerator, which would have to
        be synchronized.

        Raises:
            ValueError: They are not. The message says how to fix it.
        """
        self.domain.check(x)
        if y is not None:
            check_labels(y, len(x), self.num_classes, unlabeled=unlabeled)

    def checked_batch(self, batch: Any, batch_idx: int) -> Batch:
        """``batch`` as (x, y), checked by :meth:`check_batch`.

        Raises:
            ValueError: It is not a pair, or x or y is wrong.
        """
        return self._checked(as_pair(batch), batch_idx, unlabeled=False)

    def generative_batch(self, batch: Any, batch_idx: int) -> Batch:
        """A batch of the generative terms as (x, y): inputs without labels get labels of -1.

        Raises:
            ValueError: x or y is wrong.
        """
        return self._checked(generative_pair(batch), batch_idx, unlabeled=True)

    def _checked(self, pair: Batch, batch_idx: int, *, unlabeled: bool) -> Batch:
        if pair[0].device.type == "cpu" or batch_idx == 0:
            self.check_batch(*pair, unlabeled=unlabeled)
        return pair

    def training_batch(self, batch: Any, batch_idx: int) -> tuple[Tensor, ...]:
        """The arguments of :meth:`loss_terms` for a training batch."""
        return self.checked_batch(batch["clf"] if has_two_parts(batch) else batch, batch_idx)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, terms = self.compute_loss(*self.training_batch(batch, batch_idx))
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/loss_{name}": value for name, (_, value) in terms.items()})
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(self.checked_batch(batch, batch_idx), "val", self.val_accuracy)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(self.checked_batch(batch, batch_idx), "test", self.test_accuracy)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Logits (N, K) and energies E(x) (N,)."""
        x = batch if isinstance(batch, Tensor) else batch[0]
        if x.device.type == "cpu" or batch_idx == 0:
            self.check_batch(x)
        return self._outputs(x)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    def _evaluate(self, batch: Batch, stage: Literal["val", "test"], accuracy: MulticlassAccuracy) -> dict[str, Tensor]:
        x, y = batch
        outputs = self._outputs(x)
        accuracy(outputs["logits"], y)
        self.log(f"{stage}/accuracy", accuracy, prog_bar=True, batch_size=len(x), sync_dist=True)
        self.log(f"{stage}/nll", F.cross_entropy(outputs["logits"], y), batch_size=len(x), sync_dist=True)
        self.log(f"{stage}/energy", outputs["energy"].mean(), batch_size=len(x), sync_dist=True)
        return outputs

    def _outputs(self, x: Tensor) -> dict[str, Tensor]:
        logits = self(x)
        return {"logits": logits, "energy": self.energy.from_logits(logits, x)}

    def _divergence_message(self, values: dict[str, Tensor]) -> str:
        terms = ", ".join(f"{name} {value.item():.4g}" for name, value in values.items())
        return (
            f"The loss is not finite at step {self.global_step} ({terms}). No weight was updated with it. "
            "Lower the learning rate."
        )
