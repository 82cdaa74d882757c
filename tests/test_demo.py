"""``emdask demo`` from end to end, on a few small images."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from emdask.demo import MARK, best_gaussian, prepare_folder
from emdask.io import open_stack
from emdask.metrics import psnr

CODE = """
from pathlib import Path
from emdask.demo import run_demo
if __name__ == "__main__":
    run_demo(Path("demo"), n_workers=1, small=True)
"""


def test_demo_writes_denoises_and_reports(tmp_path):
    (tmp_path / "run.py").write_text(CODE)
    words = [sys.executable, "run.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "emdask denoise particles.star denoised.mrcs --method bm3d" in done.stdout
    folder = tmp_path / "demo"
    page = (folder / "report.html").read_text(encoding="utf-8")
    for word in ("PSNR, bm3d", "PSNR, best Gaussian", "profile = auto", "wall time", "Residual"):
        assert word in page
    noisy, after = open_stack(folder / "particles.star"), open_stack(folder / "particles_bm3d.star")
    assert [step["step"] for step in after.attrs["provenance"]] == ["demo", "bm3d"]
    np.testing.assert_array_equal(after.rot_deg.values, noisy.rot_deg.values)
    assert after.values.std() < noisy.values.std() / 2
    prepare_folder(folder)


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "particles.mrcs").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="no demo made"):
        prepare_folder(tmp_path)
    with pytest.raises(FileExistsError, match="is a file"):
        prepare_folder(tmp_path / "particles.mrcs")
    assert [path.name for path in tmp_path.iterdir()] == ["particles.mrcs"]


def test_an_empty_or_new_folder_gets_the_mark(tmp_path):
    prepare_folder(tmp_path / "new" / "one")
    assert (tmp_path / "new" / "one" / MARK).is_file()


def test_best_gaussian_beats_narrower_and_wider_ones(rng):
    from scipy.ndimage import gaussian_filter

    y, x = np.mgrid[:64, :64]
    clean = np.exp(-((y - 30.0) ** 2 + (x - 33.0) ** 2) / 200)[None]
    noisy = clean + rng.normal(size=clean.shape)
    width_px, blurred = best_gaussian(noisy, clean)
    best = psnr(blurred, clean)
    for other in (width_px / 1.6, width_px * 1.6):
        assert psnr(gaussian_filter(noisy, (0, other, other)), clean) < best
