"""Markov kernels: energy + state + randomness."""

from ebm_lightning.samplers.adaptation import Adaptation
from ebm_lightning.samplers.base import Sampler, State
from ebm_lightning.samplers.compute import Compute
from ebm_lightning.samplers.freeze import eval_mode, frozen
from ebm_lightning.samplers.gibbs import BlockGibbs
from ebm_lightning.samplers.gradient import value_and_gradient
from ebm_lightning.samplers.hmc import GHMC, HMC, MALA
from ebm_lightning.samplers.noise_refresh import NoiseRefresh
from ebm_lightning.samplers.pyld import PYLD
from ebm_lightning.samplers.reference_jumps import ReferenceJumps
from ebm_lightning.samplers.sgld import SGLD

__all__ = [
    "GHMC",
    "HMC",
    "MALA",
    "PYLD",
    "SGLD",
    "Adaptation",
    "BlockGibbs",
    "Compute",
    "NoiseRefresh",
    "ReferenceJumps",
    "Sampler",
    "State",
    "eval_mode",
    "frozen",
    "value_and_gradient",
]
