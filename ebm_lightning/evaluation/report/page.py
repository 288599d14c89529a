"""A report as one self-contained HTML page: pictures are data URIs, without scripts or external requests."""

import base64
import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

Better = Literal["higher", "lower", "neither"]


class Cell(NamedTuple):
    """The text of a value, and whether it is the best of those that it is compared with."""

    text: str
    best: bool = False


class Table(NamedTuple):
    """Rows of cells. The first column holds the names of the rows."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


class Picture(NamedTuple):
    """A PNG file and its caption."""

    path: Path
    caption: str


class Section(NamedTuple):
    """A heading, a paragraph on how to read the section, its tables, and its pictures in ``columns`` columns."""

    heading: str
    reading: str
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    columns: int = 2


def compare(values: Sequence[float | None], better: Better = "neither", digits: int = 4) -> list[Cell]:
    """A cell for each value; a dash for None.

    Of two or more values, the best is marked, and also every value that is displayed as the same number.
    """
    known = [v for v in values if v is not None and not math.isnan(v)]
    best = None if better == "neither" or len(known) < 2 else (max if better == "higher" else min)(known)
    shown = [None if v is None else _shown(v, digits) for v in values]
    return [Cell("-") if s is None else Cell(s, best is not None and s == _shown(best, digits)) for s in shown]


def page(title: str, facts: Sequence[str], sections: Sequence[Section]) -> str:
    """The page as HTML.

    Arguments:
        title: Title of the page.
        facts: Lines under the title: the models, the data and the settings.
        sections: Sections in order. One without tables and pictures is a note.
    """
    lines = "".join(f"<li>{html.escape(fact)}</li>" for fact in facts)
    links = " · ".join(f'<a href="#s{i}">{html.escape(s.heading)}</a>' for i, s in enumerate(sections))
    body = "".join(_section(i, section) for i, section in enumerate(sections))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><main><h1>{html.escape(title)}</h1><ul>{lines}</ul>"
        f"<nav>{links}</nav>{body}</main></body></html>\n"
    )


def _shown(value: float, digits: int) -> str:
    """``value`` with ``digits`` decimals, fewer for large numbers."""
    size = abs(value)
    if size >= 1e5 and math.isfinite(value):
        return f"{value:.3g}"
    if digits > 3 and 0 < size < 0.5 * 10**-digits:  # 0.0000 would claim that a standard error is 0
        return f"{value:.1e}"
    return f"{value:.{digits if size < 10 else min(digits, 2) if size < 1000 else 0}f}"


def _section(number: int, section: Section) -> str:
    tables = "".join(map(_table, section.tables))
    pictures = "".join(map(_picture, section.pictures))
    return (
        f'<section id="s{number}"><h2>{html.escape(section.heading)}</h2><p>{html.escape(section.reading)}</p>'
        f'<div class="tables">{tables}</div><div class="pictures c{section.columns}">{pictures}</div></section>'
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    rows = "".join(f"<tr><th>{html.escape(name)}</th>{''.join(map(_cell, cells))}</tr>" for name, cells in table.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(cell: Cell) -> str:
    return f"<td{' class=best' if cell.best else ''}>{html.escape(cell.text)}</td>"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    caption = html.escape(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


STYLE = """
body { margin: 0; background: #f6f7f9; color: #1d2530; font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 24px; }
h1 { font-size: 28px; margin: 12px 0; }
h2 { font-size: 20px; margin: 0 0 4px; }
ul { margin: 0 0 12px; padding-left: 20px; color: #4a5565; font-size: 14px; }
nav { margin-bottom: 20px; font-size: 14px; } a { color: #1f5fbf; text-decoration: none; }
section { background: #fff; border: 1px solid #e2e6ec; border-radius: 8px; padding: 18px 22px; margin-bottom: 18px; }
section p { margin: 0 0 14px; color: #4a5565; max-width: 80ch; }
.tables { display: flex; flex-wrap: wrap; gap: 18px 40px; align-items: flex-start; }
.pictures { display: grid; gap: 14px; margin-top: 14px; }
.c2 { grid-template-columns: repeat(2, minmax(0, 560px)); } .c4 { grid-template-columns: repeat(4, 1fr); }
@media (max-width: 800px) { .c4 { grid-template-columns: repeat(2, 1fr); } }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px; border-bottom: 1px solid #e9ecf1; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; font-weight: 500; } thead th { color: #66707f; font-weight: 600; }
td.best { font-weight: 700; color: #0b6b3a; }
figure { margin: 0; } img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: 13px; color: #66707f; }
"""
