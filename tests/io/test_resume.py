"""Kill a running `save_stack` at any moment, go on, and get the same bytes."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import emdask
from emdask.io import writing
from emdask.io.mrc_output import MICROGRAPHS, MRCS
from emdask.io.output import Options, Output
from emdask.io.zarr_output import ZARR
from emdask.stack import build_stack

N_IMAGES, CHUNK = 60, 3
LOG = "EMDASK_TEST_LOG"


def make_block(block_info: Any = None) -> Any:
    """Make a block slowly, and note in a file that it was made."""
    start, stop = block_info[None]["array-location"][0]
    time.sleep(0.03)
    if LOG in os.environ:
        with open(os.environ[LOG], "a") as log:
            log.write(f"{start}\n")
    return np.stack(
        [np.random.default_rng(i).normal(size=(32, 32)) for i in range(start, stop)]
    ).astype("f4")


def make_stack(sigma: float = 1.0) -> xr.DataArray:
    """Make a lazy stack that every process makes alike."""
    chunks = ((CHUNK,) * (N_IMAGES // CHUNK), (32,), (32,))
    images = da.map_blocks(
        make_block, chunks=chunks, dtype="f4", meta=np.empty((0, 0, 0), "f4"), name=f"slow-{sigma}"
    )
    coords = {
        "micrograph": [f"m{i}.mrc" for i in range(N_IMAGES)],
        "defocus_u_A": np.arange(N_IMAGES) + 0.5,
    }
    provenance = [{"step": "test", "parameters": {"sigma": sigma}}]
    return build_stack(images, coords, {"pixel_size_A": 1.5, "provenance": provenance})


def read_tree(path: Path) -> dict[str, bytes]:
    """Return every file of the output, and those beside it of the same stem."""
    files = [p for p in path.parent.rglob("*") if p.is_file()]
    return {str(p.relative_to(path.parent)): p.read_bytes() for p in files}


def run_and_kill(path: Path, log: Path, n_chunks: int, seconds: float) -> int:
    """Save in another process and kill it that long after so many chunks; its exit status."""
    code = (
        "import test_resume, emdask; "
        f"emdask.save_stack(test_resume.make_stack(), {str(path)!r}, resume=True)"
    )
    folder = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": folder, LOG: str(log)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
        while process.poll() is None and len(log.read_text().split()) < n_chunks:
            time.sleep(0.002)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
    return process.returncode


@pytest.mark.parametrize("name", ["out.zarr", "out.mrcs", "out"])
def test_killed_and_resumed_is_the_same_to_the_byte(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    expected = read_tree(emdask.save_stack(make_stack(), tmp_path / "whole" / name))
    path, log = tmp_path / "killed" / name, tmp_path / "log"
    log.touch()
    moments = random.Random(name)
    for n_chunks in (1, 8, 15):
        status = run_and_kill(path, log, n_chunks, moments.uniform(0, 0.04))
        assert status == -signal.SIGKILL
        assert not path.exists()
    monkeypatch.setenv(LOG, str(log))
    emdask.save_stack(make_stack(), path, resume=True)
    assert read_tree(path) == expected
    # At most the chunks that ran when the process was killed, one a thread, were made twice.
    assert len(log.read_text().split()) <= N_IMAGES // CHUNK + 3 * 2 * (os.cpu_count() or 1)


@pytest.mark.parametrize("name", ["out.zarr", "out.mrcs", "out"])
@pytest.mark.parametrize("stop_at", [0, 1, 7, 19])
def test_only_missing_chunks_are_computed(
    tmp_path: Path, name: str, stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    log = tmp_path / "log"
    monkeypatch.setenv(LOG, str(log))

    def interrupt(written: int, _: int) -> None:
        if written > stop_at * CHUNK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        emdask.save_stack(make_stack(), path, on_progress=interrupt)
    assert not path.exists()
    time.sleep(0.2)  # what was running on a thread ends
    before = [int(line) for line in log.read_text().split()]
    log.write_text("")
    emdask.save_stack(make_stack(), path, resume=True)
    after = [int(line) for line in log.read_text().split()]
    assert len(before) + len(after) == N_IMAGES // CHUNK
    assert not set(before) & set(after)
    monkeypatch.delenv(LOG)
    log.unlink()
    (tmp_path / "whole").mkdir()
    expected = read_tree(emdask.save_stack(make_stack(), tmp_path / "whole" / name))
    ours = {key: value for key, value in read_tree(path).items() if not key.startswith("whole")}
    assert ours == expected


def interrupted(path: Path, stack: xr.DataArray) -> None:
    """Leave an unfinished output."""

    def interrupt(written: int, _: int) -> None:
        if written > 5 * CHUNK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        emdask.save_stack(stack, path, on_progress=interrupt)
    time.sleep(0.1)


@pytest.mark.parametrize("name", ["out.zarr", "out.mrcs"])
def test_another_job_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    interrupted(path, make_stack())
    with pytest.raises(FileExistsError, match=r"begun for another stack; different: metadata\."):
        emdask.save_stack(make_stack(sigma=2.0), path, resume=True)
    with pytest.raises(FileExistsError, match="different: shape, chunks, metadata"):
        emdask.save_stack(make_stack()[3:], path, resume=True)
    with pytest.raises(FileExistsError, match=r"different: the pixels of chunk \d"):
        emdask.save_stack(make_stack() + 1, path, resume=True)
    with pytest.raises(FileExistsError, match="unfinished output is here"):
        emdask.save_stack(make_stack(), path)
    stack = make_stack()
    renamed = stack.copy(data=stack.data.map_blocks(np.copy, dtype="f4", name="other"))
    emdask.save_stack(renamed, path, resume=True)
    np.testing.assert_array_equal(emdask.open_stack(path)[:6].values, stack[:6].values)


def test_overwrite_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "out.zarr"
    interrupted(path, make_stack())
    emdask.save_stack(make_stack(2.0), path, overwrite=True)
    assert emdask.open_stack(path).attrs["provenance"][0]["parameters"] == {"sigma": 2.0}
    assert [p.name for p in tmp_path.iterdir()] == ["out.zarr"]


def test_replacing_is_resumed_with_both(tmp_path: Path) -> None:
    path = tmp_path / "out.mrcs"
    old = np.zeros((4, 8, 8), "f4")
    emdask.save_stack(old, path)

    def interrupt(written: int, _: int) -> None:
        if written > 5 * CHUNK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        emdask.save_stack(make_stack(), path, overwrite=True, on_progress=interrupt)
    np.testing.assert_array_equal(emdask.open_stack(path).values, old)
    with pytest.raises(FileExistsError, match=r"unfinished output waits .*--resume.*--overwrite"):
        emdask.save_stack(make_stack(), path, resume=True)
    emdask.save_stack(make_stack(), path, resume=True, overwrite=True)
    assert emdask.open_stack(path).sizes["image"] == N_IMAGES


@pytest.mark.parametrize("name", ["out.zarr", "out.mrcs", "out"])
def test_a_crash_while_it_takes_its_name(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop at every step of renaming and cleaning; resume must always end well."""
    stack = build_stack(da.ones((4, 8, 8), dtype="f4", chunks=2), {"class_id": [1, 2, 3, 4]})
    (tmp_path / "whole").mkdir()
    expected = read_tree(emdask.save_stack(stack, tmp_path / "whole" / name))
    for step in range(16):
        folder = tmp_path / f"step{step}"
        folder.mkdir()
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            crash_at(step, patch)
            emdask.save_stack(stack, folder / name)
        emdask.save_stack(stack, folder / name, resume=True)
        assert read_tree(folder / name) == expected


