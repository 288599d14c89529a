"""A report as one self-contained HTML page: pictures are data URIs, without scripts or external requests."""

import base64
import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ebm_lightning.evaluation.report.style import STYLE
from ebm_lightning.evaluation.report.verdict import Verdict

CLASSES = {"better": "better", "worse": "worse", "mixed": "doubt", "not to be trusted": "doubt"}


class Cell(NamedTuple):
    """The text of a value, and whether it is the best of those that it is compared with."""

    text: str
    best: bool = False


class Table(NamedTuple):
    """Rows of cells. The first column holds the names of the rows; ``caption`` says what the values are."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


class Picture(NamedTuple):
    """A PNG file, its caption, and what is seen, for readers who do not see it."""

    path: Path
    caption: str
    alt: str


class Section(NamedTuple):
    """A heading, a paragraph on how to read the section, its tables, and its pictures in ``columns`` columns."""

    heading: str
    reading: str
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    columns: int = 2


def page(title: str, facts: Sequence[str], sections: Sequence[Section], verdicts: Sequence[Verdict] = ()) -> str:
    """The page as HTML.

    Arguments:
        title: Title of the page.
        facts: Lines on the models, the data and the settings.
        sections: Sections in order. One without tables and pictures is a note.
        verdicts: What was found, on top of the page.
    """
    lines = "".join(f"<li>{html.escape(fact)}</li>" for fact in facts)
    links = " · ".join(f'<a href="#s{i}">{html.escape(s.heading)}</a>' for i, s in enumerate(sections))
    body = "".join(_section(i, section) for i, section in enumerate(sections))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><main><h1>{html.escape(title)}</h1>{_verdicts(verdicts)}"
        f'<ul class="facts">{lines}</ul><nav aria-label="Sections">{links}</nav>{body}</main></body></html>\n'
    )


def shown(value: float, digits: int = 4) -> str:
    """``value`` with ``digits`` decimals, fewer for large numbers."""
    size = abs(value)
    if size >= 1e5 and math.isfinite(value):
        return f"{value:.3g}"
    if digits > 3 and 0 < size < 0.5 * 10**-digits:  # 0.0000 would claim that a standard error is 0
        return f"{value:.1e}"
    return f"{value:.{digits if size < 10 else min(digits, 2) if size < 1000 else 0}f}"


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return ""
    items = "".join(
        f'<li><strong>{html.escape(v.topic)}</strong><span class="word {CLASSES.get(v.word, "")}">'
        f"{html.escape(v.word)}</span> {html.escape(v.text)}</li>"
        for v in verdicts
    )
    return (
        f'<section id="verdict"><h2>Verdict</h2><p>{html.escape(READING)}</p>'
        f'<ul class="verdicts">{items}</ul></section>'
    )


READING = (
    "Errors are 95 % intervals from the number of images, samples and chains; they do not contain what another seed of "
    "training would change. Better and worse speak of the first model, and mean by more than the error of the "
    "difference on the same images."
)


def _section(number: int, section: Section) -> str:
    tables = "".join(map(_table, section.tables))
    pictures = "".join(map(_picture, section.pictures))
    return (
        f'<section id="s{number}"><h2>{html.escape(section.heading)}</h2><p>{html.escape(section.reading)}</p>'
        f'<div class="tables">{tables}</div><div class="pictures c{section.columns}">{pictures}</div></section>'
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in table.columns)
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>{"".join(map(_cell, cells))}</tr>' for name, cells in table.rows
    )
    name = html.escape(table.caption)
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{name}"><table><caption>{name}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cell(cell: Cell) -> str:
    best = ' class="best"' if cell.best else ""
    note = ' <span aria-label="best">★</span>' if cell.best else ""
    return f"<td{best}>{html.escape(cell.text)}{note}</td>"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    return (
        f'<figure><img alt="{html.escape(picture.alt)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
    )
