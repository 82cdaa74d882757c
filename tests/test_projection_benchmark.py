"""The benchmark of projections runs; its figures are not asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "projection.py"


def test_quick_run_prints_every_table() -> None:
    run = subprocess.run(
        [sys.executable, str(BENCHMARK), "--quick"], capture_output=True, text=True, check=True
    )
    titles = ("projections of", "how far the particle reaches", "slices added up")
    for title in (*titles, "Parts of a projection", "Least work"):
        assert title in run.stdout
    for accuracy in ("rough", "normal", "high"):
        assert f"| emdask, {accuracy} |" in run.stdout
