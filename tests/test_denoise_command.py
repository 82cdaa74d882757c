"""``emdask denoise`` by a method that learns from particles with a CTF, and what its page shows."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from emdask.cli import app
from emdask.io import open_model, open_stack, save_stack
from emdask.phantoms import phantom
from emdask.plots import png_bytes
from emdask.simulators import simulate
from tests.command_line import local_threads

N_IMAGES, BOX_PX = 60, 24


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Particles, and what CWF made of them."""
    folder = tmp_path_factory.mktemp("made")
    volume = phantom(8, radius_A=20, width_A=6.0, seed=1).volume(BOX_PX, 3.0)
    save_stack(
        simulate(volume, N_IMAGES, snr=0.5, ctf={"defocus_A": (8_000, 12_000)}).images,
        folder / "in.mrcs",
    )
    with pytest.MonkeyPatch.context() as patch:
        # Starting workers takes seconds and has its own tests.
        patch.setattr("emdask.jobs.connect_quietly", local_threads)
        patch.chdir(folder)
        words = ["denoise", "in.star", "out.mrcs", "--method", "cwf", "--save-model", "m.zarr"]
        call(*words, "--report", "seen.html", "--preview", "seen.svg")
        words = ["denoise", "in.star", "kept.zarr", "--method", "cwf", "--model", "m.zarr"]
        call(*words, "--ctf", "keep", "--report", "kept.html")
    return folder


def call(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert (result.exit_code, result.stderr) == (0, ""), (result.stderr, result.exception)
    return result.stdout


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_page_shows_what_was_learnt(made_once):
    page, model = read(made_once / "seen.html"), open_model(made_once / "m.zarr")
    for words in (
        "<h1>Denoised with cwf</h1>",
        "What was learnt: mean and eigenimages",
        "What was learnt: eigenvalues",
        ">noise edge<",
        f"model.n_images = {N_IMAGES}",
    ):
        assert words in page
    values = model.eigenvalue.values / model.attrs["noise_variance"]
    shown = re.findall(r"<figcaption><b>([^<]+) × noise</b> k = (\d+)</figcaption>", page)
    assert 0 < len(shown) <= len(values)
    expected = zip(values, model.order.values, strict=True)
    assert shown == [(f"{value:.3g}", f"{order}") for value, order in expected][: len(shown)]
    # A model that was learnt before is shown as well.
    assert shown == re.findall(
        r"<b>([^<]+) × noise</b> k = (\d+)</figcaption>", read(made_once / "kept.html")
    )


def test_residual_is_free_of_particles_with_the_ctf_corrected_and_kept(made_once):
    """What is left over is the same noise either way: the model's, whose variance it has."""
    deviations = []
    for name, taken in (("seen.html", "CTF × denoised"), ("kept.html", "denoised")):
        page = read(made_once / name)
        assert f"noisy − {taken}: should look like noise" in page
        found = re.search(r"standard deviation of the residual</td><td>([^<]+)<", page)
        assert found is not None
        deviations.append(float(found[1]))
    assert deviations[0] == pytest.approx(deviations[1], rel=0.01)
    noise = open_model(made_once / "m.zarr").attrs["noise_variance"] ** 0.5
    assert 0.85 * noise < deviations[0] < 1.05 * noise
    assert "before - CTF × after" in read(made_once / "seen.svg")


def test_mean_on_the_page_is_that_of_the_model(made_once):
    mean = open_model(made_once / "m.zarr")["mean"].values
    data = base64.b64encode(png_bytes(mean)).decode("ascii")
    assert f'<img alt="mean" src="data:image/png;base64,{data}">' in read(made_once / "seen.html")


def test_info_tells_of_the_result_and_of_the_model(made_once, monkeypatch):
    monkeypatch.chdir(made_once)
    lines = [" ".join(line.split()) for line in call("info", "out.star").splitlines()]
    assert "ctf_state corrected" in lines
    step = lines[-1]
    assert step.startswith("cwf sigma=auto, ctf=correct")
    assert "model.noise_variance=" in step
    assert step.count("radius_px") == 1
    lines = [" ".join(line.split()) for line in call("info", "m.zarr").splitlines()]
    assert f"n_images {N_IMAGES}" in lines
    assert any(line.startswith("eigenimages component") for line in lines)
    assert re.fullmatch(
        r"\d+ of [\d,]+ eigenvalues (is|are) above the edge of the noise\.", lines[-1]
    )
    assert np.isfinite(open_stack("out.star").values).all()
