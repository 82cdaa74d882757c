"""``emdask train-denoiser`` keeps what `emdask.train_denoiser` learns."""

from __future__ import annotations

import shutil
from pathlib import Path

import dask.array as da
import numpy as np
import pytest

import emdask
from emdask.io.weights import open_weights
from emdask.stack import build_stack
from emdask.train_denoiser_command import CHECKPOINT_SUFFIX
from tests import command_line

SMALL = ("--width", "4", "--n-levels", "2", "--epochs", "2")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(20, 32, 32)).cumsum(axis=1).astype("f4")
    for name, images in (
        ("clean", clean),
        ("noisy", clean + 4 * rng.normal(size=clean.shape)),
        ("pair", clean + 4 * rng.normal(size=clean.shape)),
    ):
        stack = build_stack(da.from_array(images.astype("f4"), chunks=(5, -1, -1)))
        emdask.save_stack(stack, folder / f"{name}.mrcs")
    return folder


@pytest.fixture
def folder(made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words: object) -> tuple[int, str, str]:
    return command_line.call("train-denoiser", *words)


@pytest.mark.parametrize(
    ("images", "options", "method", "given"),
    [
        ("clean", ("--snr", "0.1:1"), "unet", "NOISY"),
        ("noisy", ("--clean", "clean.mrcs"), "unet", "noisy.mrcs"),
        ("noisy", ("--pair", "pair.mrcs", "--method", "noise2noise"), "noise2noise", "noisy.mrcs"),
        ("noisy", ("--method", "noise2void", "--hidden", "0.03"), "noise2void", "noisy.mrcs"),
    ],
)
def test_what_is_learnt_is_kept_and_serves(
    folder: Path, no_workers: None, images: str, options: tuple[str, ...], method: str, given: str
) -> None:
    code, said, errors = call(
        *(f"{images}.mrcs", "net.safetensors", *options, *SMALL),
        *("--log", "log.csv", "--report", "page.html"),
    )
    assert (code, errors) == (0, "")
    lines = said.splitlines()
    assert lines[0].startswith(f"{method}, 2 epochs, the best of them ")
    assert lines[0].endswith("-> net.safetensors")
    command = f"emdask denoise {given} denoised.zarr --method {method} --model net.safetensors"
    assert lines[-1] == f"Next: {command}"
    assert sorted(path.name for path in folder.glob("net*")) == ["net.safetensors"]
    about = open_weights("net.safetensors").about
    assert about["method"] == method
    assert about["width"] == "4"
    assert len((folder / "log.csv").read_text().splitlines()) == 3
    page = (folder / "page.html").read_text()
    assert f"<h1>Training of {method}</h1>" in page
    assert ("Clean" in page) == ("the truth, which it learnt from" in page) == (method == "unet")
    assert "never saw" not in page
    words = command.replace("NOISY", "noisy.mrcs").split()[1:]
    code, _, errors = command_line.call(*words)
    assert (code, errors) == (0, "")
    result = emdask.open_stack("denoised.zarr")
    weights = open_weights("net.safetensors")
    expected = emdask.denoise(emdask.open_stack("noisy.mrcs"), method, model=weights)
    np.testing.assert_array_equal(result.values, expected.values)
    told = result.attrs["provenance"][-1]["parameters"]["model"]
    assert told["digest"] == weights.digest


def test_an_interrupted_training_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("clean.mrcs", "net.safetensors", "--snr", "0.3", *SMALL)
    assert call(*words)[0] == 0
    whole = open_weights("net.safetensors")
    monkeypatch.setattr("emdask.denoiser_trainer.CHECKPOINT_S", 0.0)

    def interrupt(*_: object) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("emdask.denoiser_trainer.judge", interrupt)
        monkeypatch.setattr("sys.argv", ["emdask", "train-denoiser", *words, "--overwrite"])
        code, _, errors = call(*words, "--overwrite")
    assert code == 130
    assert "--resume" in errors
    assert (folder / f"net.safetensors{CHECKPOINT_SUFFIX}.safetensors").exists()
    assert call(*words, "--overwrite", "--resume")[0] == 0
    assert open_weights("net.safetensors").digest == whole.digest


def test_help_shows_the_parameters_of_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _, said, _ = call("--method", "noise2void", "--help")
    assert "Parameters of noise2void" in said
    assert "--reach-px" in said
    assert "--strength" not in said
    _, said, _ = command_line.call("--help")
    assert "train-denoiser" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("clean.mrcs", "net.zarr", "--snr", "1"), "must end in .safetensors"),
        (("clean.mrcs", "net.safetensors"), "learns from noisy images and clean ones"),
        (("clean.mrcs", "net.safetensors", "--snr", "a:b"), "must be a number or LOW:HIGH"),
        (("clean.mrcs", "net.safetensors", "--snr", "1", "--clean", "b.mrc"), "Leave out one"),
        (("no.mrcs", "net.safetensors", "--snr", "1"), "no.mrcs"),
        (("clean.mrcs", "net.safetensors", "--method", "bm3d"), "bm3d: is no network"),
        (("clean.mrcs", "net.safetensors", "--snr", "1", "--hidden", "1"), "no parameter of this"),
        (("clean.mrcs", "net.safetensors", "--snr", "1", "--start", "x"), "particles, micrographs"),
    ],
)
def test_wrong_input_is_told(folder: Path, words: tuple[str, ...], told: str) -> None:
    code, _, errors = call(*words)
    assert code == 2
    assert told in errors
    assert not list(folder.glob("net*"))


def test_networks_that_ship_are_named_on_the_command_line(folder: Path, no_workers: None) -> None:
    for words in ((), ("--model", "particles")):
        out = f"out{len(words)}.zarr"
        code, _, errors = command_line.call(
            "denoise", "noisy.mrcs", out, "--method", "unet", *words
        )
        assert (code, errors) == (0, "")
    results = [emdask.open_stack(f"out{n}.zarr").values for n in (0, 2)]
    np.testing.assert_array_equal(*results)
    code, _, errors = command_line.call(
        "denoise", "noisy.mrcs", "out.zarr", "--method", "unet", "--model", "particle"
    )
    assert code == 2
    assert "model must be one of particles, micrographs, or a .safetensors file" in errors
