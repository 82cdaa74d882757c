"""The benchmark of BM3D on a card: what it computes, and all of it on the stand-in for a card."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

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


def test_a_peer_with_copies_is_held_to_its_time_without_them(gpu: ModuleType) -> None:
    measured = [
        gpu.Measured(program="emdask normal", times_ms=[50], psnr=29.3),
        gpu.Measured(program="emdask normal, host to host", times_ms=[60], psnr=29.3),
        gpu.Measured(program="bm3d-triton", times_ms=[400], psnr=28.4),
        gpu.Measured(program="BM3DCUDA", times_ms=[180], copies_ms=[40, 30, 20], psnr=27.9),
    ]
    triton, cuda, from_host = gpu.bar_lines(measured)
    assert triton.startswith("emdask normal at 29.300 dB is 8.00 times as fast as bm3d-triton")
    assert "3.00 times as fast as BM3DCUDA at 27.900 dB less its copies (bar 2.5" in cuda
    assert from_host == "From host to host it is 3.00 times as fast as BM3DCUDA with its copies."
    assert len(gpu.bar_lines([measured[0], *measured[2:]])) == 2
    image = np.ones((3, 8, 8))
    row = gpu.Input(name="x", clean=image, noisy=image, sigma=1, data_range=1)
    lines = "\n".join(gpu.whole_table(row, measured))
    assert (
        "| emdask normal, host to host | 60.00 (60.00 to 60.00) | 50.0 | 29.300 | 1.20 |" in lines
    )
    assert "| BM3DCUDA | 180.00 (180.00 to 180.00) | 16.7 | 27.900 | 3.60 |" in lines
    assert "| BM3DCUDA less copies of 30.00 ms | 150.00 | 20.0 | 27.900 | 3.00 |" in lines


def test_copies_beyond_the_time_leave_nothing(gpu: ModuleType) -> None:
    noise = gpu.Measured(program="BM3DCUDA", times_ms=[1], copies_ms=[2], psnr=20)
    ours = gpu.Measured(program="emdask fast", times_ms=[1], psnr=21)
    assert "is 0.00 times as fast as BM3DCUDA" in gpu.bar_lines([ours, noise])[0]


class Clip:
    """A clip as VapourSynth has it, of one plane, whose frames are made when they are read."""

    def __init__(self, *images: Callable[[], np.ndarray]) -> None:
        self.images = images

    def frames(self) -> Iterator[list[np.ndarray]]:
        return ([image()] for image in self.images)


class Frame(list[np.ndarray]):
    """A frame of planes."""

    def copy(self) -> Frame:
        return Frame(plane.copy() for plane in self)


def make_vapoursynth(calls: list[dict[str, float]]) -> ModuleType:
    """A stand-in for VapourSynth whose BM3D adds one and keeps what it was given."""

    def blank(*, length: int, height: int, width: int, **_: object) -> Clip:
        return Clip(*[lambda: np.zeros((height, width), "f4")] * length)

    def modify(clip: Clip, clips: Clip, selector: Callable[..., Frame]) -> Clip:
        return Clip(
            *(lambda n=n, f=f: selector(n=n, f=Frame([f()]))[0] for n, f in enumerate(clip.images))
        )

    def bm3d(clip: Clip, ref: Clip | None = None, **settings: float) -> Clip:
        calls.append(settings)
        return Clip(*(lambda f=f: f() + 1 for f in (ref or clip).images))

    module = ModuleType("vapoursynth")
    module.__spec__ = importlib.machinery.ModuleSpec("vapoursynth", None)
    std = SimpleNamespace(BlankClip=blank, ModifyFrame=modify)
    vars(module).update(
        GRAYS="gray, single precision",
        core=SimpleNamespace(std=std, bm3dcuda=SimpleNamespace(BM3D=bm3d)),
    )
    return module


def test_vapoursynth_is_timed_with_and_without_bm3d(
    gpu: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
    cuda_on_host: cupy_on_host.Card,
) -> None:
    import cupy

    calls: list[dict[str, float]] = []
    monkeypatch.setitem(sys.modules, "vapoursynth", make_vapoursynth(calls))
    (program,) = gpu.find_vapoursynth()
    images = rng.normal(size=(3, 6, 5)).astype("f4")
    prepared = program.prepare(cupy.asarray(images), 0.1, "", 1.0)
    np.testing.assert_array_equal(prepared.finish(prepared.call()), images + np.float32(2))
    assert [call["sigma"] for call in calls] == [25.5, 25.5]
    np.testing.assert_array_equal(np.stack(prepared.copy()), images)
    assert len(calls) == 2
    row = gpu.Input(name="x", clean=images, noisy=images, sigma=0.1, data_range=1)
    best = gpu.Best(strength=1, setting="", psnr=0, nominal_psnr=0)
    measured = gpu.measure(program, row, best, 0.0)
    assert (len(measured.times_ms), len(measured.copies_ms)) == (1, 1)
    assert not gpu.measure(gpu.find_programs()[0], row, best, 0.0).copies_ms


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
    cuda_on_host.strict = True
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
    assert "host to host" not in sweep
    noisy_psnr = gpu.psnr(row.noisy, clean, 4)
    there, from_host = (line.split(" | ") for line in whole.splitlines()[-2:])
    assert (there[0], from_host[0]) == ("| emdask fast", "| emdask fast, host to host")
    assert float(there[3]) == float(from_host[3]) > noisy_psnr + 3
    assert bar == "No peer with a bar was measured."
    for stage in ("padding", "matching for the hard filter", "Wiener filter", "rest", "whole"):
        assert f"| {stage} |" in stages
    assert "One micrograph of 24 x 20" in large
    assert copying.startswith("Copying on the card:")
