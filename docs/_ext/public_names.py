"""Every public name is in the reference and has a docstring: otherwise the build warns, and with ``-W`` fails.

A public name is one in ``__all__`` of the package or of one of its subpackages. References to a name by a path that
does not have its description (``ebm_lightning.JEM`` for ``ebm_lightning.modules.JEM``) are resolved too.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

import ebm_lightning

logger = logging.getLogger(__name__)


def public_names() -> Iterator[tuple[str, str]]:
    """Package and name of everything in an ``__all__``."""
    subpackages = [m.name for m in pkgutil.iter_modules(ebm_lightning.__path__, "ebm_lightning.") if m.ispkg]
    for package in ("ebm_lightning", *subpackages):
        for name in getattr(importlib.import_module(package), "__all__", ()):
            yield package, name


def undocumented(described: set[str]) -> Iterator[str]:
    """What is wrong with each public name, given the names that the reference describes."""
    for package, name in public_names():
        value = getattr(importlib.import_module(package), name)
        if name not in {path.rsplit(".", 1)[-1] for path in described}:
            yield f"{package}.{name} is public and not in the reference. Add its module to a page of docs/reference."
        elif (isinstance(value, type) or inspect.isroutine(value)) and not (value.__doc__ or "").strip():
            yield f"{package}.{name} is public and has no docstring."


def check(app: Sphinx, env: Any) -> None:
    for problem in undocumented(set(env.get_domain("py").objects)):
        logger.warning(problem)


def resolve(app: Sphinx, env: Any, node: Any, contnode: nodes.Element) -> nodes.Element | None:
    """A link to the description of a name that is referred to by another path."""
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"].rsplit(".", 1)[-1]
    objects = env.get_domain("py").objects
    paths = [path for path in objects if path.rsplit(".", 1)[-1] == name and path.count(".") == 2]
    if not node["reftarget"].startswith("ebm_lightning.") or len(paths) != 1:
        return None
    found = objects[paths[0]]
    return make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, contnode, paths[0])


def skip_tuple_fields(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """The fields of a NamedTuple are described by its docstring."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("env-check-consistency", check)
    app.connect("missing-reference", resolve)
    app.connect("autodoc-skip-member", skip_tuple_fields)
    return {"parallel_read_safe": True}
