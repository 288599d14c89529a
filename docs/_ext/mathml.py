"""Formulas as MathML, which browsers draw themselves: pages work from disk, without a network or JavaScript.

docutils converts LaTeX. A formula that it cannot read is a warning.
"""

import html
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def visit_inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(_mathml(node, block=False))
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math-block">{_mathml(node, block=True)}</div>\n')
    raise nodes.SkipNode


def _mathml(node: nodes.Element, block: bool) -> str:
    text = node.astext().replace(r"\dots", r"\ldots")
    if block and (r"\\" in text or "&" in text) and r"\begin{" not in text:
        text = rf"\begin{{aligned}}{text}\end{{aligned}}"
    try:
        return tex2mathml(text, as_block=block)
    except MathError as error:
        logger.warning("cannot convert the formula %r: %s", text, error, location=node)
        return f"<code>{html.escape(text)}</code>"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", inline_renderers=(visit_inline, None), block_renderers=(visit_block, None))
    return {"parallel_read_safe": True}
