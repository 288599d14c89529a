"""The measurements of an evaluation: which callbacks run, on how many images and with which settings."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.callbacks import Callback
from torch import nn

from ebm_lightning.callbacks import (
    AISLogZ,
    Calibration,
    EnergyExtremes,
    ErrorBars,
    FreshSamples,
    OODDetection,
    Refinement,
    Robustness,
    SampleQuality,
)
from ebm_lightning.callbacks.ood_detection import ImageSource
from ebm_lightning.checks import check_integer, check_number
from ebm_lightning.coordinates.compose import same_space
from ebm_lightning.evaluation.ood_sets import OODSet
from ebm_lightning.evaluation.optional import import_optional
from ebm_lightning.evaluation.scores import approximate_mass, log_density, max_probability, negative_entropy
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.samplers import SGLD, Sampler
from ebm_lightning.samplers.base import Progress
from ebm_lightning.supports import Box, Density, Support

SCORES = (log_density, max_probability, negative_entropy, approximate_mass)


@dataclass(frozen=True)
class Settings:
    """The numbers of an evaluation, see :func:`ebm_lightning.evaluate`.

    Raises:
        ValueError: A number is out of its range.
    """

    bins: int
    ood_images: int
    samples: int
    sampler_steps: int
    attacked_images: int
    attack_steps: int
    linf: Sequence[float]
    l2: Sequence[float]
    noise: Sequence[float]
    refine_steps: Sequence[int]
    ais_temperatures: int | None
    ais_num_chains: int
    seed: int
    progress_bar: bool

    def __post_init__(self) -> None:
        for name in ("bins", "ood_images", "sampler_steps", "attacked_images", "attack_steps", "ais_num_chains"):
            check_integer(name, getattr(self, name), at_least=1)
        check_integer("samples", self.samples, at_least=20, remedy="Fewer have no useful covariance.")
        check_integer("ais_temperatures", self.ais_temperatures, at_least=0, optional=True)
        check_integer("seed", self.seed)
        for name in ("linf", "l2", "noise"):
            for size in getattr(self, name):
                check_number(name, size, above=0)
        for k in self.refine_steps:
            check_integer("refine_steps", k, at_least=0)

    def progress(self, name: str) -> Progress | None:
        """A progress bar with that name; None if there should be none."""
        if not self.progress_bar:
            return None
        tqdm = import_optional("tqdm", "progress bars", "pass 'progress_bar=False'").tqdm
        return functools.partial(tqdm, desc=name, leave=False)


class FeatureNetwork(NamedTuple):
    """The network in whose features samples are compared with test images.

    Arguments:
        features: Maps images to features (N, D).
        classifier: Maps images to logits for the Inception score; None to leave it out.
        label: Name of the network in the metrics.
    """

    features: nn.Module
    classifier: nn.Module | None
    label: str


@dataclass(frozen=True)
class Measurements:
    """What is measured on a model. All models of one evaluation get the same measurements.

    Arguments:
        settings: Numbers of images, steps and chains.
        support: Domain of the chains, with the reference density.
        domain: Domain of x.
        sampler: Moves fresh chains and refines images.
        initial: Fitted distribution of the initial points of fresh chains; None for the support's reference density.
        ood_sets: Out-of-distribution sets, as for :class:`~ebm_lightning.OODDetection`.
        missing: Names of the out-of-distribution sets whose images were not found.
        network: Features for FID, KID and Inception score.
        num_levels: Integer levels of the data before dequantization; None to leave out bits per dimension.
    """

    settings: Settings
    support: Support
    domain: Support
    sampler: Sampler
    initial: Density | None
    ood_sets: Mapping[str, OODSet | ImageSource]
    missing: Sequence[str]
    network: FeatureNetwork
    num_levels: int | None

    def callbacks(self, folder: Path, model: ConditionalEBM) -> list[Callback]:
        """Callbacks that measure ``model``. Their pictures go to ``folder``."""
        return self._for_chains_of(model)._callbacks(folder)

    def _for_chains_of(self, model: ConditionalEBM) -> "Measurements":
        """These measurements; with the model's own sampler if its coordinates or reference are of another kind."""
        references = {type(getattr(support, "reference", None)) for support in (model.support, self.support)}
        if same_space(model.support, self.support) and len(references) == 1:
            return self
        sampler = getattr(model, "sampler", None) or SGLD.jem()
        return replace(self, support=model.support, sampler=sampler, initial=None)

    def _callbacks(self, folder: Path) -> list[Callback]:
        s = self.settings
        callbacks: list[Callback] = [
            Calibration(s.bins, folder),
            ErrorBars(s.bins),
            EnergyExtremes(directory=folder),
            OODDetection(self.ood_sets, SCORES, directory=folder, seed=s.seed, limit=s.ood_images),
            self._robustness(folder),
        ]
        if self.initial is not None or self.support.log_mass < math.inf:
            callbacks.append(self._sample_quality())
            callbacks.append(self._fresh_samples(folder))
        if s.refine_steps:
            progress = s.progress("refinement")
            callbacks.append(Refinement(s.refine_steps, self.sampler, s.attacked_images, s.seed, progress))
        if s.ais_temperatures != 0 and self.support.log_mass < math.inf:
            callbacks.append(self._ais(folder))
        return callbacks

    def _robustness(self, folder: Path) -> Robustness:
        s = self.settings
        limits = (s.attack_steps, s.attacked_images)
        progress = s.progress("attacks")
        return Robustness(s.linf, s.l2, s.noise, *limits, directory=folder, seed=s.seed, progress=progress)

    def _sample_quality(self) -> SampleQuality:
        s = self.settings
        return SampleQuality(
            *self.network,
            self.sampler,
            s.sampler_steps,
            s.samples,
            initial=self.initial,
            seed=s.seed,
            progress=s.progress("samples"),
        )

    def _fresh_samples(self, folder: Path) -> FreshSamples:
        s = self.settings
        return FreshSamples(
            sampler=self.sampler,
            steps=s.sampler_steps,
            initial=self.initial,
            directory=folder,
            seed=s.seed,
            progress=s.progress("pictures"),
        )

    def _ais(self, folder: Path) -> AISLogZ:
        s = self.settings
        return AISLogZ(
            0,
            s.ais_temperatures,
            s.ais_num_chains,
            num_levels=self.num_levels if isinstance(self.domain, Box) else None,
            directory=folder,
            seed=s.seed,
            progress=s.progress("annealing"),
        )


def holds_images(support: Support) -> bool:
    """Whether the points of ``support`` are images: a Box of shape (1 or 3, H, W)."""
    return isinstance(support, Box) and len(support.shape) == 3 and support.shape[0] in (1, 3)
