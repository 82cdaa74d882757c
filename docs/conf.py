"""Sphinx settings; ``make docs`` builds."""

from __future__ import annotations

from pathlib import Path

import emdask
from emdask import classifiers, denoisers, pickers, reconstructors
from emdask.method import about, find_method, list_methods
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


def describe_method(family: str, name: str) -> str:
    """Section of one method, from its record."""
    record = find_method(family, name)
    params = record.params
    learns = " Learns from the stack." if getattr(record, "learn", None) else ""
    functions = (getattr(record, verb, None) for verb in ("apply", "insert", "score"))
    devices = ", ".join(next(by_device for by_device in functions if by_device))
    return (
        f"{name}\n{'-' * len(name)}\n\n"
        f"{about(record)} Runs on {devices}.{learns}\n\n"
        f".. autoclass:: {params.__module__}.{params.__qualname__}\n"
    )


def describe_methods(title: str, verb: str, family: str) -> str:
    """Page of the methods of a family."""
    return (
        f"{title}\n{'=' * len(title)}\n\n"
        f"``emdask.{verb}(stack, NAME, parameter=...)``, or\n"
        f"``emdask {verb} IN OUT --method NAME``.\n\n"
        + "\n".join(describe_method(family, name) for name in list_methods(family))
    )


# The page of methods is written by their records.
Path(__file__).with_name("methods.rst").write_text(
    describe_methods("Denoising methods", "denoise", denoisers.FAMILY)
    + "\n"
    + describe_methods("Picking methods", "pick", pickers.FAMILY)
    + "\n"
    + describe_methods("Classification methods", "classify", classifiers.FAMILY)
    + "\n"
    + describe_methods("Reconstruction methods", "reconstruct", reconstructors.FAMILY),
    encoding="utf-8",
)
