"""Each example runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from emdask.io import open_stack, open_volume, save_stack, save_volume
from emdask.phantoms import phantom
from emdask.simulators.demo_images import demo_particles

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_denoise_stack_of_simulated_images(tmp_path, capsys):
    picture = load("denoise_stack").main(out=str(tmp_path / "out.zarr"))
    assert picture.read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    before, after = (float(w.split()[0]) for w in said.partition("PSNR:")[2].split("->"))
    assert after > before + 5


def test_denoise_stack_of_a_file(tmp_path, capsys):
    save_stack(demo_particles(2, box_px=32, pixel_size_A=8.0)[0], tmp_path / "in.mrcs")
    load("denoise_stack").main(str(tmp_path / "in.star"), str(tmp_path / "out.mrcs"))
    assert "PSNR" not in capsys.readouterr().out
    assert open_stack(tmp_path / "out.star").shape == (2, 32, 32)


def test_reconstruct_a_phantom(tmp_path, capsys):
    out = tmp_path / "a.mrc"
    curves = load("reconstruct").main(out=str(out), n_images=200, box_px=32)
    said = capsys.readouterr().out
    halves, truth = (float(line.split(" Å (")[0].split()[-1]) for line in said.splitlines()[1:])
    assert open_volume(out).shape == (32, 32, 32)
    for picture in (curves, out.with_suffix(".png")):
        assert picture.read_bytes().startswith(b"\x89PNG")
    # FSC 0.143 of half maps is to mean FSC 0.5 with the truth.
    assert truth < 25
    assert abs(halves / truth - 1) < 0.25


def test_reconstruct_a_map(tmp_path, capsys):
    truth = phantom(8, radius_A=20, width_A=8.0).volume(16, 4.0)
    source = save_volume(truth, tmp_path / "truth.mrc")
    load("reconstruct").main(str(source), str(tmp_path / "b.mrc"), n_images=50)
    assert "50 images of (16, 16) pixels, 4.0 Å" in capsys.readouterr().out
    assert open_volume(tmp_path / "b.mrc").attrs["pixel_size_A"] == 4.0


def test_pick_simulated_micrographs(tmp_path, capsys):
    out = tmp_path / "a.mrcs"
    picture = load("picking").main(str(out), n_micrographs=2, size_px=512, methods=("log",))
    said = capsys.readouterr().out.splitlines()
    name, n_picks, _, recall, *_ = said[2].split()
    assert (name, float(recall) > 0.8) == ("log", True)
    particles = open_stack(out.with_suffix(".star"))
    assert f"saved {len(particles)} particles of (80, 80) pixels" in said[3]
    assert 0 < len(particles) < int(n_picks)
    with Image.open(picture) as pixels:
        assert pixels.size == (4 * 82 - 2, 2 * 82 - 2)
    # Light particles, centred.
    mean = particles.values.mean(axis=0)
    assert mean[30:50, 30:50].mean() > mean[:10].mean() + mean[:10].std()


def test_views_are_found_by_what_cwf_makes_of_the_images(capsys):
    rows = load("views").main(n_images=200, n_directions=40, n_turns=12, bm3d=False)
    said = capsys.readouterr().out
    assert all(name in said for name in rows)
    cwf = rows.pop("cwf")
    best = rows.pop("without noise and CTF")
    alone = rows.pop("cwf of the references alone*")
    tuned = rows.pop("phase_flip, lowpass, disc")
    assert rows.keys() >= {"as recorded", "phase_flip", "lowpass", "wiener", "wiener of the stack"}
    for name, row in rows.items():
        # References that are as noisy as the images are of no use before.
        assert cwf.noisy_references.correct > 3 * row.noisy_references.correct, name
        assert cwf.noisy_references.error_deg < 0.75 * row.noisy_references.error_deg, name
        assert cwf.squared_error < row.squared_error / 8, name
        assert cwf.nearest.correct > row.nearest.correct + 10, name
        if name not in ("as recorded", "phase_flip"):
            assert cwf.clean_references.correct > row.clean_references.correct + 5, name
    # Clean ones find the views without it, too.
    for row in (rows["as recorded"], rows["phase_flip"], tuned, alone):
        assert abs(row.clean_references.correct - cwf.clean_references.correct) < 6
    assert alone.noisy_references.correct > cwf.noisy_references.correct
    assert alone.noisy_references.correct > tuned.noisy_references.correct
    assert best.clean_references.correct > alone.clean_references.correct


def test_picture_of_the_readme(tmp_path):
    path = load("readme_picture").main(tmp_path / "a.png", box_px=32, size_px=128)
    with Image.open(path) as picture:
        assert picture.width == 1400


def test_the_readme_has_its_picture():
    path = EXAMPLES.parent / "docs" / "images" / "before-after.png"
    if not (EXAMPLES.parent / "README.md").is_file():
        pytest.skip("no README beside the package")
    assert path.stat().st_size < 350_000
    assert "docs/images/before-after.png" in (EXAMPLES.parent / "README.md").read_text("utf-8")


def test_conformations_are_counted(capsys):
    found = load("conformations").main(n_images=1200, snr=0.3)
    said = capsys.readouterr().out
    assert float(said.partition("class right: ")[2].split()[0]) > 90
    assert found.kept.sum() < 60
    assert abs(found.proportion - [0.5, 0.3, 0.2]).max() < 0.25
