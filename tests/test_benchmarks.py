"""The benchmarks of codecs and of the way through the store run; what they compute is checked."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import emdask

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def run(name: str, *options: str) -> str:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a benchmark from its file: the name of one is also that of a standard module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        path = BENCHMARKS / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_codecs_prints_every_input_and_both_forms(tmp_path: Path) -> None:
    out = tmp_path / "results" / "codecs.md"
    printed = run("codecs", "--quick", "--out", str(out))
    for title in ("float32: particles", "float16", "int8: electron counts", "denoised by BM3D"):
        assert title in printed
    assert printed.count("Sharded") == printed.count("Not sharded") == 5
    assert out.read_text().splitlines() == printed.rstrip().splitlines()


def test_simulation_prints_stages_files_and_micrographs(tmp_path: Path) -> None:
    out = tmp_path / "simulation.md"
    printed = run("simulation", "--quick", "--out", str(out))
    assert all(stage in printed for stage in ("central slice", "CTF", "white noise"))
    assert "| 32 | zarr |" in printed
    assert "| 32 | mrcs |" in printed
    assert printed.count("| 2 of 32 px |") == 3
    assert "these figures mean nothing" in printed
    assert out.read_text().splitlines() == printed.rstrip().splitlines()


def test_filters_prints_every_sweep_and_marks_the_defaults(tmp_path: Path) -> None:
    out = tmp_path / "filters.md"
    printed = run("filters", "--quick", "--out", str(out))
    methods = ("gaussian", "median", "bilateral", "nl_means", "tv_bregman", "wavelet")
    assert all(f"{method}: " in printed for method in methods)
    assert "**auto**" in printed
    assert "these figures mean nothing" in printed
    assert printed.count("| best Gaussian, told the truth |") == 1
    assert out.read_text().rstrip() == printed.rstrip()


def test_storage_time_follows_the_ratio(load: Callable[[str], ModuleType]) -> None:
    codecs = load("codecs")
    assert codecs.storage_seconds(1, 0.5) == 4
    assert codecs.storage_seconds(4, 0.5) == 1


def test_filled_stacks_hold_the_same_pixels(
    load: Callable[[str], ModuleType], rng: np.random.Generator
) -> None:
    images = np.arange(2 * 4 * 5, dtype="i2").reshape(2, 4, 5)
    filled = load("codecs").fill(images, 5 * 4 * 4 * 2, rng)
    assert filled.shape == (5, 4, 4)
    for i, image in enumerate(filled):
        assert sorted(image.ravel()) == sorted(images[i % 2, :, :4].ravel())


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        (("--method", "bm3d"), ("read", "kernel", "write")),
        (
            ("--method", "copy", "--dtype", "int8", "--compression", "lz4"),
            ("read", "decode", "kernel", "encode", "write"),
        ),
    ],
)
def test_pipeline_prints_each_stage_and_the_whole(
    tmp_path: Path, options: tuple[str, ...], stages: tuple[str, ...]
) -> None:
    out = tmp_path / "pipeline.md"
    printed = run(
        "pipeline", "--quick", "--side", "32", "--threads", "1", *options, "--out", str(out)
    )
    rows = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("|")]
    assert [row for row in rows if row in ("read", "decode", "kernel", "encode", "write")] == [
        *stages
    ]
    assert {"1 thread of one process", 'connect("local"), 1 process'} <= set(rows)
    assert "these figures mean nothing" in printed
    assert out.read_text().rstrip() == printed.rstrip()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("pipeline", "--threads", "0"), "--threads: must be an integer of at least 1; got '0'"),
        (("pipeline", "--method", "bm3"), "pipeline.py: denoisers: no method of this name"),
        (("pipeline", "--folder", "absent"), "pipeline.py: absent"),
        (("codecs", "--images", "absent.mrc"), "codecs.py: absent.mrc"),
    ],
)
def test_wrong_arguments_are_a_sentence(command: tuple[str, ...], said: str) -> None:
    name, *words = command
    path = str(BENCHMARKS / f"{name}.py")
    result = subprocess.run([sys.executable, path, *words], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_ratios_are_those_of_each_round(load: Callable[[str], ModuleType]) -> None:
    pipeline = load("pipeline")
    spent = pipeline.Spent
    rounds = {"read": [spent(1, 0.5), spent(2, 1)], "kernel": [spent(3, 3), spent(1, 1)]}
    names = ("read", "kernel")
    assert [pipeline.slowest_wall(rounds, names, i) for i in (0, 1)] == [3, 2]
    assert [pipeline.stages_cpu(rounds, names, i) for i in (0, 1)] == [3.5, 2]
    assert pipeline.allowed_wall(rounds, names, 0, 1) == 3.5
    assert pipeline.spread([0.5, 0.25, 1]) == "0.50 (0.25 to 1.00)"


def test_an_error_in_a_thread_is_raised(load: Callable[[str], ModuleType]) -> None:
    def fail(thread: int) -> None:
        if thread == 1:
            raise ValueError("the second")

    with pytest.raises(ValueError, match="the second"):
        load("pipeline").run_threads(fail, 2)


def test_stages_of_a_card_run_on_the_stand_in(
    load: Callable[[str], ModuleType], cuda_on_host: Any, tmp_path: Path
) -> None:
    cuda_on_host.strict = True
    pipeline = load("pipeline")
    arguments = Namespace(device="cuda", method="copy", images=6, side=16, chunk=2, quick=False)
    vars(arguments).update(dtype="int8", compression="lz4", threads=2, cold=True)
    job = pipeline.make_job(arguments, tmp_path)
    stages = pipeline.list_stages(job)
    names = ["read", "decode", "to device", "kernel", "to host", "encode", "write"]
    assert [stage.name for stage in stages] == names
    for stage in stages:
        assert pipeline.measure_stage(job, stage).wall_s > 0
    assert pipeline.card_name(job) == ["the host"]
    (_, start_client), (where, _) = pipeline.list_wholes(job)
    assert where == 'connect("cuda"), 2 threads a card'
    assert pipeline.measure_whole(job, start_client).wall_s > 0
    assert not (tmp_path / "out.zarr").exists()
    pipeline.run_whole(job)
    read, made = (emdask.open_stack(tmp_path / f"{name}.zarr").values for name in ("in", "out"))
    assert read.dtype == np.int8
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made, read)


def test_ksvd_prints_every_table(tmp_path: Path) -> None:
    out = tmp_path / "ksvd.md"
    printed = run("ksvd", "--quick", "--images", "3", "--out", str(out))
    for title in ("learning and denoising", "the last pass", "Stacks", "What settings give"):
        assert title in printed
    assert printed.count("best Gaussian") == 3
    assert out.read_text().rstrip() == printed.rstrip()


def test_patches_of_a_peer_are_put_back_and_averaged(load: Callable[[str], ModuleType]) -> None:
    ksvd = load("ksvd")
    image = np.arange(400, dtype=np.float32).reshape(1, 20, 20)
    row = ksvd.Input(name="", clean=image, noisy=image, sigma=2.0, data_range=1.0)
    result = ksvd.code_image(row, 1.0, np.eye(64), lambda patches, atoms, tolerance: patches)
    np.testing.assert_allclose(result, image, rtol=1e-6)
    assert ksvd.draw_patches(row).shape == (169, 64)


def test_ddtf_prints_every_table(tmp_path: Path) -> None:
    out = tmp_path / "ddtf.md"
    printed = run("ddtf", "--quick", "--out", str(out))
    for title in (
        *("plain port, 8 px", "best Gaussian", "the paper's method", "strength = 0.8"),
        *("products of matrices and the rest", "A micrograph of 128 x 128"),
    ):
        assert title in printed
    assert "these figures mean nothing" in printed
    assert out.read_text().rstrip() == printed.rstrip()


def test_ddtf_is_the_sum_of_its_parts(
    load: Callable[[str], ModuleType], rng: np.random.Generator
) -> None:
    ddtf = load("ddtf")
    images = rng.normal(size=(2, 40, 33)).astype(np.float32)
    atoms = ddtf.learn_plain(images, 4)
    np.testing.assert_allclose(atoms.T @ atoms, np.eye(16), atol=1e-5)
    assert np.mean(ddtf.denoise_plain(images[0], atoms) ** 2) < 0.3
    frames = ddtf.cosine_frames(2)
    np.testing.assert_array_equal(
        ddtf.pyramid(images, frames, 3.3, 2),
        ddtf.denoise_images(images, frames, detail_threshold=3.3),
    )
    for symmetry in range(8):
        turned = ddtf.turn_images(images, symmetry)
        np.testing.assert_array_equal(ddtf.turn_back(turned, symmetry), images)
