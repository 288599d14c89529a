"""Other scores of a model of features than the one that it uses, for comparisons. Larger for in-distribution data.

Each maps a :class:`~ebm_lightning.FeatureJEM` and features (N, D) to scores (N,), in nats, and can be passed as
``OfModel(model, function)`` to :func:`~ebm_lightning.evaluate_ood`.
"""

import torch
from torch import Tensor

from ebm_lightning.modules import FeatureJEM
from ebm_lightning.rng import make_generator


def feature_density(model: FeatureJEM, z: Tensor) -> Tensor:
    """log p(z) + log Z: with the Jacobian of the coordinates, so that short vectors are likely."""
    return -model.energy(z)


def ratio_to_reference(model: FeatureJEM, z: Tensor) -> Tensor:
    """log p(z) - log q(z) + log Z, the logsumexp of the head: a likelihood ratio with the reference as background.

    References:
        Ren et al., Likelihood ratios for out-of-distribution detection, 2019. https://arxiv.org/abs/1906.02845
    """
    return model.checked_logits(z).logsumexp(1)


def predicted_class_density(model: FeatureJEM, z: Tensor) -> Tensor:
    """log p(Tz, y) of the class that makes it largest, up to a constant."""
    u = model.coordinates(z)
    return model.chain_energy.logits(u).amax(1) + model.support.log_q(u)


def typicality(model: FeatureJEM, z: Tensor, mean: float) -> Tensor:
    """-|log p(Tz) - mean|, where ``mean`` is that of usual data: also features that are too likely are unusual.

    References:
        Nalisnick et al., Detecting out-of-distribution inputs to deep generative models using typicality, 2019, for
        single inputs. https://arxiv.org/abs/1906.02994
    """
    return -(model.feature_score(z) - mean).abs()


def reference_density(model: FeatureJEM, z: Tensor) -> Tensor:
    """log q(Tz): the Gaussians that the model starts from."""
    return model.support.log_q(model.coordinates(z))


FEATURE_SCORES = {
    "log p(Tz)": FeatureJEM.feature_score,
    "log p(z)": feature_density,
    "ratio to the Gaussians": ratio_to_reference,
    "log p(Tz, y) of the predicted y": predicted_class_density,
    "the Gaussians alone": reference_density,
}
"""All of them by name; the first is the one that ``model.score`` uses."""


def made_features(z: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Unusual features made from usual ones (N, D), to compare scores without out-of-distribution data.

    ``shuffled``: each component from another row. ``shuffled and halved``: these at half the length. ``means of two``
    rows. ``Gaussian``: draws of one Gaussian with the mean and covariance of ``z``.
    """
    generator = make_generator(seed, "made features")
    z = z.cpu()
    mixed = z.gather(0, torch.rand(z.shape, generator=generator).argsort(0))
    values, vectors = torch.linalg.eigh(z.T.double().cov())
    noise = torch.randn(z.shape, generator=generator, dtype=torch.float64)
    gaussian = z.double().mean(0) + noise @ (vectors * values.clamp(min=0).sqrt()).T
    return {
        "shuffled": mixed,
        "shuffled and halved": mixed / 2,
        "means of two": (z + z[torch.randperm(len(z), generator=generator)]) / 2,
        "Gaussian": gaussian.float(),
    }
