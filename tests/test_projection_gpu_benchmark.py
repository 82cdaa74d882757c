"""The benchmark of projections on a card: all of it on the stand-in, and quickly on a card."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from emdask.backend import why_no_cuda
from emdask.simulators import scene as scenes

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "projection_gpu.py"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    spec = importlib.util.spec_from_file_location("benchmark_projection_gpu", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(why_no_cuda() is None, reason="there is a card")
def test_without_a_card_it_says_so_in_a_sentence() -> None:
    run = subprocess.run([sys.executable, str(BENCHMARK)], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("projection_gpu.py: an NVIDIA card is needed; ")
    assert run.stderr.count("\n") == 1
    assert not run.stdout


@pytest.mark.gpu
@pytest.mark.skipif(why_no_cuda() is not None, reason=f"no card: {why_no_cuda()}")
def test_quick_run_on_a_card(tmp_path: Path) -> None:
    out = tmp_path / "projection_gpu.md"
    command = [sys.executable, str(BENCHMARK), "--quick", "--seconds", "0.1", "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.count("images to sums") == 1
    assert out.read_text().rstrip() == run.stdout.rstrip()


def cells(lines: list[str], row: str) -> list[str]:
    (line,) = [line for line in lines if row in line]
    return line.strip("| ").split(" | ")[1:]


def test_tables_on_the_stand_in(
    gpu: ModuleType, cuda_on_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emdask.simulators.scene.N_SAMPLE", 8)
    cuda_on_host.strict = True
    scene, limits = gpu.Scene(32, 4), gpu.Limits(1e12, 1e12)
    lines = gpu.slice_table(scene, limits, 0)
    for accuracy, bound in (("rough", 5e-3), ("normal", 3e-4), ("high", 3e-5)):
        (row,) = [line for line in lines if f"emdask {accuracy}" in line and "images" in line]
        assert float(row.strip("| ").rpartition(" ")[2]) < bound
    assert cells(lines, "cufinufft")[0].startswith("cannot be imported: No module")
    # Two products for each of 4³ cells at all points of the half disc, a million million a second.
    points = sum(kx**2 + ky**2 < 256 for kx in range(16) for ky in range(-16, 16))
    assert float(cells(lines, "width 4: slices")[2]) == pytest.approx(128e-6 * points, abs=0.006)
    lines = gpu.sum_table(scene, limits, 0)
    assert float(cells(lines, "emdask rough")[1].replace(",", "")) > 0
    lines = gpu.host_table(scene, 2)
    for name in ("CTF |", "noise", "add up"):
        card_us, cpu_us, _ = map(float, cells(lines, name))
        assert min(card_us, cpu_us) > 0
    lines = gpu.whole_table(gpu.Scene(32, 60), 20)
    assert len(lines) == 8
    assert float(cells(lines, "reconstruct from it, without noise")[-1]) > 0.5
    scenes.prepare.forget()
