"""Imports of optional packages."""

import importlib
from types import ModuleType


def import_optional(package: str, purpose: str, alternative: str) -> ModuleType:
    """The module ``package``.

    Raises:
        ModuleNotFoundError: It is not installed. The message says how to install it, or what to do without it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        message = f"'{package}' is needed for {purpose}. Run 'pip install {package}', or {alternative}."
        raise ModuleNotFoundError(message) from error
