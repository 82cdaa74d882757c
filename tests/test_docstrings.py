"""Public docstrings are complete: every parameter, what comes back, an example."""

from __future__ import annotations

import importlib
import inspect

import pytest
from numpydoc.docscrape import NumpyDocString
from numpydoc.validate import validate

import emdask
from emdask import classifiers, denoisers, pickers, reconstructors
from emdask.method import find_method, list_methods

VERBS = [f"{getattr(emdask, name).__module__}.{name}" for name in emdask.__all__]
FAMILIES = (classifiers.FAMILY, denoisers.FAMILY, pickers.FAMILY, reconstructors.FAMILY)
RECORDS = [
    f"{record.params.__module__}.{record.params.__name__}"
    for family in FAMILIES
    for record in (find_method(family, name) for name in list_methods(family))
]
MODULES = ["emdask.metrics", "emdask.method", "emdask.stack", "emdask.lazy", "emdask.backend"]
FUNCTIONS = [
    f"{module}.{name}"
    for module in MODULES
    for name, member in inspect.getmembers(importlib.import_module(module), inspect.isfunction)
    if member.__module__ == module and not name.startswith("_")
]
# No docstring; parameters unknown or out of order; summary absent, lower case or without stop.
ALWAYS = {"GL08", "PR02", "PR03", "SS01", "SS02", "SS03"}
COMPLETE = {"PR01", "RT01", "EX01"}


def faults(name: str, codes: set[str]) -> list[tuple[str, str]]:
    return [error for error in validate(name)["errors"] if error[0] in codes]


@pytest.mark.parametrize("name", VERBS)
def test_verbs_are_documented_in_full(name: str) -> None:
    assert faults(name, ALWAYS | COMPLETE) == []
    verb = getattr(emdask, name.rpartition(".")[2])
    assert NumpyDocString(inspect.getdoc(verb) or "")["Raises"]


@pytest.mark.parametrize("name", RECORDS)
def test_records_describe_every_parameter(name: str) -> None:
    assert faults(name, ALWAYS | {"PR01"}) == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_describe_what_they_document(name: str) -> None:
    assert faults(name, ALWAYS) == []


def test_faults_are_found() -> None:
    """The check itself can fail."""
    assert [code for code, _ in faults(f"{__name__}.faults", COMPLETE | ALWAYS)] == ["GL08"]
