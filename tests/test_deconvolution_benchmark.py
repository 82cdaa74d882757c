"""The benchmark of the deconvolutions runs; its figures are not asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "deconvolution.py"


def test_quick_run_prints_every_table(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--quick", "--out", str(tmp_path / "out.md")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    for title in ("wiener: strength", "richardson_lucy: n_iterations", "lowpass: edge"):
        assert title in run.stdout
    assert "these figures mean nothing" in run.stdout
    for method in ("best Gaussian", "wiener, psf none", "bandpass"):
        assert f"| {method}" in run.stdout
    assert (tmp_path / "out.md").read_text().splitlines() == run.stdout.rstrip().splitlines()
