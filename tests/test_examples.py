"""Each example runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from emdask.io import open_stack, save_stack
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
