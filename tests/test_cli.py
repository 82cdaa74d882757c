"""The command line: what a user types, reads and finds on disk."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from emdask.backend import why_no_cuda
from emdask.cli import error_text, resume_hint
from emdask.commands import blur_denoised
from emdask.ctf_correctors import phase_flip
from emdask.denoisers.bm3d import METHOD
from emdask.errors import EmdaskError
from emdask.io import open_stack, save_model, save_stack
from emdask.io.weights import Weights, save_weights
from emdask.method import find_homes
from emdask.options import parse_value
from emdask.simulators.demo_images import demo_particles
from emdask.stack import optics_of
from tests.command_line import call, local_threads
from tests.fake_models import covariance_model, dictionary_model

PLUGIN = '''"""Grey levels times a number."""

from dataclasses import dataclass
from time import sleep
from typing import Literal

from emdask.checks import check_number
from emdask.method import Method, parameter
from tests.command_line import call


@dataclass(frozen=True, kw_only=True)
class Halve:
    factor: float = parameter(0.5, "number that grey levels are multiplied with", "grey levels")
    pause_s: float | Literal["never"] = parameter("never", "pause before each chunk", "s")

    def __post_init__(self):
        check_number("halve", "factor", self.factor, 0, 1)


def apply(images, params):
    if params.pause_s != "never":
        sleep(params.pause_s)
    return (images * params.factor).astype("f4")


METHOD = Method(params=Halve, apply={"cpu": apply})
'''
# Ctrl-C is heard even where the tests themselves run in the background, deaf to it.
RUN = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from emdask.cli import main; main()"
)


@pytest.fixture(scope="session")
def plugin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A method of another package, as pip would install it."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "halving.py").write_text(PLUGIN)
    info = folder / "halving-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: halving\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[emdask.denoisers]\nhalve = halving:METHOD\n")
    return folder


@pytest.fixture
def plugin(plugin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The method ``halve`` in this process."""
    monkeypatch.syspath_prepend(str(plugin_folder))
    find_homes.cache_clear()
    yield
    find_homes.cache_clear()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve particles with poses and CTF."""
    stack, _ = demo_particles(12, box_px=32, pixel_size_A=8.0)
    return save_stack(stack, tmp_path_factory.mktemp("made") / "in.mrcs").parent


@pytest.fixture
def stack_path(made_once: Path, tmp_path: Path) -> Path:
    """A copy of them that a test may damage."""
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    return tmp_path / "in.star"


def start(folder: Path, *words: object, cwd: Path) -> subprocess.Popen[str]:
    """Run a command in a process of its own, with the plugin and without a terminal."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, words)],
        env=environment,
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def run(folder: Path, *words: object, cwd: Path) -> tuple[int, str, str]:
    process = start(folder, *words, cwd=cwd)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def assert_refused(result: tuple[int, str, str], *words: str) -> None:
    """Exit code 2, one sentence on stderr that has the words, no traceback."""
    code, out, err = result
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    for word in words:
        assert word in " ".join(err.split()), err


