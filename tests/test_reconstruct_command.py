"""``emdask reconstruct`` writes what `emdask.reconstruct` finds, and says how far to trust it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from emdask.denoisers import denoise
from emdask.io import open_stack, open_volume, save_stack, save_volume
from emdask.kernels.masks import mask_from_volume
from emdask.metrics import fsc
from emdask.phantoms import phantom
from emdask.reconstruct_command import describe_mask, judge
from emdask.reconstructors import reconstruct
from emdask.simulators import simulate
from emdask.volumes import build_volume
from tests.command_line import call

pytestmark = pytest.mark.usefixtures("no_workers")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    volume = phantom(8, radius_A=20, width_A=6.0, seed=1).volume(24, 3.0)
    save_volume(volume, folder / "truth.mrc")
    save_stack(simulate(volume, 80, snr=1.0, shifts_A=3.0).images, folder / "in.mrcs")
    return folder


@pytest.fixture
def folder(made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_maps_are_those_of_the_function(folder):
    words = ["--reference", "truth.mrc", "--report", "seen.html", "--symmetry", "C2"]
    words += ["--wiener", "0.01", "--diameter-A", "60"]
    code, out, err = call("reconstruct", "in.star", "map.mrc", *words)
    assert (code, err) == (0, "")
    stack = open_stack("in.star")
    expected = reconstruct(stack, symmetry="C2", wiener=0.01, diameter_A=60.0).compute()
    names = {"map": "volume", "map_half1": "half_1", "map_half2": "half_2"}
    for name, variable in names.items():
        volume = open_volume(f"{name}.mrc")
        # Sums may be added up in another order.
        scale = float(abs(expected[variable]).max())
        np.testing.assert_allclose(volume.values, expected[variable].values, atol=1e-5 * scale)
        assert volume.attrs["pixel_size_A"] == 3.0
    lines = [line for line in out.splitlines() if line.strip()]
    assert lines[0] == "Reconstructing from 80 images ..."
    assert lines[1].startswith("80 images (")
    assert lines[1].endswith("-> map.mrc")
    assert lines[2] == "half maps -> map_half1.mrc, map_half2.mrc"
    assert lines[3].split()[-4:] == ["at", "0.143", "at", "0.5"]
    resolutions = [f"{value:.2f}" for value in expected.resolution_A.values]
    assert lines[4].split() == ["half", "maps", resolutions[0], "Å", resolutions[1], "Å"]
    assert [line.split("  ")[0] for line in lines[5:8]] == [
        "half maps in the mask, corrected for it",
        "with truth.mrc",
        "with truth.mrc, in the mask",
    ]
    assert lines[-1] == "report -> seen.html"
    page = (folder / "seen.html").read_text(encoding="utf-8")
    assert "The mask is made from the map:" in page
    assert "symmetry = C2" in page


def test_without_half_maps_there_is_one_volume(folder):
    code, out, err = call("reconstruct", "in.star", "map.zarr", "--no-half-maps")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 2
    assert sorted(path.name for path in folder.glob("map*")) == ["map.zarr"]
    expected = reconstruct(open_stack("in.star"), half_maps=False).compute().volume
    scale = float(abs(expected).max())
    np.testing.assert_allclose(open_volume("map.zarr").values, expected.values, atol=1e-5 * scale)


def test_denoised_images_are_not_judged_without_a_word(folder):
    save_stack(denoise(open_stack("in.star"), "gaussian", width_px=1.0), "clean.zarr")
    code, out, err = call("reconstruct", "clean.zarr", "map.mrc")
    assert (code, err) == (0, "")
    assert "These images were denoised (gaussian)" in out
    assert "their FSC and resolution mean nothing" in out


def test_curves_are_those_of_the_metrics(folder):
    found = reconstruct(open_stack("in.star")).compute()
    truth = open_volume("truth.mrc")
    mask = mask_from_volume(truth.values)
    curves = judge(found, mask, ("with truth", truth))
    halves = found.half_1.values, found.half_2.values
    expected = [
        fsc(*halves),
        fsc(*halves, mask=mask, corrected=True),
        fsc(found.volume.values, truth.values),
        fsc(found.volume.values, truth.values, mask=mask),
    ]
    for curve, (frequency, correlation) in zip(curves, expected, strict=True):
        np.testing.assert_allclose(curve.frequency_per_A, frequency / 3.0)
        np.testing.assert_allclose(curve.correlation, correlation)
    assert [curve.threshold for curve in curves] == [0.143, 0.143, 0.5, 0.5]
    assert [curve.name for curve in judge(found, None, None)] == ["half maps"]
    np.testing.assert_allclose(curves[0].correlation, found.fsc, atol=1e-6)


def test_mask_of_a_file_or_none(folder):
    save_volume(build_volume(np.ones((24, 24, 24)), 3.0), "ones.mrc")
    words = ["reconstruct", "in.star", "map.mrc", "--report", "r.html", "--overwrite"]
    code, out, _ = call(*words, "--mask", "none")
    assert code == 0
    assert "in the mask" not in out
    code, out, _ = call(*words, "--mask", "ones.mrc")
    assert code == 0
    assert "half maps in the mask, corrected for it" in out
    assert "The mask is ones.mrc: 100 % of the box." in Path("r.html").read_text("utf-8")
    assert describe_mask("none", None) == "There is no mask."


def test_nan_pixels_name_the_image_and_can_be_replaced(folder):
    stack = open_stack("in.star")
    pixels = stack.values.copy()
    pixels[7, 3, 2] = np.nan
    save_stack(stack.copy(data=pixels), "bad.zarr")
    code, out, err = call("reconstruct", "bad.zarr", "map.mrc")
    assert (code, out) == (2, "Reconstructing from 80 images ...\n")
    assert "image 7 has 1 NaN" in err
    assert not [path.name for path in folder.glob("map*")]
    assert call("reconstruct", "bad.zarr", "map.mrc", "--bad-pixels", "replace")[0] == 0
    assert np.isfinite(open_volume("map.mrc").values).all()


def test_help_has_the_parameters_of_the_method():
    code, out, _ = call("reconstruct", "--help")
    text = " ".join(out.replace("│", " ").split())
    assert code == 0
    assert "Parameters of direct_fourier" in text
    assert "--diameter-A" in text
    assert "--no-half-maps" in text
    listed = [line.split() for line in call("methods")[1].splitlines()]
    assert any(words[:1] == ["direct_fourier"] for words in listed)
    shown = call("methods", "--method", "direct_fourier")[1]
    assert "emdask reconstruct IN OUT --method direct_fourier" in shown
    assert "wiener" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.star", "map.mrc"], "none.star"),
        (["in.mrcs", "map.mrc"], "the pose of each image must be known"),
        (["in.star", "map.png"], "map.png: a volume's name must end in .mrc"),
        (["in.star", "truth.mrc"], "truth.mrc: exists already"),
        (["in.star", "no/map.mrc"], "its folder does not exist"),
        (["in.star", "map.mrc", "--symmetry", "Q7"], "'Q7'"),
        (["in.star", "map.mrc", "--wiener", "much"], "wiener must be a number"),
        (["in.star", "map.mrc", "--winer", "1"], "--winer"),
        (["in.star", "map.mrc", "--method", "direct"], "no method of this name; got 'direct'"),
        (["in.star", "map.mrc", "--images", "0:1"], "all are of half 1"),
        (["in.star", "map.mrc", "--reference", "no.mrc"], "no.mrc: no such file"),
        (["in.star", "map.mrc", "--reference", "big.mrc"], "must have 24 voxels of 3 Å on edge"),
        (["in.star", "map.mrc", "--mask", "big.mrc"], "--mask big.mrc: must have 24 voxels"),
        (["in.star", "map.mrc", "--mask", "truth"], "truth"),
        (["in.star", "map.mrc", "--mask", "half.mrc"], "must lie between 0 and 1"),
        (["in.star", "map.mrc", "--mask", "grey.mrc"], "got '0 to 2'"),
        (["in.star", "map.mrc", "--mask", "empty.mrc"], "and not be 0 everywhere; got '0 to 0'"),
        (["in.star", "map.mrc", "--report", "a.pdf"], "a.pdf: the name must end in .html"),
        (["in.star", "map.mrc", "--device", "gpu"], "device must be one of"),
    ],
)
def test_wrong_input_is_a_sentence_and_leaves_nothing(folder, words, said):
    save_volume(build_volume(np.ones((8, 8, 8)), 9.0), "big.mrc")
    ramp = np.linspace(-0.02, 0.02, 24**3).reshape(24, 24, 24)
    for name, values in (("half", ramp), ("grey", 50 * ramp + 1), ("empty", 0 * ramp)):
        save_volume(build_volume(values, 3.0), f"{name}.mrc")
    before = sorted(path.name for path in folder.iterdir())
    code, out, err = call("reconstruct", *words)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())
    assert "Traceback" not in err
    assert sorted(path.name for path in folder.iterdir()) == before
