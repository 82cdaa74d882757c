"""``emdask demo`` from end to end, on a few small images."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from emdask.demo import MARK_TEXT
from emdask.io import open_stack
from emdask.report import claim_folder

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
    claim_folder(folder, "demo", MARK_TEXT)
