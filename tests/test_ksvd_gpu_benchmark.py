"""The benchmark of K-SVD on a card: what it computes, and all of it on the stand-in for a card."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from emdask.backend import why_no_cuda

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "ksvd_gpu.py"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    spec = importlib.util.spec_from_file_location("benchmark_ksvd_gpu", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(why_no_cuda() is None, reason="there is a card")
def test_without_a_card_it_says_so_in_a_sentence() -> None:
    run = subprocess.run([sys.executable, str(BENCHMARK)], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("ksvd_gpu.py: an NVIDIA card is needed; ")
    assert run.stderr.count("\n") == 1
    assert not run.stdout


@pytest.mark.gpu
@pytest.mark.skipif(why_no_cuda() is not None, reason=f"no card: {why_no_cuda()}")
def test_quick_run_on_a_card(tmp_path: Path) -> None:
    out = tmp_path / "ksvd_gpu.md"
    command = [sys.executable, str(BENCHMARK), "--quick", "--seconds", "0.1", "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.count("full resolution") == 3
    assert out.read_text().rstrip() == run.stdout.rstrip()


def test_share_of_patches_that_need_atoms(gpu: ModuleType) -> None:
    """Those on the edge between two halves alone."""
    image = np.zeros((1, 40, 40), np.float32)
    image[:, :, 20:] = 100
    row = gpu.Input(name="", clean=image, noisy=image, sigma=1.0, data_range=1)
    # Of every third place, 0 to 30, those at 15 and 18 hold the edge.
    assert gpu.active_share(row, 64) == pytest.approx(2 / 11)


def test_tables_on_the_stand_in(
    gpu: ModuleType, cuda_on_host: Any, rng: np.random.Generator
) -> None:
    clean = gpu.make_inputs(quick=True)[2].clean[:2, :40, :40]
    row = gpu.Input(
        name="two particles",
        clean=clean,
        noisy=(clean + rng.normal(scale=0.2, size=clean.shape)).astype(np.float32),
        sigma=0.2,
        data_range=1,
    )
    model = gpu.learn(row)
    cuda_on_host.strict = True
    whole = dict(line.strip("| ").split(" | ") for line in gpu.whole_table(row, 1.0, model, 0)[4:])
    assert float(whole["PSNR, dB"]) > gpu.psnr(row.noisy, clean, 1) + 5
    median, largest = map(float, whole["card - CPU, sigma: median, largest"].split(", "))
    assert median < 1e-5
    assert largest < 0.1
    assert gpu.card_line(gpu.describe_card()).startswith("the host: 132 multiprocessors")
    card = gpu.Card(name="H100", capability="90", n_multiprocessors=132, clock_hz=1.98e9)
    lines = gpu.pass_table(row, model.atoms.values[0], card, 3e12, 0)
    assert lines[0] == f"| full resolution, {2 * 33**2:,} patches | ms |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| a pass",
        "| the same, no patch with atoms",
        f"| floor: products, {gpu.active_share(row, 64):.0%} of patches with all atoms",
        "| floor: estimates written and read",
    ]
