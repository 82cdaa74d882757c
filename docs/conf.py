"""Sphinx settings; ``make docs`` builds."""

from __future__ import annotations

from pathlib import Path

import emdask
from emdask.variables import table

project = "emdask"
author = "the emdask developers"
copyright = f"2026, {author}"
release = emdask.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_parser",
]
myst_enable_extensions = ["colon_fence"]
exclude_patterns = ["_build"]
autodoc_typehints = "none"
numpydoc_show_class_members = False
html_theme = "alabaster"
html_theme_options = {"description": "array engine for cryo-EM images"}

# The table of variables is written by the table itself.
Path(__file__).with_name("variables.rst").write_text(
    "What a stack knows\n==================\n\n"
    "One value for each image is a coordinate along ``image``; one that holds for all is in\n"
    f"``attrs``.\n\n{table()}\n",
    encoding="utf-8",
)
