"""Importing costs nothing and does nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import emdask


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_loads_no_heavy_library() -> None:
    heavy = [
        "numpy",
        "dask",
        "xarray",
        "zarr",
        "numba",
        "matplotlib",
        "distributed",
        "torch",
        "cupy",
        "pandas",
    ]
    assert run(f"import sys, emdask; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_verbs_load_neither_kernels_nor_plots() -> None:
    heavy = ["numba", "matplotlib", "distributed", "torch", "cupy"]
    code = f"import sys, emdask; emdask.denoise; print([m for m in {heavy} if m in sys.modules])"
    assert run(code) == "[]"


def test_every_verb_is_there() -> None:
    for verb in emdask.__all__:
        assert callable(getattr(emdask, verb))
    assert set(emdask.__all__) <= set(dir(emdask))
    with pytest.raises(AttributeError, match="no attribute 'denoize'"):
        emdask.denoize  # noqa: B018
