"""Docstrings are written to be read in a terminal: ``(N, *shape)`` and ``|x|`` are text and not markup."""

import re
from typing import Any

from sphinx.application import Sphinx

MARKUP = re.compile(r"``.*?``|`[^`]*`|(?<!\\)\|(?=\S)|\*(?=shape\b)")


def escape(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape the characters that reStructuredText would read as markup, outside formulas and code."""
    math = -1  # indentation of the formula that a line is in
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent <= math:
            math = -1
        if line.lstrip().startswith(".. math::"):
            math = indent
        elif math < 0:
            lines[i] = MARKUP.sub(lambda found: found[0] if found[0][0] == "`" else f"\\{found[0]}", line)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", escape, priority=900)
    return {"parallel_read_safe": True}
