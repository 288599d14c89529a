"""The partition function Z: exact where tractable, otherwise estimated with an error and diagnostics."""

from ebm_lightning.partition.ais import ais
from ebm_lightning.partition.bidirectional import bracket, reverse_ais
from ebm_lightning.partition.enumeration import enumerate_log_z, rbm_class_log_z, rbm_log_z, sweep_matrix
from ebm_lightning.partition.exact import exact_log_z, quadrature
from ebm_lightning.partition.laplace import laplace_log_z
from ebm_lightning.partition.log_z import LogZ
from ebm_lightning.partition.mixture import Mixture, data_base
from ebm_lightning.partition.proposals import Normal
from ebm_lightning.partition.rbm_ais import classification_rbm_ais, rbm_ais
from ebm_lightning.partition.student import StudentT

__all__ = [
    "LogZ",
    "Mixture",
    "Normal",
    "StudentT",
    "ais",
    "bracket",
    "classification_rbm_ais",
    "data_base",
    "enumerate_log_z",
    "exact_log_z",
    "laplace_log_z",
    "quadrature",
    "rbm_ais",
    "rbm_class_log_z",
    "rbm_log_z",
    "reverse_ais",
    "sweep_matrix",
]