def files_under(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_help_imports_nothing_heavy():
    code = (
        "import sys, emdask.cli\n"
        "sys.argv = ['emdask', '--help']\n"
        "try:\n    emdask.cli.main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'dask', 'distributed', 'xarray', 'numba', 'matplotlib', 'scipy'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in (
        "info",
        "convert",
        "denoise",
        "phase-flip",
        "simulate",
        "reconstruct",
        "methods",
        "demo",
        "compare",
    ):
        assert command in done.stdout


def test_version():
    import emdask

    assert call("--version")[:2] == (0, f"emdask {emdask.__version__}\n")


@pytest.mark.usefixtures("plugin")
def test_methods_prints_every_parameter_of_the_records():
    code, out, _ = call("methods", "--method", "halve")
    assert code == 0
    assert out.splitlines()[:2] == ["Grey levels times a number.", "Runs on cpu."]
    assert out.splitlines()[4].split()[:3] == ["factor", "0.5", "grey"]
    assert "cpu, cuda" in call("methods", "--method", "bm3d")[1]
    for word in ("factor", "0.5", "grey levels", "number that grey levels are multiplied with"):
        assert word in out
    listed = call("methods")[1].splitlines()
    assert ["halve", "cpu", "Grey"] in [line.split()[:3] for line in listed]
    assert ["ksvd", "cpu,", "cuda", "yes", "K-SVD:"] in [line.split()[:5] for line in listed]


@pytest.mark.usefixtures("plugin")
def test_denoise_help_has_an_option_for_each_parameter():
    code, out, _ = call("denoise", "--method", "halve", "--help")
    text = " ".join(out.replace("│", " ").split())
    assert code == 0
    assert "Parameters of halve" in text
    assert "--profile" not in text
    assert "Parameters of bm3d" in call("denoise", "--help")[1]
    assert "--pause-s float|never pause before each chunk (s; default never)" in text
    assert "--method NAME" in text


def test_values_are_of_the_first_kind_that_fits():
    assert parse_value("1.5", ["int", "float"]) == 1.5
    assert parse_value("3", ["int", "float"]) == 3
    assert parse_value("true", ["bool"]) is True
    assert parse_value("auto", ["float", "auto"]) == "auto"
    assert parse_value("nonsense", ["int"]) == "nonsense"


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "halv"], ["no method of this name", "Did you mean halve?"]),
        (["--method", "halve", "--factor", "2"], ["halve: factor must be", "[0, 1]", "got 2"]),
        (["--method", "halve", "--factor", "much"], ["factor must be", "got 'much'"]),
        (["--method", "halve", "--fctor", "1"], ["No such option", "--fctor", "--factor"]),
        (["--method", "halve", "--profile", "x"], ["halve: no parameter", "'profile'", "Known: f"]),
        (["--method", "halve", "--save-model", "m.zarr"], ["--save-model: halve learns nothing"]),
        (["--method", "halve", "--model", "none.zarr"], ["none.zarr: no such model"]),
        (["--method", "halve", "--device", "gpu"], ["device must be one of", "got 'gpu'"]),
        (["--method", "halve", "--scheduler", "cuda"], ["--scheduler: cuda needs a method with"]),
        (["--scheduler", "cuda", "--device", "cpu"], ["cuda does not go with --device cpu. Leave"]),
        (["--method", "halve", "--device", "cuda"], ["halve: runs on cpu", "got 'cuda'"]),
        (["--method", "halve", "--bad-pixels", "x"], ["bad_pixels must be one of raise, replace"]),
        (["--method", "halve", "--preview", "p.txt"], ["p.txt", "must end in .png"]),
        (["--method", "halve", "--report", "no/such/r.html"], ["folder does not exist"]),
    ],
)
def test_wrong_parameters_are_refused_before_anything_is_written(stack_path, words, said):
    before = files_under(stack_path.parent)
    result = call("denoise", stack_path, stack_path.parent / "out.zarr", *words)
    assert_refused(result, *said)
    assert files_under(stack_path.parent) == before


def _truncated_mrc(folder: Path) -> Path:
    path = folder / "in.mrcs"
    path.write_bytes(path.read_bytes()[:-5000])
    return path


def _no_mrc(folder: Path) -> Path:
    path = folder / "text.mrc"
    path.write_text("this is not an image\n" * 200)
    return path


def _star_without_images(folder: Path) -> Path:
    path = folder / "none.star"
    path.write_text("data_\n\nloop_\n_rlnDefocusU #1\n10000.0\n")
    return path


def _star_beyond(folder: Path) -> Path:
    path = folder / "beyond.star"
    path.write_text("data_\n\nloop_\n_rlnImageName #1\n000099@in.mrcs\n")
    return path


def _star_of_nothing(folder: Path) -> Path:
    path = folder / "missing.star"
    path.write_text("data_\n\nloop_\n_rlnImageName #1\n000001@nowhere.mrcs\n")
    return path


