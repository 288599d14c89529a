"""The partition function Z, where it can be had."""

from ebm_lightning.partition.exact import quadrature

__all__ = ["quadrature"]
