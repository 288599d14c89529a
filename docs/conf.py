"""Sphinx configuration: ``pip install -e ".[docs]" && sphinx-build -W docs docs/_build/html``."""

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
metadata = importlib.metadata.metadata("ebm_lightning")
urls = dict(line.split(", ") for line in metadata.get_all("Project-URL", []))
if "Repository" not in urls:
    raise RuntimeError("The installed ebm_lightning is older than this page. Run: pip install -e '.[docs]'")

project = "ebm_lightning"
author = metadata["Author"]
copyright = author
release = version = metadata["Version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "mathml",
    "plain_docstrings",
    "public_names",
]
exclude_patterns = ["_build", "gallery", "**/README.md"]

html_theme = "furo"
html_title = f"ebm_lightning {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_theme_options = {
    "source_repository": urls["Repository"],
    "source_branch": "main",
    "source_directory": "docs/",
    "navigation_with_keys": True,
}
pygments_style = "friendly"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False  # Lightning documents its hooks
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r"\.py$",
    "image_scrapers": ("matplotlib",),
    "matplotlib_animations": False,
    "min_reported_time": 0,
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "reset_modules": ("matplotlib", "gallery.reset"),
    "within_subsection_order": "gallery.Order",
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