def _store_without_images(folder: Path) -> Path:
    import zarr

    zarr.open_group(folder / "empty.zarr", mode="w")
    return folder / "empty.zarr"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "absent.mrc", ["absent.mrc"]),
        (lambda folder: folder / "*.tif", ["no file fits this pattern"]),
        (lambda folder: Path(__file__), [".py"]),
        (_truncated_mrc, ["in.mrcs", "truncated"]),
        (_no_mrc, ["text.mrc"]),
        (_star_without_images, ["none.star", "rlnImageName"]),
        (_star_beyond, ["in.mrcs"]),
        (_star_of_nothing, ["nowhere.mrcs"]),
        (_store_without_images, ["empty.zarr", "images"]),
    ],
)
@pytest.mark.parametrize("command", ["info", "convert"])
def test_bad_input_is_a_sentence_and_exit_code_2(stack_path, make, said, command):
    folder = stack_path.parent
    source = make(folder)
    before = files_under(folder)
    target = [folder / "out.zarr"] if command == "convert" else []
    assert_refused(call(command, source, *target), *said)
    assert files_under(folder) == before


def test_errors_of_the_system_begin_with_the_file():
    assert error_text(OSError(28, "No space left on device", "a.zarr")) == (
        "a.zarr: No space left on device."
    )
    assert error_text(OSError("a.mrc: is odd.")) == "a.mrc: is odd."


def test_hint_to_resume_is_the_command_itself():
    words = ["convert", "my file.mrcs", "b.zarr", "--dtype", "float16", "--overwrite"]
    assert resume_hint(words) == (
        "Go on with: emdask convert 'my file.mrcs' b.zarr --dtype float16 --resume"
    )
    assert resume_hint(["info", "a.mrc"]) == ""


def test_info_says_what_is_known_of_the_images(stack_path):
    code, out, err = call("info", stack_path)
    assert (code, err) == (0, "")
    lines = {line.split()[0]: " ".join(line.split()) for line in out.splitlines() if line.strip()}
    assert lines["images"] == "images 12 of 32 x 32 pixels (x, y), float32"
    assert lines["pixel_size_A"] == "pixel_size_A 8 Å"
    assert lines["voltage_kV"] == "voltage_kV 300 kV"
    values = open_stack(stack_path).defocus_u_A.values
    assert f"{values.min():.6g} to {values.max():.6g}" in lines["defocus_u_A"]
    assert "snr=0.1" in lines["demo"]
    sigmas = lines["noise"].partition("sigma ")[2].partition(" grey levels")[0].split(", ")
    np.testing.assert_allclose([float(sigma) for sigma in sigmas], 1, atol=0.15)


def test_info_says_what_a_method_has_learnt(tmp_path):
    path, page = tmp_path / "m.zarr", tmp_path / "m.html"
    save_model(covariance_model().assign_attrs(method="ksvd", strength=0.5, sigma="auto"), path)
    code, out, err = call("info", path, "--report", page)
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert any(line.startswith("learnt by ksvd K-SVD: patches are sums") for line in lines)
    assert "strength 0.5 noise that is assumed, relative to sigma" in lines
    assert "sigma auto standard deviation of the noise; auto: estimated image by image" in lines
    assert "box_px 16 px" in lines
    assert "mean y 16, x 16" in " ".join(lines)
    start = lines.index("eigenimage angular order k eigenvalue / noise variance")
    assert lines[start + 1 : start + 3] == ["1 0 30", "2 1 29"]
    assert lines[-2] == ("2 of 5 eigenvalues are above the edge of the noise.")
    assert lines[-1] == f"report -> {page}"
    assert "<h1>Model: ksvd</h1>" in page.read_text(encoding="utf-8")


def test_info_of_a_model_of_a_method_that_is_not_here(tmp_path):
    save_model(dictionary_model().assign_attrs(method="elsewhere"), tmp_path / "m.zarr")
    code, out, err = call("info", tmp_path / "m.zarr")
    assert (code, err) == (0, "")
    assert "scale 2, atom 10, pixel 16" in out


