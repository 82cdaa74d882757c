"""The benchmark of learned denoisers runs, keeps what it has, and measures what it says."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("learned")
    for name in ("learned", "arguments", "tables"):
        sys.modules.pop(name, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Clean images of blobs in boxes of 64 px."""
    y, x = np.mgrid[:64, :64]
    rng = np.random.default_rng(0)
    images = np.zeros((90, 64, 64), np.float32)
    for image in images:
        for cy, cx in rng.uniform(20, 44, (5, 2)):
            image += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 30)
    np.save(tmp_path / "sphere_clean.npy", images)
    return tmp_path


@pytest.mark.timeout(300)
def test_it_shows_that_it_runs(
    learned: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, out = folder / "work", folder / "learned.md"
    given = ["--images", str(folder), "--work", str(work), "--out", str(out), "--quick"]
    learned.main([*given, "--tables", "ctf", "noise"])
    text = out.read_text()
    assert "these figures mean nothing" in text
    rows = json.loads((work / "ctf.json").read_text())
    assert set(rows) >= {"noisy", "unet", "autoencoder", "bm3d", "cwf, of all noisy images"}
    decibels = {name: float(cells[0].split(";")[1]) for name, cells in rows.items()}
    # What is known to denoise is seen to.
    assert decibels["bm3d"] > decibels["noisy"] + 5
    assert decibels["cwf, of all noisy images"] > decibels["noisy"] + 5
    # What is there is not made again, and what is told is what is kept.
    kept = work / "ctf.json"
    rows["unet"][0] = "as kept"
    kept.write_text(json.dumps(rows))
    learned.main([*given, "--tables", "ctf"])
    assert "as kept" in capsys.readouterr().out


def test_figures_are_of_images_scaled_by_the_clean_ones(learned: ModuleType) -> None:
    rng = np.random.default_rng(0)
    clean = rng.uniform(-3, 5, (4, 32, 32)).astype(np.float32)
    span = np.ptp(clean, axis=(1, 2), keepdims=True)
    figures = learned.Figures.of(clean + 0.1 * span, clean)
    assert figures.mse == pytest.approx(0.01, rel=1e-4)
    assert figures.psnr == pytest.approx(20, abs=1e-3)
    assert learned.Figures.of(clean + 1e-6 * span, clean).ssim == pytest.approx(1)


@pytest.mark.parametrize("snr", [1.0, 0.05])
def test_noise_is_of_the_snr(learned: ModuleType, snr: float) -> None:
    clean = np.random.default_rng(0).normal(size=(20, 64, 64)).astype(np.float32)
    noise = learned.add_noise(clean, snr, 1) - clean
    assert clean.var() / noise.var() == pytest.approx(snr, rel=0.02)
