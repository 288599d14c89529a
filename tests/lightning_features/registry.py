"""The list of features, and its table."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Use = Callable[[Path], None]


@dataclass(frozen=True)
class Feature:
    """One feature: the function that uses it in a folder, and what the docs say.

    Attributes:
        group: Heading of the table.
        name: What a user writes.
        use: Runs it. It raises what ``refused`` says, and nothing otherwise.
        note: What is particular to these models; empty if nothing is.
        refused: Part of the message of the error with which it is refused.
    """

    group: str
    name: str
    use: Use
    note: str = ""
    refused: str = ""

    @property
    def row(self) -> str:
        outcome = f'refused: "{self.refused}"' if self.refused else "works"
        return f"| {self.name} | {outcome} | {self.note} |"


FEATURES: list[Feature] = []


def feature(group: str, name: str, note: str = "", refused: str = "") -> Callable[[Use], Use]:
    """Add the decorated function to the list."""

    def add(use: Use) -> Use:
        FEATURES.append(Feature(group, name, use, note, refused))
        return use

    return add


def table() -> str:
    """The features as Markdown, one table for each group."""
    groups = list(dict.fromkeys(f.group for f in FEATURES))
    parts = []
    for group in groups:
        rows = [f.row for f in FEATURES if f.group == group]
        parts.append("\n".join([f"## {group}", "", "| feature | outcome | notes |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"
