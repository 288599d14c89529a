"""LightningModules: a classifier as a conditional energy model, and as a joint one."""

from ebm_lightning.modules.classification_rbm import ClassificationRBM
from ebm_lightning.modules.conditional import ConditionalEBM
from ebm_lightning.modules.feature_jem import FeatureJEM
from ebm_lightning.modules.jem import JEM
from ebm_lightning.modules.noise_contrastive import NoiseContrastiveJEM
from ebm_lightning.modules.sadajem import SADAJEM

__all__ = ["JEM", "SADAJEM", "ClassificationRBM", "ConditionalEBM", "FeatureJEM", "NoiseContrastiveJEM"]
