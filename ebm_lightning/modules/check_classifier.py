"""One look at what a classifier does, at the first batch: mistakes that would train without an error."""

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ebm_lightning.chains import Chains, DataInit
from ebm_lightning.contracts import changes_input
from ebm_lightning.coordinates import Coordinates, Identity
from ebm_lightning.energies import JointEnergy
from ebm_lightning.modules.random_state import isolate_rng
from ebm_lightning.resume.lightning_internals import attached_trainer
from ebm_lightning.samplers import eval_mode
from ebm_lightning.supports import Box

ROWS = 8  # of the batch that are looked at


class FirstLook:
    """Looks at a module's classifier once before training, and once more when chains begin to follow its gradients."""

    def __init__(self) -> None:
        self._seen: set[bool] = set()  # without chains, with chains

    def __call__(self, module: Any, x: Tensor) -> None:
        """Check the classifier of ``module`` on some rows of ``x``, if that is due.

        Raises:
            ValueError: As for :func:`check_classifier`.
        """
        trainer = attached_trainer(module)
        training = module.training if trainer is None else trainer.training
        in_chains = training and module.chains_follow_gradients()
        if in_chains in self._seen:
            return
        if in_chains:
            warn_of_empty_space(module.coordinates, module.running_chains().values(), x)
        check_classifier(module.chain_energy, module.coordinates(x), in_chains=in_chains)
        self._seen |= {in_chains, False}


def check_classifier(energy: JointEnergy, x: Tensor, *, in_chains: bool) -> None:
    """Check the classifier of ``energy`` on a few rows of ``x``, in eval mode. Weights and random states do not change.

    Arguments:
        energy: The energy of points in coordinates.
        x: Points in coordinates, shape (N, *shape).
        in_chains: Also check that gradients reach x, along which chains move.

    Raises:
        ValueError: The classifier changes its input, returns probabilities or their logarithm, or gradients do not
            reach x.
    """
    with isolate_rng(), eval_mode(energy), torch.inference_mode(False), torch.set_grad_enabled(in_chains):
        rows = x[:ROWS].detach().clone()
        before = rows.clone()
        logits = energy.logits(rows.requires_grad_(in_chains))
        if not torch.equal(rows.detach(), before):
            raise changes_input(energy.classifier)
        _check_range(logits.detach(), rows.detach(), energy)
        if in_chains:
            _check_gradient(logits, rows, energy.classifier)


def _check_range(logits: Tensor, x: Tensor, energy: JointEnergy) -> None:
    name = type(energy.classifier).__name__
    advice = f"Drop the last layer of {name}: the loss and the energy apply softmax by themselves"
    if logits.min() >= 0 and (logits.sum(1) - 1).abs().max() < 1e-3:
        raise ValueError(f"'classifier' should return logits, got probabilities whose rows sum to 1. {advice}.")
    # A reference density leaves something of p(x), as for ClassGaussians, which has no weights to train.
    flat = energy.support.constant or energy.support.log_mass == math.inf
    useless = flat or any(p.requires_grad for p in energy.classifier.parameters())
    if useless and logits.logsumexp(1).abs().max() < 1e-4 and not _logsumexp_is_trained(energy, x):
        raise ValueError(
            "'classifier' should return logits, got log-probabilities, with a logsumexp of 0 for every x: E(x) would "
            f"not depend on x. {advice}."
        )
    last = list(energy.classifier.modules())[-1]
    if isinstance(last, nn.Sigmoid) and logits.min() >= 0 and logits.max() <= 1:
        warnings.warn(
            f"'classifier' should return logits, got values between 0 and 1 from {name}, which ends in a Sigmoid: E(x) "
            "could only vary by 1. Drop it.",
            stacklevel=2,
        )


def _logsumexp_is_trained(energy: JointEnergy, x: Tensor) -> bool:
    """Whether the logsumexp depends on the weights, as for log-probabilities plus a network that begins at 0."""
    weights = [p for p in energy.classifier.parameters() if p.requires_grad]
    with torch.enable_grad():
        logits = energy.logits(x)
        if not weights or not logits.requires_grad:
            return False
        gradients = [
            torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
            for value in (logits.logsumexp(1).sum(), logits[:, 0].sum())
        ]
    of_logsumexp, of_logits = (max(float(g.abs().max()) for g in part if g is not None) for part in gradients)
    return of_logsumexp > 1e-3 * of_logits


def _check_gradient(logits: Tensor, x: Tensor, classifier: nn.Module) -> None:
    gradient = None
    if logits.requires_grad:
        (gradient,) = torch.autograd.grad(logits.sum(), x, allow_unused=True)
    if gradient is None:
        raise ValueError(
            f"'classifier' should be differentiable in x, as chains move along the gradient, and "
            f"{type(classifier).__name__} is not: its forward uses torch.no_grad, detach or round. To freeze a "
            "backbone call backbone.requires_grad_(False) instead."
        )


def warn_of_empty_space(coordinates: Coordinates, chains: Iterable[Chains], x: Tensor) -> None:
    """Warn if the data fill a small part of a box in which chains start anywhere."""
    anywhere = any(c.initial is None and not isinstance(c, DataInit) for c in chains)
    if anywhere and isinstance(coordinates, Identity) and isinstance(coordinates.domain, Box):
        unused = coordinates.domain.unused(x)
        if unused:
            warnings.warn(unused, stacklevel=2)
