"""How the methods of a comparison are written."""

from __future__ import annotations

import pytest

from emdask.candidates import CONTROLS, is_ready, parse_candidates, removes_noise
from emdask.denoisers import FAMILY
from emdask.denoisers.bm3d import BM3D
from emdask.denoisers.inpaint import Inpaint
from emdask.errors import ParameterError, UnknownMethodError
from emdask.method import list_methods


def test_without_names_all_methods_that_remove_noise_are_taken():
    found = [candidate.label for candidate in parse_candidates(None)]
    assert found == [n for n in list_methods(FAMILY) if removes_noise(n) and is_ready(n)]
    assert "unet" in found
    assert "noise2void" not in found


def test_methods_that_lack_something_are_left_out(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = [candidate.label for candidate in parse_candidates(None)]
    assert "unet" not in found
    assert "bm3d" in found
    assert "bm3d" in found


def test_a_name_has_the_defaults_and_a_record_its_values():
    by_name, by_record = parse_candidates(["bm3d", BM3D(sigma=2.0, window_px=9)])
    assert by_name.records == (BM3D(),)
    assert by_record.records == (BM3D(sigma=2.0, window_px=9),)
    assert (by_name.label, by_record.label) == ("bm3d", "bm3d:sigma=2.0,window_px=9")
    assert by_record.name == "bm3d"


def test_one_name_is_no_list_of_letters():
    assert [candidate.label for candidate in parse_candidates("bm3d")] == ["bm3d"]


def test_values_are_numbers_words_and_none():
    text = "bm3d:sigma=auto,profile=fast,window_px=9,threshold=2.5,n_scales=none"
    (found,) = parse_candidates([text])
    expected = BM3D(sigma="auto", profile="fast", window_px=9, threshold=2.5, n_scales=None)
    assert found.records == (expected,)
    assert isinstance(found.records[0].window_px, int)


def test_several_values_are_a_grid():
    (found,) = parse_candidates(["bm3d:threshold=2|3.5,n_scales=1|2"])
    assert [(r.threshold, r.n_scales) for r in found.records] == [
        (2, 1),
        (2, 2),
        (3.5, 1),
        (3.5, 2),
    ]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("bm3d:sgma=1", "no parameter of this name; got 'sgma'. Did you mean sigma"),
        ("bm3d:sigma=1|-1", "sigma must be"),
        ("bm3d:sigma", "NAME=VALUE"),
        ("bm3d:sigma=", "NAME=VALUE"),
        ("bm3d:sigma=loud", "sigma must be"),
    ],
)
def test_wrong_parameters_are_named(method, message):
    with pytest.raises(ParameterError, match=message):
        list(parse_candidates([method]))


def test_unknown_methods_and_those_named_twice_are_refused():
    with pytest.raises(UnknownMethodError, match=r"got 'bm3'\. Did you mean bm3d"):
        list(parse_candidates(["bm3"]))
    with pytest.raises(ParameterError, match="once; got 'bm3d'"):
        list(parse_candidates(["bm3d", BM3D()]))
    with pytest.raises(UnknownMethodError, match=f"got '{CONTROLS[0]}'"):
        list(parse_candidates([CONTROLS[0]]))


def test_methods_that_remove_outliers_alone_are_refused():
    rule = "methods must remove noise; got 'inpaint:threshold=9'. inpaint removes outliers alone"
    with pytest.raises(ParameterError, match=rule):
        list(parse_candidates(["inpaint:threshold=9"]))
    with pytest.raises(ParameterError, match="methods must remove noise"):
        list(parse_candidates([Inpaint()]))