def test_info_says_what_weights_are(tmp_path):
    path = tmp_path / "mine.safetensors"
    row = {"epoch": 1, "step": 3, "learning_rate": 2e-3, "training_loss": -1.5}
    about = {"method": "unet", "licence": "CC0", "curve": json.dumps([row, row | {"epoch": 2}])}
    arrays = {"a": np.zeros((3, 500), np.float16), "b": np.zeros(7, np.float32)}
    save_weights(Weights(arrays, about), path)
    code, out, err = call("info", path)
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines() if line.strip()]
    assert lines[1:4] == [
        "size 3.03 kB: 1,507 numbers, float16, float32",
        "network of unet",
        "licence CC0",
    ]
    assert lines[-3:] == [
        "epoch step learning rate training loss",
        "1 3 0.002 -1.5",
        "2 3 0.002 -1.5",
    ]
    refused = call("info", path, "--report", tmp_path / "m.html")
    assert_refused(refused, "--report: shows what a method has learnt", "emdask train-denoiser")
    path.write_bytes(b"no weights at all")
    assert_refused(call("info", path), "must be a safetensors file", "save_weights()")


def test_the_page_of_info_is_that_of_a_model(stack_path, tmp_path):
    refused = call("info", stack_path, "--report", tmp_path / "m.html")
    assert_refused(refused, "--report: shows what a method has learnt", "--save-model MODEL.zarr")
    save_model(dictionary_model(), tmp_path / "m.zarr")
    assert_refused(call("info", tmp_path / "m.zarr", "--report", "m.txt"), "must end in .html")


def test_residual_of_images_whose_ctf_was_corrected_is_taken_with_the_ctf(stack_path):
    noisy = open_stack(stack_path)
    after = np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32)
    assert blur_denoised(noisy, noisy, after) is None
    blurred = blur_denoised(noisy, noisy.assign_attrs(ctf_state="corrected"), after)
    for i, image in enumerate(after):
        ctf = optics_of(noisy).ctf((32, 32), i)
        expected = np.fft.irfft2(np.fft.rfft2(image) * ctf, s=(32, 32))
        np.testing.assert_allclose(blurred[i], expected, atol=1e-5)


def test_convert_keeps_pixels_and_metadata(stack_path):
    target = stack_path.parent / "out.zarr"
    code, out, err = call("convert", stack_path, target)
    assert (code, err) == (0, "")
    assert out.startswith("12 images (")
    assert out.rstrip().endswith(str(target))
    before, after = open_stack(stack_path), open_stack(target)
    np.testing.assert_array_equal(after.values, before.values)
    np.testing.assert_array_equal(after.rot_deg.values, before.rot_deg.values)
    assert after.attrs["provenance"] == before.attrs["provenance"]


def test_convert_to_another_type(stack_path):
    target = stack_path.parent / "half.zarr"
    assert call("convert", stack_path, target, "--dtype", "float16")[0] == 0
    half = open_stack(target)
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half.values, open_stack(stack_path).values.astype("f2"))
    assert_refused(call("convert", stack_path, target, "--dtype", "complex64", "--overwrite"))


def test_phase_flip_from_files_to_files(stack_path):
    target = stack_path.parent / "flipped.star"
    code, out, err = call("phase-flip", stack_path, target, "--workers", "1")
    assert (code, err) == (0, "")
    assert out.startswith("12 images, phases flipped (")
    before, after = open_stack(stack_path), open_stack(target)
    np.testing.assert_array_equal(after.values, phase_flip(before).values)
    assert optics_of(after).phase_flipped
    assert "phase_flip" in call("info", target)[1]
    assert_refused(call("phase-flip", target, "again.zarr"), "must be as recorded")
    pixels = stack_path.parent / "pixels.zarr"
    save_stack(before.drop_vars("defocus_u_A"), pixels)
    assert_refused(call("phase-flip", pixels, "again.zarr"), "phase_flip: needs a stack with")


def test_existing_output_is_left_as_it_is(stack_path):
    target = stack_path.parent / "out.zarr"
    assert call("convert", stack_path, target)[0] == 0
    before = files_under(target)
    assert_refused(call("convert", stack_path, target), "out.zarr", "--overwrite")
    assert files_under(target) == before
    assert call("convert", stack_path, target, "--resume")[0] == 0
    assert files_under(target) == before
    assert call("convert", stack_path, target, "--overwrite", "--dtype", "float16")[0] == 0
    assert open_stack(target).dtype == np.float16


