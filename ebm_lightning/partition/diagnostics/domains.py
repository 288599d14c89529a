"""Whether the support that log Z is asked on is that of the energy."""

import functools
from types import MethodType
from typing import Any

import torch
from torch import nn

from ebm_lightning.energies import Energy, JointEnergy
from ebm_lightning.supports import Box, Density, Euclidean, Gaussian, Support


def checked_support(energy: Energy, support: Support) -> Support:
    """``support``, if it agrees with that of the :class:`~ebm_lightning.JointEnergy` behind the energy.

    A JointEnergy contains the reference density of its support. On another support, log Z is that of another model.

    Arguments:
        energy: A JointEnergy, a method of a module that contains one, or a ``functools.partial`` of either. Other
            functions and modules pass, because they may combine a JointEnergy with a term that changes its domain.
        support: The domain to integrate over.

    Raises:
        ValueError: The supports differ in type, shape, walls or reference density.
    """
    for joint in _joint_energies(energy):
        if not agree(joint.support, support):
            raise ValueError(
                f"'support' should be that of the energy, {_describe(joint.support)}, got {_describe(support)}. Pass "
                "energy.support, or build the model on the other support: JointEnergy(classifier, support)."
            )
    return support


def _joint_energies(energy: Any) -> list[JointEnergy]:
    while isinstance(energy, functools.partial):
        energy = energy.func
    if isinstance(energy, JointEnergy):
        return [energy]
    if isinstance(energy, MethodType) and isinstance(energy.__self__, nn.Module):
        return [module for module in energy.__self__.modules() if isinstance(module, JointEnergy)]
    return []


def agree(one: Support, other: Support) -> bool:
    """Whether two supports have the same type, shape, walls and reference density. The shape None fits any shape."""
    if one is other:
        return True
    if type(one) is not type(other) or (one.shape != other.shape and None not in (one.shape, other.shape)):
        return False
    if isinstance(one, Box) and isinstance(other, Box) and (one.low, one.high) != (other.low, other.high):
        return False
    if isinstance(one, Gaussian) and isinstance(other, Gaussian):
        return _equal(one, other)
    return _same_reference(getattr(one, "reference", None), getattr(other, "reference", None))


def is_flat(support: Support) -> bool:
    """Whether the support is a box or R^D without a reference density, as closed forms of log Z assume."""
    return isinstance(support, Box | Euclidean) and support.reference is None


def _same_reference(one: Density | None, other: Density | None) -> bool:
    """Densities other than normals are the same only if they are one object."""
    if one is other or one is None or other is None:
        return one is other
    return all(hasattr(density, "mean") and hasattr(density, "std") for density in (one, other)) and _equal(one, other)


def _equal(one: Density, other: Density) -> bool:
    """Whether the means and the standard deviations of two densities are equal."""
    pairs = ((torch.as_tensor(getattr(one, k)), torch.as_tensor(getattr(other, k))) for k in ("mean", "std"))
    return all(torch.equal(*torch.broadcast_tensors(a.double().cpu(), b.double().cpu())) for a, b in pairs)


def _describe(support: Support) -> str:
    name = type(support).__name__
    if isinstance(support, Box):
        name = f"{name}({support.low:g}, {support.high:g})"
    if isinstance(support, Gaussian) and all(torch.as_tensor(v).numel() == 1 for v in (support.mean, support.std)):
        name = f"{name}({float(torch.as_tensor(support.mean)):g}, {float(torch.as_tensor(support.std)):g})"
    reference = getattr(support, "reference", None)
    suffix = "" if reference is None else f" and reference {type(reference).__name__}"
    return f"{name} of shape {support.shape}{suffix}"
