"""The benchmark of the reconstruction runs; what it computes is checked."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    path = BENCHMARKS / "reconstruction.py"
    spec = importlib.util.spec_from_file_location("benchmark_reconstruction", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_tables_of_a_small_volume(benchmark: ModuleType, tmp_path: Path) -> None:
    array = np.zeros((24, 24, 24), np.float32)
    array[9:16, 10:15, 8:14] = 1.0
    np.save(tmp_path / "volume.npy", array)
    options = argparse.Namespace(volume=tmp_path / "volume.npy", pixel_size_A=2.0, quick=True)
    cases = benchmark.simulate_cases(benchmark.load_truth(options), 150)
    rows = [cells(line) for line in benchmark.noise_free_lines(cases[0])[4:]]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert float(rows[1][1]) < float(rows[0][1])
    assert float(rows[1][2]) > 0.98
    plain, with_ctf = ([cells(line) for line in benchmark.case_lines(c)[4:]] for c in cases[1:])
    assert [row[0].partition(",")[0] for row in plain] == [
        "emdask",
        "emdask",
        "ducc0",
        "torch-projectors",
    ]
    assert len(with_ctf) == 2
    for row in (*plain[:2], *with_ctf):
        assert 4.0 <= float(row[1]) < 24.0


def test_streaming_tells_memory_time_and_resolution(benchmark: ModuleType) -> None:
    before_MB, peak_MB, seconds, resolution_px = benchmark.stream_here(40)
    assert 0 < before_MB <= peak_MB
    assert seconds > 0
    assert 2 <= resolution_px < 10


@pytest.mark.parametrize("way", ["ducc0", "torch"])
def test_peers_reconstruct_the_same_volume(benchmark: ModuleType, way: str) -> None:
    pytest.importorskip({"ducc0": "ducc0", "torch": "torch_projectors"}[way])
    options = argparse.Namespace(volume=None, pixel_size_A=2.0, quick=True)
    case = benchmark.simulate_cases(benchmark.load_truth(options), 150)[0]
    volume = getattr(benchmark, f"reconstruct_{way}")(case.images)
    assert np.corrcoef(volume.ravel(), case.truth.values.ravel())[0, 1] > 0.9