def test_denoise_from_files_to_files_is_quiet_without_a_terminal(stack_path, plugin_folder):
    folder = stack_path.parent
    code, out, err = run(
        plugin_folder,
        *("denoise", "in.star", "out.mrcs", "--method", "halve", "--factor", "0.25"),
        *("--workers", "1", "--preview", "seen.png", "--report", "seen.html"),
        cwd=folder,
    )
    assert (code, err) == (0, "")
    summary, picture, report = out.splitlines()
    assert summary.startswith("12 images, halve (")
    assert summary.endswith("-> out.mrcs")
    assert (picture, report) == ("picture -> seen.png", "report -> seen.html")
    before, after = open_stack(stack_path), open_stack(folder / "out.star")
    np.testing.assert_array_equal(after.values, before.values / 4)
    np.testing.assert_array_equal(after.psi_deg.values, before.psi_deg.values)
    last = after.attrs["provenance"][-1]
    assert last == {"step": "halve", "parameters": {"factor": 0.25, "pause_s": "never"}}
    assert (folder / "seen.png").read_bytes().startswith(b"\x89PNG")
    assert "factor = 0.25" in (folder / "seen.html").read_text(encoding="utf-8")


def test_a_ctf_that_stays_is_told(stack_path, monkeypatch):
    monkeypatch.setattr("emdask.jobs.connect_quietly", local_threads)
    monkeypatch.chdir(stack_path.parent)
    stays = "No defocus is known of these images: their CTF stays."
    beside = f"{stays} If in.star tells it, open that instead."
    stack = open_stack("in.star")
    save_stack(stack.drop_vars("defocus_u_A"), "bare.zarr")
    save_stack(stack.drop_vars("defocus_u_A").assign_attrs(ctf_state="corrected"), "flat.zarr")
    shutil.copy("in.mrcs", "alone.mrcs")
    for path, method, said in (
        ("in.mrcs", "wiener", [beside]),
        ("alone.mrcs", "wiener", [stays]),
        ("bare.zarr", "wiener", [stays]),
        ("in.star", "wiener", []),
        ("flat.zarr", "wiener", []),
        ("in.mrcs", "gaussian", []),
    ):
        words = ("denoise", path, "out.zarr", "--method", method, "--images", "0:2", "--overwrite")
        code, out, err = call(*words)
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert lines[:-1] == said
        assert lines[-1].startswith(f"2 images, {method} (")
    code, out, _ = call(*words[:4], "wiener", "--psf", "none", *words[5:])
    assert (code, len(out.splitlines())) == (0, 1)


def test_whitening_is_undone_after_the_method(stack_path, plugin_folder):
    folder = stack_path.parent
    words = ("denoise", "in.star", "out.zarr", "--method", "halve", "--workers", "1", "--whiten")
    code, out, err = run(plugin_folder, *words, "--report", "seen.html", cwd=folder)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "Measuring the noise of 12 images ..."
    before, after = open_stack(stack_path), open_stack(folder / "out.zarr")
    # Whitening and its reverse are linear, so that any gain comes through.
    np.testing.assert_allclose(after.values, before.values / 2, atol=1e-4)
    steps = [step["step"] for step in after.attrs["provenance"]]
    assert steps[-3:] == ["whiten", "halve", "unwhiten"]
    page = (folder / "seen.html").read_text(encoding="utf-8")
    for words in ("Denoised with halve", "power of the whitened residual", ">power of the noise<"):
        assert words in page


