"""``emdask extract`` writes what `emdask.extract` cuts out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from emdask.cli import resume_hint
from emdask.extractors import extract
from emdask.io import open_stack, save_picks
from tests.command_line import call
from tests.fake_micrographs import NAMES, PIXEL_SIZE_A, SHAPE, known_picks, write_micrographs

pytestmark = pytest.mark.usefixtures("no_workers")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_micrographs(folder)
    # The list names files from where it was written.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_picks(known_picks(), "picked")
    return folder


@pytest.fixture
def folder(made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("out", ["a.mrcs", "a.zarr"])
def test_particles_are_those_of_the_function(folder, out):
    code, said, err = call("extract", *NAMES, "picked", out, "--box-px", 24, "--preview", "a.png")
    assert (code, err) == (0, "")
    expected = extract(open_stack([*NAMES]), known_picks(), 24)
    found = open_stack(Path(out).with_suffix(".star") if out.endswith("mrcs") else out)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-5)
    assert found.attrs["pixel_size_A"] == PIXEL_SIZE_A
    assert found.attrs["kind"] == "particles"
    np.testing.assert_allclose(found.micrograph_x_px, known_picks().x_px)
    first, second = said.splitlines()
    assert first.startswith("8 particles of 24 x 24 pixels of 3 Å, from 2 micrographs (")
    assert first.endswith(f"-> {out}")
    assert second == "picture -> a.png"
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")


def test_options_reach_the_function(folder):
    words = ["--box-px", 64, "--bin", 2, "--edge", "fill", "--no-normalise", "--no-invert"]
    code, _, err = call("extract", *NAMES, "picked", "a.zarr", *words)
    assert (code, err) == (0, "")
    options = {"bin": 2, "edge": "fill", "normalise": False, "invert": False}
    expected = extract(open_stack([*NAMES]), known_picks(), 64, **options)
    assert expected.shape == (8, 32, 32)
    np.testing.assert_allclose(open_stack("a.zarr").values, expected.values, atol=1e-5)
    words = ["--box-px", 64, "--background-radius-px", 9]
    code, out, err = call("extract", *NAMES, "picked", "b.zarr", *words)
    assert (code, err) == (0, "")
    options = {"background_radius_px": 9.0}
    expected = extract(open_stack([*NAMES]), known_picks(), 64, **options)
    np.testing.assert_allclose(open_stack("b.zarr").values, expected.values, atol=1e-5)
    n_left_out = 8 - len(expected)
    assert n_left_out > 0
    assert out.splitlines()[1].startswith(f"left out: {n_left_out} of 8 picks, too near")


def test_picks_that_count_from_below(folder):
    flipped = known_picks()
    flipped["y_px"] = SHAPE[0] - 1 - flipped.y_px
    save_picks(flipped, "flipped.csv")
    assert call("extract", *NAMES, "flipped.csv", "a.zarr", "--box-px", 24, "--flip-y")[0] == 0
    expected = extract(open_stack([*NAMES]), known_picks(), 24)
    np.testing.assert_allclose(open_stack("a.zarr").values, expected.values, atol=1e-5)


def test_it_goes_on_where_it_stopped(folder):
    words = ["extract", *NAMES, "picked", "a.zarr", "--box-px", "24"]
    assert resume_hint([*words, "--overwrite"]).startswith("Go on with: emdask extract m1.mrc")
    assert call(*words)[0] == 0
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert "a.zarr" in err
    assert call(*words, "--overwrite")[0] == 0
    assert call(*words, "--resume")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no.mrc", "picked", "a.mrcs", "--box-px", 24], "no.mrc"),
        (["m1.mrc", "nothing", "a.mrcs", "--box-px", 24], "nothing"),
        (["m1.mrc", "m3.mrc", "bad.csv", "a.mrcs", "--box-px", 24], "one column x and one y"),
        (["m1.mrc", "m3.mrc", "picked", "a.mrcs", "--box-px", 1], "box_px must be an integer"),
        (["m1.mrc", "m3.mrc", "picked", "a.mrcs", "--box-px", 400], "at most 160"),
        (["m1.mrc", "m3.mrc", "picked", "a.mrcs", "--box-px", 24, "--bin", 5], "Such as 20."),
        (["m1.mrc", "m3.mrc", "picked", "a.mrcs", "--box-px", 24, "--edge", "cut"], "drop, fill"),
        (["m1.mrc", "m3.mrc", "picked", "a.txt", "--box-px", 24], "a.txt"),
        (["m1.mrc", "m2.mrc", "picked", "a.mrcs", "--box-px", 24], "m3"),
        (["m2.mrc", "none.csv", "a.mrcs", "--box-px", 24], "at least one pick"),
        (["m1.mrc", "m3.mrc", "picked", "a.mrcs", "--box-px", 24, "--preview", "a.doc"], ".png"),
    ],
)
def test_bad_input_is_a_sentence(folder, words, said):
    Path("bad.csv").write_text("micrograph,u,v\nm1.mrc,1,2\n")
    Path("none.csv").write_text("micrograph,x_px,y_px\n")
    before = {path.name for path in folder.iterdir()}
    code, out, err = call("extract", *words)
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    assert said in " ".join(err.split())
    assert {path.name for path in folder.iterdir()} == before
