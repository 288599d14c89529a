"""Lazy imports: a package can export many names and import the module of each only when it is first used."""

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

EXTRAS = {
    **dict.fromkeys(("matplotlib", "torchvision"), "images"),
    **dict.fromkeys(("jsonargparse", "sklearn", "tqdm"), "recipes"),
}
"""The extra of this package that installs each optional package."""


def lazy_exports(
    package: str, exports: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The ``__getattr__`` and ``__dir__`` (PEP 562) and the ``__all__`` of a package with lazy imports.

    Submodules resolve too: ``package.module`` works without ``import package.module``. If an optional package is
    missing, the error of a name that needs it says how to install it.

    Arguments:
        package: The package's ``__name__``.
        exports: Maps each submodule to the names that the package exports from it.
    """
    owner = {name: module for module, names in exports.items() for name in names}

    def get(name: str) -> Any:
        module = f"{package}.{owner.get(name, name)}"
        if name not in owner and (name.startswith("_") or importlib.util.find_spec(module) is None):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with optional_packages(f"{package}.{name}"):
            loaded = importlib.import_module(module)
            value = getattr(loaded, name) if name in owner else loaded
        setattr(sys.modules[package], name, value)  # Python then finds it without calling this function
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *owner})

    return get, names, sorted(owner)


@contextmanager
def optional_packages(user: str) -> Iterator[None]:
    """Make the error of a missing optional package say that ``user`` needs it, and how to install it.

    Raises:
        ModuleNotFoundError: An import within the context failed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in EXTRAS or "pip install" in str(error):
            raise
        remedy = f'pip install "ebm_lightning[{EXTRAS[missing]}]"'
        raise ModuleNotFoundError(f"{user} needs {missing}: {remedy}", name=missing) from error
