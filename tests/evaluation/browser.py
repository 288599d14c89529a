"""The report in a headless browser: its layout at a given width, and screenshots."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MEASURE = """
onload = () => {
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const wide = [...page.querySelectorAll(".table")].filter(box => box.scrollWidth > box.clientWidth).length;
  document.title = JSON.stringify({width: root.clientWidth, content: root.scrollWidth, scrolling: wide,
    background: page.defaultView.getComputedStyle(page.body).backgroundColor});
};
"""


def browser() -> str:
    """The command of Chromium or Chrome; skips the test where there is none."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"None of {', '.join(BROWSERS)} is installed.")
    return found


def framed(page: Path, width: int, folder: Path) -> Path:
    """A page that shows ``page`` in a frame of that width: a browser's window has a minimum width, a frame has none."""
    wrapper = folder / f"frame-{width}.html"
    content = html.escape(page.read_text())
    style = f"border: 0; width: {width}px; height: 20000px"
    wrapper.write_text(f'<body style="margin: 0"><iframe style="{style}" srcdoc="{content}"></iframe>'
                       f"<script>{MEASURE}</script>")  # fmt: skip
    return wrapper


def run(folder: Path, page: Path, *options: str, dark: bool = False) -> str:
    """What the browser prints."""
    scheme = ("--blink-settings=preferredColorScheme=0",) if dark else ()
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [browser(), "--headless=new", "--no-sandbox", "--disable-gpu", profile, *scheme, *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def layout(page: Path, width: int, folder: Path, *, dark: bool = False) -> str:
    """A JSON text with the width of the page and of its content, the boxes that scroll, and the background."""
    printed = run(folder, framed(page, width, folder), "--dump-dom", dark=dark)
    return html.unescape(re.search("<title>(.*?)</title>", printed).group(1))
