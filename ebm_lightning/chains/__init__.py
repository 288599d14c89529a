"""Chains that draw negatives: where they start, and how they are kept between batches."""

from ebm_lightning.chains.base import Chains
from ebm_lightning.chains.fresh import DataInit, SupportInit
from ebm_lightning.chains.replay import ReplayBuffer
from ebm_lightning.chains.reweighted import ReweightedBuffer

__all__ = ["Chains", "DataInit", "ReplayBuffer", "ReweightedBuffer", "SupportInit"]
