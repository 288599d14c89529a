"""LightningModules: a classifier as a conditional energy model, and as a joint one."""

from ebm_lightning.modules.conditional import ConditionalEBM
from ebm_lightning.modules.jem import JEM
from ebm_lightning.modules.rbm import ClassificationRBM

__all__ = ["JEM", "ClassificationRBM", "ConditionalEBM"]
