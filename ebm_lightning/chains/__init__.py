"""Where negatives start: a buffer of persistent chains, the data, or the support's reference density."""

from ebm_lightning.chains.base import Chains
from ebm_lightning.chains.fresh import DataInit, SupportInit
from ebm_lightning.chains.replay import ReplayBuffer

__all__ = ["Chains", "DataInit", "ReplayBuffer", "SupportInit"]
