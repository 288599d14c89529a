"""Lazy imports: a package can export many names and import the module of each only when it is first used."""

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_exports(
    package: str, exports: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The ``__getattr__`` and ``__dir__`` (PEP 562) and the ``__all__`` of a package with lazy imports.

    Submodules resolve too: ``package.module`` works without ``import package.module``.

    Arguments:
        package: The package's ``__name__``.
        exports: Maps each submodule to the names that the package exports from it.
    """
    owner = {name: module for module, names in exports.items() for name in names}

    def get(name: str) -> Any:
        module = f"{package}.{owner.get(name, name)}"
        if name not in owner and (name.startswith("_") or importlib.util.find_spec(module) is None):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        loaded = importlib.import_module(module)
        value = getattr(loaded, name) if name in owner else loaded
        setattr(sys.modules[package], name, value)  # Python then finds it without calling this function
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *owner})

    return get, names, sorted(owner)
