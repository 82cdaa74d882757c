"""Finding methods and building their parameters."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import numpy as np
import pytest

import emdask
import emdask.method
from emdask.denoisers import FAMILY
from emdask.errors import ParameterError, StackError, UnknownMethodError
from emdask.method import (
    Classifier,
    Learn,
    Method,
    find_homes,
    find_method,
    list_methods,
    parameter,
    resolve_method,
)


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Adds a constant: the smallest method there can be."""

    by: float = parameter(1.0, "what is added", "grey levels")


def _shift(images: np.ndarray, params: Shift) -> np.ndarray:
    return (images + params.by).astype(np.float32)


METHOD = Method(params=Shift, apply={"cpu": _shift})


def test_a_file_is_a_method() -> None:
    folder = Path(emdask.denoisers.__file__).parent
    files = {f.stem for f in folder.glob("*.py")} - {"__init__"}
    assert files <= set(list_methods(FAMILY))


def test_listing_imports_no_method() -> None:
    code = (
        "import sys, emdask.method as m; m.list_methods('emdask.denoisers');"
        "print([k for k in sys.modules if k.startswith('emdask.denoisers.') or k == 'numba'])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_an_unknown_method_is_named_with_the_known() -> None:
    with pytest.raises(UnknownMethodError, match=r"'bm3'\. Did you mean bm3d\? Known: .*bm3d"):
        emdask.denoise(np.zeros((8, 8)), "bm3")


def test_an_instance_brings_its_method() -> None:
    images = np.zeros((2, 4, 4), np.float32)
    result = emdask.denoise(images, Shift(by=2.0)).compute()
    np.testing.assert_array_equal(result, 2.0)
    with pytest.raises(ParameterError, match="not beside it; got \\['by'\\]"):
        emdask.denoise(images, Shift(), by=3.0)
    with pytest.raises(UnknownMethodError, match="must be a name or an instance"):
        emdask.denoise(images, 5)


def test_another_package_adds_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint(name="shift", value=f"{__name__}:METHOD", group=FAMILY)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Shift.__module__])

    def installed(group: str, name: str | None = None) -> EntryPoints:
        points = EntryPoints([point])
        return points.select(name=name) if name else points

    monkeypatch.setattr(emdask.method, "entry_points", installed)
    find_homes.cache_clear()
    try:
        assert "shift" in list_methods(FAMILY)
        assert find_method(FAMILY, "shift").params.__name__ == "Shift"
        assert emdask.denoise(np.zeros((4, 4)), "shift", by=4.0).compute()[0, 0] == 4.0
    finally:
        find_homes.cache_clear()


def test_parameters_come_by_name() -> None:
    name, record, params = resolve_method(FAMILY, Shift(by=3.0), {})
    assert (name, record) == ("test_method", METHOD)
    assert params.by == 3.0


def test_learning_needs_a_learning_method() -> None:
    with pytest.raises(StackError, match="nothing to learn"):
        emdask.learn_denoiser(np.zeros((4, 4)), Shift())
    with pytest.raises(ParameterError, match="takes no model"):
        emdask.denoise(np.zeros((4, 4)), Shift(), model=1)


def test_learn_is_a_plain_record() -> None:
    learn = Learn(chunk={"cpu": np.sum}, combine=np.add, finalize=lambda sums, params: sums)
    assert learn.combine(1, 2) == 3


def test_a_classifier_is_a_record_like_others() -> None:
    assert "kmeans" in list_methods("emdask.classifiers")
    record = find_method("emdask.classifiers", "kmeans")
    assert isinstance(record, Classifier)
    name, found, params = resolve_method("emdask.classifiers", record.params(n_classes=3), {})
    assert (name, found, params.n_classes) == ("kmeans", record, 3)
    assert emdask.method.about(record).startswith("K-means without references")
    with pytest.raises(ParameterError, match="kmeans: no parameter of this name; got 'n_class'"):
        resolve_method("emdask.classifiers", "kmeans", {"n_class": 3})
