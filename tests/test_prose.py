"""Prose reads like the field's: idioms that only this project would use stay rare.

An idiom is a phrase that a reader has to decode: rare in the documentation of comparable libraries, where they occur 0
to 5 times per 10 000 words of docstrings, comments and pages.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
IDIOMS = (
    r"anew|all the same|at hand|beside|alone|likewise|whatever|quiet|dealt|deal|sound|share|foreign",
    r"as (it|they) (was|were)|(goes|go|gone|going) on|(let|lets|letting) go|settle[ds]?|first places?",
    r"(takes?|took|gives?|gave|given)\s+(\w+\s+){0,3}back",
    r"(held|holds?)\b.{0,30}\b(against|beside)",
    r"of (its|their|your|our|his) own|(is|are|that) no (\w+)",
)


def prose(path: Path) -> str:
    """The docstrings and comments of a module, or the text of a page without its code blocks."""
    text = path.read_text()
    if path.suffix == ".md":
        return re.sub(r"```.*?```", "", text, flags=re.S)
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    docs = [ast.get_docstring(n) or "" for n in ast.walk(ast.parse(text)) if isinstance(n, documented)]
    return "\n".join([*docs, *re.findall(r"#\s(.*)", text)])


def test_idioms_are_rare():
    files = [*ROOT.glob("ebm_lightning/**/*.py"), *ROOT.glob("recipes/**/*.py"), *ROOT.glob("docs/**/*.md")]
    texts = {path: prose(path) for path in [*files, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]}
    words = sum(len(re.findall(r"[A-Za-z']+", text)) for text in texts.values())
    found = [
        f"{path.relative_to(ROOT)}: {' '.join(text[max(0, m.start() - 30) : m.end() + 30].split())}"
        for path, text in texts.items()
        for idiom in IDIOMS
        for m in re.finditer(rf"\b({idiom})\b", text, re.I | re.S)
    ]
    assert 1e4 * len(found) / words < 10, "\n".join(found)