def test_what_was_learnt_is_kept_and_serves_again(stack_path, plugin_folder, monkeypatch):
    folder = stack_path.parent
    learn = ("--method", "ksvd", "--n-iterations", "2", "--n-atoms", "80", "--workers", "1")
    words = ("denoise", "in.star", "out.zarr", *learn, "--save-model", "m.zarr")
    code, out, err = run(plugin_folder, *words, "--report", "seen.html", cwd=folder)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "ksvd learns from 12 images ..."
    assert "What was learnt: atoms" in (folder / "seen.html").read_text(encoding="utf-8")
    code, out, err = run(
        plugin_folder, "denoise", "in.star", "again.zarr", *learn, "--model", "m.zarr", cwd=folder
    )
    assert (code, err, len(out.splitlines())) == (0, "", 1)
    results = [open_stack(folder / name).values for name in ("out.zarr", "again.zarr")]
    np.testing.assert_array_equal(*results)
    # The command that goes on after Ctrl-C names the model that is there by then.
    shutil.rmtree(folder / "out.zarr")
    assert run(plugin_folder, *words, "--resume", cwd=folder)[0] == 0
    assert_refused(call(*words, "--overwrite", "--model", "m.zarr"), "--save-model: does not go")
    monkeypatch.chdir(folder)
    same = call("denoise", "in.star", "c.zarr", *learn, "--save-model", "c.zarr")
    assert_refused(same, "--save-model: must be another place than OUT; got 'c.zarr'")
    assert_refused(call(*words), "m.zarr: exists already", "--overwrite")
    refused = call("denoise", "in.star", "b.zarr", "--method", "ddtf", "--model", "m.zarr")
    assert_refused(refused, "ddtf: model must be one that ddtf has learnt; got 'ksvd'")


def test_nan_pixels_name_the_image_and_can_be_replaced(stack_path, plugin_folder):
    stack, _ = demo_particles(4, box_px=16, pixel_size_A=16.0)
    pixels = stack.values
    pixels[2, 3, 4] = np.nan
    folder = stack_path.parent
    save_stack(pixels, folder / "bad.zarr")
    words = ("denoise", "bad.zarr", "out.zarr", "--method", "halve", "--workers", "1")
    code, out, err = run(plugin_folder, *words, cwd=folder)
    assert (code, out) == (2, "")
    assert err.startswith("emdask: ")
    assert "image 2 has 1 NaN" in err
    assert "--bad-pixels replace" in err
    assert "Traceback" not in err
    assert not (folder / "out.zarr").exists()
    words = (*words, "--bad-pixels", "replace", "--overwrite")
    assert run(plugin_folder, *words, cwd=folder)[0] == 0
    assert np.isfinite(open_stack(folder / "out.zarr").values).all()


def test_ctrl_c_stops_and_the_command_it_names_goes_on(stack_path, plugin_folder):
    folder = stack_path.parent
    save_stack(open_stack(stack_path, chunks=1), folder / "ones.zarr")
    words = ["denoise", "ones.zarr", "out.zarr", "--method", "halve", "--workers", "1"]
    words += ["--pause-s", "1.0"]
    process = start(plugin_folder, *words, cwd=folder)
    deadline = time.monotonic() + 120
    while not _n_shards(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    # As a terminal does: to the workers too.
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    # Both belong to Python's multiprocessing and Dask; none may look like an error to the user.
    assert "Traceback" not in err
    hint = f"emdask: interrupted. Go on with: emdask {' '.join(words)} --resume\n"
    assert err == hint
    assert not (folder / "out.zarr").exists()
    assert 0 < _n_shards(folder) < 12
    assert run(plugin_folder, *words, "--resume", cwd=folder)[0] == 0
    after = open_stack(folder / "out.zarr").values
    np.testing.assert_array_equal(after, open_stack(stack_path).values / 2)


def _n_shards(folder: Path) -> int:
    """Shards of pixels that are written, finished or not."""
    return sum(1 for p in folder.glob("out.zarr.partial/content-*/**/c/*/*/*") if p.is_file())


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "in.star", ["in.star: already exists", "--overwrite"]),
        (lambda folder: folder / "a.jpg", ["a.jpg", "the suffix must be one of .zarr"]),
        (lambda folder: folder / "no" / "a.zarr", ["there is no folder", "Create it first."]),
    ],
)
@pytest.mark.parametrize("command", ["denoise", "convert"])
def test_a_bad_target_is_refused_before_workers_start(stack_path, make, said, command, monkeypatch):
    monkeypatch.setattr("emdask.jobs.connect_quietly", lambda *_, **__: 1 / 0)
    before = files_under(stack_path.parent)
    assert_refused(call(command, stack_path, make(stack_path.parent)), *said)
    assert files_under(stack_path.parent) == before


