"""Markov kernels: energy + state + randomness."""

from ebm_lightning.samplers.base import Sampler, State, eval_mode, quiet, value_and_gradient
from ebm_lightning.samplers.sgld import SGLD

__all__ = ["SGLD", "Sampler", "State", "eval_mode", "quiet", "value_and_gradient"]
