"""The benchmark of BM3D on a card: what it computes, and all of it on the stand-in for a card."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from emdask.backend import why_no_cuda
from emdask.kernels.bm3d_plan import NORMAL
from tests.cuda_host import cupy_on_host

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "bm3d_gpu.py"
H100 = {"name": "H100", "capability": "90", "n_multiprocessors": 132, "clock_hz": 1.98e9}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    spec = importlib.util.spec_from_file_location("bm3d_gpu", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bm3d_gpu", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(why_no_cuda() is None, reason="there is a card")
def test_without_a_card_it_says_so_in_a_sentence() -> None:
    run = subprocess.run([sys.executable, str(BENCHMARK)], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("bm3d_gpu.py: an NVIDIA card is needed; ")
    assert run.stderr.count("\n") == 1
    assert not run.stdout


@pytest.mark.gpu
@pytest.mark.skipif(why_no_cuda() is not None, reason=f"no card: {why_no_cuda()}")
def test_quick_run_on_a_card(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--quick", "--seconds", "0.1"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.count("Whole, each at its best strength") == 3
    assert "emdask normal" in run.stdout


def test_psnr_of_a_known_error(gpu: ModuleType) -> None:
    clean = np.zeros((2, 4, 4), np.float32)
    assert gpu.psnr(clean + 0.1, clean, 1) == pytest.approx(20, abs=1e-5)
    assert gpu.psnr(clean + 25.5, clean, 255) == pytest.approx(20, abs=1e-5)


def test_arithmetic_floor_of_an_h100(gpu: ModuleType) -> None:
    card = gpu.Card(**H100)
    assert card.operations_per_s == pytest.approx(33.45e12, rel=1e-3)
    # A floor for direct matching of 10.8 ms was worked out by hand for this image and card.
    direct = gpu.direct_matching(NORMAL)
    assert gpu.floor_ms(direct, (1, 4096, 4096), NORMAL, card) == pytest.approx(10.8, abs=0.1)
    counts = gpu.count_operations(NORMAL)
    assert direct == 39**2 * 128
    assert counts["matching for the hard filter"] == 39**2 * 27
    assert gpu.floor_ms(1, (4, 128, 128), NORMAL, card) == pytest.approx(
        4 * gpu.floor_ms(1, (1, 128, 128), NORMAL, card)
    )
    assert gpu.Card(**H100 | {"capability": "80"}).operations_per_s == card.operations_per_s / 2


def test_haar_operations_are_those_of_its_butterflies(gpu: ModuleType) -> None:
    # 8 + 4 + 2 + 1 sums and as many differences for each of 64 pixels.
    assert gpu.haar_operations(16) == 2 * 15 * 64


def test_grey_levels_are_mapped_to_the_unit_range(
    gpu: ModuleType, rng: np.random.Generator
) -> None:
    noisy = 3 + 2 * rng.normal(size=(1, 32, 32))
    mapped = {
        name: (noisy - offset) * factor
        for name in gpu.MAPPINGS
        for offset, factor in [gpu.map_to_unit(noisy, 2, name, 10)]
    }
    assert mapped["least to largest"].min() == 0
    assert mapped["least to largest"].max() == pytest.approx(1)
    assert mapped["sigma at 25/255"].std() == pytest.approx(noisy.std() / 2 * 25 / 255)
    assert mapped["sigma at 25/255"].mean() == pytest.approx(0.5)
    np.testing.assert_allclose(mapped["data range"], noisy / 10)


def test_matching_belongs_to_the_filter_that_follows(gpu: ModuleType) -> None:
    calls = [("pad_images", 1), ("start_sums", 2), ("match_blocks", 3), ("filter_hard", 4)]
    calls += [("match_blocks", 5), ("filter_hard", 6), ("finish_sums", 7), ("start_sums", 8)]
    calls += [("match_blocks", 9), ("filter_wiener", 10), ("finish_sums", 11)]
    assert gpu.sum_stages(calls) == {
        "padding": 1,
        "clearing": 10,
        "matching for the hard filter": 8,
        "hard filter": 10,
        "matching for the Wiener filter": 9,
        "Wiener filter": 10,
        "finishing": 18,
    }


def test_the_best_of_a_sweep(gpu: ModuleType) -> None:
    found = {(1.0, "a"): 20.0, (1.2, "a"): 21.0, (1.0, "b"): 22.0, (1.2, "b"): 21.5}
    best = gpu.choose_best(found, (1.0, "a"))
    assert (best.strength, best.setting, best.psnr, best.nominal_psnr) == (1.0, "b", 22.0, 20.0)


def test_the_bar_is_held_against_a_profile_that_is_no_worse(gpu: ModuleType) -> None:
    measured = [
        gpu.Measured(program="emdask normal", times_ms=[60, 50, 55], psnr=29.3),
        gpu.Measured(program="emdask fast", times_ms=[20], psnr=28.0),
        gpu.Measured(program="bm3d-triton", times_ms=[385], psnr=28.4),
        gpu.Measured(program="BM3DCUDA", times_ms=[165], psnr=27.9),
        gpu.Measured(program="bm3d-cupy", failure="OutOfMemoryError: no room"),
    ]
    triton, cuda = gpu.bar_lines(measured)
    assert triton.startswith("emdask normal at 29.300 dB is 7.00 times as fast as bm3d-triton")
    assert "3.00 times as fast as BM3DCUDA" in cuda
    better = gpu.Measured(program="BM3DCUDA", times_ms=[1], psnr=31)
    assert gpu.bar_lines([*measured, better])[0].startswith("None of our profiles reaches")
    row = gpu.Input(
        name="x", clean=np.ones((3, 8, 8)), noisy=np.ones((3, 8, 8)), sigma=1, data_range=1
    )
    lines = "\n".join(gpu.whole_table(row, measured))
    assert "| bm3d-triton | 385.00 (385.00 to 385.00) | 7.8 | 28.400 | 7.00 |" in lines
    assert "failed: OutOfMemoryError" in lines


def test_made_inputs_have_their_noise(gpu: ModuleType) -> None:
    for row in gpu.make_inputs(quick=True):
        assert (row.noisy - row.clean).std() == pytest.approx(row.sigma, rel=0.02)
        assert row.noisy.dtype == row.clean.dtype == np.float32
        if "SNR" in row.name:
            assert row.clean.var() / row.sigma**2 == pytest.approx(0.1, rel=1e-3)


def test_stated_memory_of_the_largest_micrograph(gpu: ModuleType) -> None:
    stated = gpu.stated_bytes((11520, 8184), NORMAL, 64, 256 * 2**20)
    assert 68 * 11520 * 8184 < stated < 7 * 2**30


def test_all_tables_on_the_stand_in_for_a_card(
    gpu: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
    cuda_on_host: cupy_on_host.Card,
) -> None:
    monkeypatch.setattr(gpu, "STRENGTHS", (1.0, 1.2))
    monkeypatch.setattr(gpu, "LARGE_PX", (24, 20))
    monkeypatch.setattr(gpu, "PROFILES", {"fast": gpu.PROFILES["fast"]})
    monkeypatch.setitem(cupy_on_host.ATTRIBUTES, "ClockRate", 1_980_000)
    clean = np.zeros((2, 24, 20), np.float32)
    clean[:, 8:16, 6:14] = 4
    row = gpu.with_noise("squares", clean, 1.0, 4.0, rng)
    arguments = Namespace(seconds=0.0, quick=False)
    programs = gpu.find_programs()
    card = gpu.describe_card()
    text = "\n".join(gpu.describe_run(card, programs))
    tables = ["\n".join(t) for t in gpu.make_tables([row], programs, card, arguments)]
    assert "132 multiprocessors at 1.98 GHz" in text
    sweep, whole, bar, stages, large, copying = tables
    assert "| emdask fast |" in sweep
    assert "| emdask fast |" in whole
    noisy_psnr = gpu.psnr(row.noisy, clean, 4)
    assert float(whole.splitlines()[-1].split("|")[4]) > noisy_psnr + 3
    assert bar == "No peer with a bar was measured."
    for stage in ("padding", "matching for the hard filter", "Wiener filter", "rest", "whole"):
        assert f"| {stage} |" in stages
    assert "One micrograph of 24 x 20" in large
    assert copying.startswith("Copying on the card:")
