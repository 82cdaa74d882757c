"""The benchmark of BM3D runs; its figures are not asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "bm3d.py"


def test_quick_run_prints_every_table() -> None:
    run = subprocess.run(
        [sys.executable, str(BENCHMARK), "--quick"], capture_output=True, text=True, check=True
    )
    for title in ("Nominal sigma", "Best sigma", "Estimated sigma", "Microseconds", "Two threads"):
        assert title in run.stdout