@pytest.fixture
def bm3d_on_cards(monkeypatch):
    """A method of both devices."""
    both = {"cpu": None, "cuda": None}
    monkeypatch.setattr("emdask.denoisers.bm3d.METHOD", dataclasses.replace(METHOD, apply=both))


@pytest.mark.parametrize(
    ("words", "target"),
    [
        ([], "local"),
        (["--scheduler", "cuda"], "cuda"),
        (["--scheduler", "tcp://there:8786"], "tcp://there:8786"),
        (["--device", "cpu"], "local"),
        (["--device", "cuda"], "cuda"),
        (["--device", "cuda", "--scheduler", "local"], "local"),
    ],
)
@pytest.mark.parametrize("n_cards", [0, 2])
def test_who_works(stack_path, bm3d_on_cards, words, target, n_cards, monkeypatch):
    """Where cards are used, one worker a card; without a word, where there are any."""

    class Asked(EmdaskError):
        pass

    def ask(target: str, *, n_workers: int | None) -> None:
        raise Asked(f"{target} {n_workers}")

    monkeypatch.setattr("emdask.jobs.connect_quietly", ask)
    monkeypatch.setattr("emdask.jobs.count_cards", lambda: n_cards)
    monkeypatch.setattr("emdask.jobs.find_spec", lambda name: name)
    command = ["denoise", stack_path, stack_path.parent / "out.zarr", *words]
    if not words and n_cards:
        assert call(*command) == (2, "", "emdask: cuda None\n")
        assert call(*command, "--workers", 3) == (2, "", "emdask: local 3\n")
    else:
        assert call(*command) == (2, "", f"emdask: {target} None\n")


@pytest.mark.skipif(why_no_cuda() is None, reason="there is a card")
def test_cards_that_are_not_there_are_told(stack_path, bm3d_on_cards):
    out = stack_path.parent / "out.zarr"
    for words in (["--scheduler", "cuda"], ["--device", "cuda"]):
        assert_refused(call("denoise", stack_path, out, *words), 'connect("cuda"): needs ')
    assert_refused(call("denoise", stack_path, out, "--scheduler", "cud"), '"cuda"', "got 'cud'")
    assert not out.exists()


@pytest.mark.skipif(why_no_cuda() is None, reason="there is a card")
def test_workers_without_a_card_leave_nothing_behind(stack_path, plugin_folder):
    folder = stack_path.parent
    words = ["denoise", "in.star", "out.zarr", "--workers", "1", "--scheduler", "local"]
    result = run(plugin_folder, *words, "--device", "cuda", cwd=folder)
    assert_refused(result, 'device="cuda" needs an NVIDIA card', f"On {socket.gethostname()} ")
    assert sorted(p.name for p in folder.glob("out*")) == []


def test_options_of_the_input(stack_path):
    folder = stack_path.parent
    (folder / "tables").mkdir()
    star = folder / "tables" / "in.star"
    shutil.move(stack_path, star)
    shutil.move(folder / "in.mrcs", folder / "tables" / "away.mrcs")
    (folder / "other").mkdir()
    shutil.move(folder / "tables" / "away.mrcs", folder / "other" / "in.mrcs")
    assert_refused(call("info", star), "in.mrcs", "--project-folder")
    words = ["--project-folder", folder / "other", "--images", "2:5", "--pixel-size-A", "1.5"]
    code, out, _ = call("info", star, *words, "--kind", "particles")
    assert code == 0
    lines = {line.split()[0]: " ".join(line.split()) for line in out.splitlines() if line.strip()}
    assert lines["images"].startswith("images 3 of")
    assert lines["pixel_size_A"] == "pixel_size_A 1.5 Å"
    assert "2 to 4" in lines["image_id"]
    assert call("convert", star, folder / "few.zarr", *words)[0] == 0
    assert open_stack(folder / "few.zarr").shape[0] == 3
    words[3] = "2-5"
    assert_refused(call("info", star, *words), "images must be START:STOP", "got '2-5'")
    assert_refused(call("info", star, "--kind", "movies"), "kind must be one of")


