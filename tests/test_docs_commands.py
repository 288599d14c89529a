"""Every command of the README and of the docs is parsed: its script exists, and takes the options that it has.

Nothing is run: ``--print_config`` is added, or ``--help`` where a page only names the command.
"""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from ebm_lightning.__main__ import COMMANDS, main

ROOT = Path(__file__).parent.parent
GENERATED = {"_build", "auto_gallery"}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
INLINE = re.compile(r"`([^`]*(?:python recipes/|ebm-lightning )[^`]+)`")
LINE = re.compile(r"^ *((?:python recipes/|ebm-lightning )[^`\n]*)$", re.M)
PLACEHOLDERS = {"NAME": "jem_mnist", "COMMAND": "fit", "$s": "0", "...": ""}


def commands(text: str) -> set[str]:
    """The commands in a page, each on one line and with values in place of what stands for them."""
    text = text.replace("\\\n", " ")
    found = {part for match in INLINE.findall(text) for part in re.split(r";|&&", match)} | set(LINE.findall(text))
    starts = ("python recipes/", "ebm-lightning ")
    cleaned = (" ".join(command.split("#")[0].removeprefix(" do").split()).removeprefix("do ") for command in found)
    return {command for command in cleaned if command.startswith(starts)}


ALL = sorted({c for page in PAGES if not GENERATED & set(page.parts) for c in commands(page.read_text())})


def words(command: str) -> list[str]:
    """The words of a command. Of alternatives in braces the first is taken."""
    command = re.sub(r"\{(\w+),[^}]*\}", r"\1", command)
    return [PLACEHOLDERS.get(word, word) for word in shlex.split(command) if PLACEHOLDERS.get(word, word)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", ALL)
def test_a_command_is_parsed(command, monkeypatch, capsys):
    program, *rest = words(command)
    monkeypatch.chdir(ROOT)
    if program == "ebm-lightning":
        name, *options = rest
        assert name in COMMANDS
        if name in ("models", "presets"):
            return
        call = lambda arguments: main([name, *arguments])  # noqa: E731
        monkeypatch.setattr(sys, "argv", ["ebm-lightning"])
    else:
        script, *options = rest
        monkeypatch.setattr(sys, "argv", [script])
        call = lambda arguments: (sys.argv.extend(arguments), runpy.run_path(script, run_name="__main__"))  # noqa: E731
    with pytest.raises(SystemExit) as stopped:
        call([*options, "--print_config"] if options else ["--help"])
    assert not stopped.value.code, capsys.readouterr().err


def test_commands_are_found_on_pages():
    """Kills: a search that misses lines, tables, loops or continued lines."""
    page = "| `python recipes/a.py` |\n\n    ebm-lightning fit --config x \\\n      --y 1  # note\n"
    page += "`for s in 0 1; do python recipes/b.py --seed $s; done` and `ebm-lightning log-z\n--c d`"
    assert commands(page) == {
        "python recipes/a.py",
        "ebm-lightning fit --config x --y 1",
        "python recipes/b.py --seed $s",
        "ebm-lightning log-z --c d",
    }
    assert len(ALL) > 30