def crash_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Stop the program before its renaming or removing of that number."""
    counter = itertools.count()

    def crash_before(action: Any) -> Any:
        def crash_or_act(*paths: Any) -> None:
            if next(counter) >= step:
                raise KeyboardInterrupt
            action(*paths)

        return crash_or_act

    patch.setattr(writing, "_remove", crash_before(writing._remove))
    patch.setattr(writing, "_rename", crash_before(writing._rename))


def test_two_processes_do_not_write_one_output(tmp_path: Path) -> None:
    path = tmp_path / "out.zarr"
    interrupted(path, make_stack())
    with open(tmp_path / "out.zarr.partial" / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FileExistsError, match="another process is writing this output"):
            emdask.save_stack(make_stack(), path, resume=True)


def test_half_a_line_of_the_journal_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "out.mrcs"
    interrupted(path, make_stack())
    (journal,) = (tmp_path / "out.mrcs.partial").glob("content-*/workshop/journal-*")
    text = journal.read_text()
    last = text.rstrip("\n").rpartition("\n")[2]
    journal.write_text(text[: text.rindex(last) + len(last) // 2])
    emdask.save_stack(make_stack(), path, resume=True)
    (tmp_path / "whole").mkdir()
    whole = emdask.save_stack(make_stack(), tmp_path / "whole" / "out.mrcs")
    assert path.read_bytes() == whole.read_bytes()
    assert (
        json.dumps(sorted(p.name for p in tmp_path.iterdir()))
        == '["out.mrcs", "out.star", "whole"]'
    )


@pytest.mark.parametrize(
    ("name", "output"), [("out.zarr", ZARR), ("out.mrcs", MRCS), ("out", MICROGRAPHS)]
)
def test_a_task_that_outlives_its_job_finds_no_place(
    tmp_path: Path, name: str, output: Output
) -> None:
    """What runs on a cluster goes on when its job is interrupted, perhaps for minutes."""
    path = tmp_path / name
    old, new = make_stack(), make_stack(2.0) + 1
    interrupted(path, old)
    (content,) = (tmp_path / f"{name}.partial").glob("content-*")
    target = output.plan(old, content, name, Options())
    images = old[:CHUNK].values
    late: list[str] = []

    def write_late(written: int, _: int) -> None:
        try:
            output.write(target, images, 0)
        except FileNotFoundError:
            late.append("refused")

    emdask.save_stack(new, path, overwrite=True, on_progress=write_late)
    assert len(late) == N_IMAGES // CHUNK
    saved = emdask.open_stack(path / "micrographs.star" if name == "out" else path)
    np.testing.assert_array_equal(saved[:CHUNK].values, new[:CHUNK].values)
    with pytest.raises(FileNotFoundError):
        output.write(target, images, 0)
    assert not (tmp_path / f"{name}.partial").exists()


def test_a_crash_while_an_unfinished_output_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(4):
        path = tmp_path / f"{step}.zarr"
        interrupted(path, make_stack())
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            crash_at(step, patch)
            emdask.save_stack(make_stack(2.0), path, overwrite=True)
        emdask.save_stack(make_stack(2.0), path, overwrite=True)
        assert emdask.open_stack(path).attrs["provenance"][0]["parameters"] == {"sigma": 2.0}