@pytest.mark.parametrize("out", ["clean/", "clean.mrcs"])
def test_pictures_of_every_kind_of_output(stack_path, plugin_folder, out):
    """A folder of micrographs is seen through its STAR file."""
    stack, _ = demo_particles(2, box_px=32, pixel_size_A=8.0)
    folder = stack_path.parent
    save_stack(stack[:1].assign_attrs(kind="micrographs"), folder / "a.mrc")
    words = ["denoise", "a.mrc", out, "--method", "halve", "--workers", "1"]
    words += ["--preview", "seen.png", "--report", "seen.html"]
    code, _, err = run(plugin_folder, *words, cwd=folder)
    assert (code, err) == (0, "")
    assert (folder / "seen.png").is_file()
    assert (folder / "seen.html").is_file()


# --- compare --------------------------------------------------------------------------------------


@pytest.fixture
def clean_path(tmp_path: Path) -> Path:
    """Two particles without noise."""
    stack, clean = demo_particles(2, box_px=32, pixel_size_A=8.0)
    return save_stack(stack.copy(data=clean), tmp_path / "clean.mrcs")


SPELLINGS = [
    ["--snr", "0.4", "0.1", "--methods", "halve", "halve:factor=0.25|0.75"],
    ["--snr", "0.4", "--snr", "0.1", "--methods", "halve", "--methods", "halve:factor=0.25|0.75"],
    ["--snr=0.4,0.1", "--methods=halve,halve:factor=0.25|0.75"],
]


@pytest.mark.parametrize("words", SPELLINGS)
def test_compare_takes_several_words_after_an_option(monkeypatch, words):
    told = {}
    command = "emdask.compare_command.compare_files"
    monkeypatch.setattr(command, lambda clean, **options: told.update(options, clean=clean))
    assert call("compare", "simulate", *words, "--out", "report/")[0] == 0
    assert told["clean"] == "simulate"
    assert told["snr"] == ["0.4", "0.1"]
    assert told["methods"] == ["halve", "halve:factor=0.25|0.75"]
    assert told["out"] == Path("report")


@pytest.mark.usefixtures("plugin")
def test_compare_prints_and_writes_and_writes_again(clean_path, tmp_path):
    out = tmp_path / "report"
    for words in (["--snr", "0.1", "--methods", "halve"], SPELLINGS[0]):
        code, said, err = call("compare", clean_path, *words, "--out", f"{out}/")
        assert (code, err) == (0, "")
    names = sorted(path.name for path in out.iterdir())
    assert names == ["README.txt", "compare.csv", "compare.html"]
    lines = (out / "compare.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 * 2
    begins = {tuple(line.split(",")[:2]) for line in lines}
    assert begins >= {("method", "SNR"), ("noisy", "0.4"), ("halve", "0.1")}
    table = [line.split() for line in said.splitlines() if line]
    assert ["SNR", "0.4", "0.1", "ms/image", "MB"] in table
    assert "halve:factor=0.25|0.75" in [row[0] for row in table]


@pytest.mark.usefixtures("plugin")
def test_compare_refuses_before_it_writes(clean_path, tmp_path):
    out = tmp_path / "new"
    for words, expected in (
        (["--snr", "0.4", clean_path, "--methods", "halve"], "Missing argument"),
        (["--methods", "halved"], "got 'halved'. Did you mean halve?"),
        (["--methods", "halve:factor=2"], "halve: factor must be a number in [0, 1]; got 2."),
        (["--snr", "loud"], "--snr: must be numbers; got 'loud'."),
        (["--snr", "0.1", "0"], "snr must be a number"),
    ):
        first = [] if clean_path in words else [clean_path]
        assert_refused(call("compare", *first, *words, "--out", out), expected)
        assert not out.exists()
    assert_refused(call("compare", tmp_path / "absent.mrcs", "--out", out), "absent.mrcs")


@pytest.mark.usefixtures("plugin")
def test_compare_leaves_a_folder_of_other_files_alone(clean_path, tmp_path):
    before = files_under(tmp_path)
    words = ["--snr", "0.4", "--methods", "halve", "--out", tmp_path]
    assert_refused(call("compare", clean_path, *words), "no comparison made", "--out")
    assert files_under(tmp_path) == before
