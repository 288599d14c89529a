"""The partition function Z: exact where it can be had, and estimated with an error that says how far to trust it."""

from ebm_lightning.partition.ais import ais, bracket, reverse_ais
from ebm_lightning.partition.exact import exact_log_z, quadrature
from ebm_lightning.partition.laplace import laplace_log_z
from ebm_lightning.partition.log_z import LogZ
from ebm_lightning.partition.physics import Ising, boltzmann, unit_mean
from ebm_lightning.partition.proposals import Normal, Proposal, Reference
from ebm_lightning.partition.rbm import classification_rbm_ais, rbm_ais
from ebm_lightning.partition.states import enumeration, rbm_class_log_z, rbm_log_z, sweep_matrix

__all__ = [
    "Ising",
    "LogZ",
    "Normal",
    "Proposal",
    "Reference",
    "ais",
    "boltzmann",
    "bracket",
    "classification_rbm_ais",
    "enumeration",
    "exact_log_z",
    "laplace_log_z",
    "quadrature",
    "rbm_ais",
    "rbm_class_log_z",
    "rbm_log_z",
    "reverse_ais",
    "sweep_matrix",
    "unit_mean",
]
