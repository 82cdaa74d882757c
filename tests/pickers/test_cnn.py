"""Weights of the network: which are taken, and that other weights are another graph."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask.base import tokenize

import emdask
from emdask.errors import MissingLibraryError, ParameterError
from emdask.io.weights import Weights, open_weights
from emdask.pickers import build_search
from emdask.pickers.cnn import CNN, SHIPPED, SHIPPED_NAMES, THRESHOLD, load

IMAGES = np.zeros((1, 128, 128), np.float32)


def test_what_ships_is_small_and_tells_where_it_is_from() -> None:
    paths = [SHIPPED / f"{name}.safetensors" for name in SHIPPED_NAMES]
    assert sorted(SHIPPED.glob("*")) == sorted(paths)
    assert sum(path.stat().st_size for path in paths) < 5e6
    for path in paths:
        about = open_weights(path).about
        assert about["licence"] == "BSD-3-Clause"
        assert "data" in about
        assert "seed" in about


def test_other_weights_are_another_graph(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    names = []
    for shipped in SHIPPED_NAMES:
        shutil.copyfile(SHIPPED / f"{shipped}.safetensors", path)
        names.append(tokenize(emdask.pick(IMAGES, "cnn", diameter_px=30, model=str(path))))
    assert names[0] != names[1]


def test_weights_of_another_network_are_refused() -> None:
    good = load(CNN(), None)
    first = next(iter(good.arrays))
    others = {
        "lacks a layer": {name: a for name, a in good.arrays.items() if name != first},
        "another shape": dict(good.arrays) | {first: np.zeros(3, np.float32)},
    }
    for arrays in others.values():
        with pytest.raises(ParameterError, match="weights of a network that picks"):
            load(CNN(model=Weights(arrays)), None)
    broken = dict(good.arrays) | {first: np.full_like(good.arrays[first], np.nan)}
    with pytest.raises(ParameterError, match="weights must be finite"):
        load(CNN(model=dataclasses.replace(good, arrays=broken)), None)
    with pytest.raises(ParameterError, match="model must be general, simulated"):
        CNN(model=3)  # type: ignore[arg-type]


def test_a_network_may_have_a_threshold_of_its_own() -> None:
    network = load(CNN(), None)
    options: dict[str, Any] = {"method": "cnn", "diameter_px": 30}
    stricter = dataclasses.replace(network, about=dict(network.about) | {"threshold": "0.4"})
    search = build_search(IMAGES, model=stricter, **options)
    assert search.threshold == 0.4
    assert build_search(IMAGES, model=stricter, threshold=0.2, **options).threshold == 0.2
    assert build_search(IMAGES, model="simulated", **options).threshold == THRESHOLD
    for told in ("high", "nan"):
        broken = dataclasses.replace(network, about={"threshold": told})
        with pytest.raises(ParameterError, match=f"threshold in a model's metadata.*'{told}'"):
            build_search(IMAGES, model=broken, **options)


def test_without_pytorch_another_method_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "torch" else there(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(MissingLibraryError, match=r"pip install 'emdask\[torch\]'.*log"):
        emdask.pick(IMAGES, diameter_px=30)
