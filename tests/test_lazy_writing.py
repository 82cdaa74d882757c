"""`write_images`: every chunk once, on threads and on a cluster; errors stop it at once."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster

from emdask.errors import StackError
from emdask.lazy import write_images

SHAPE = (40, 3, 2)


def write_file(folder: str, images: Any, start: int) -> None:
    """Write a block as a file named after its first image."""
    np.save(Path(folder, f"{start}.npy"), images)


def fail_at_eight(images: Any) -> Any:
    """Refuse the block that holds the number 48."""
    if (images == 48).any():
        raise StackError("stack: image 8 has 1 NaN or infinite pixels.")
    return images


def make_images(chunks: Any = 4) -> da.Array:
    """Number the pixels."""
    return da.arange(240, chunks=240).reshape(SHAPE).rechunk((chunks, 3, 2))


@pytest.fixture(params=["threads", "cluster"])
def runner(request: pytest.FixtureRequest) -> Any:
    """Run on local threads and on a cluster with one process."""
    if request.param == "threads":
        yield None
        return
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0"
        ) as c,
        Client(c) as client,
    ):
        yield client


@pytest.mark.parametrize("chunks", [4, 7, 40, ((1, 9, 5, 25),)[0]])
def test_every_chunk_is_written_once(runner: Any, tmp_path: Path, chunks: Any) -> None:
    images = make_images(chunks)
    progress: list[tuple[int, int]] = []
    write_images(
        images,
        write_file,
        str(tmp_path),
        name="write",
        on_progress=lambda done, total: progress.append((done, total)),
    )
    starts = np.cumsum([0, *images.chunks[0][:-1]])
    assert sorted(int(p.stem) for p in tmp_path.iterdir()) == starts.tolist()
    whole = np.concatenate([np.load(tmp_path / f"{start}.npy") for start in starts])
    np.testing.assert_array_equal(whole, np.arange(240).reshape(SHAPE))
    assert len(progress) == len(starts)
    assert progress[-1] == (40, 40)


def test_chunks_that_are_done_are_not_computed(runner: Any, tmp_path: Path) -> None:
    progress: list[int] = []
    images = make_images().map_blocks(fail_at_eight, dtype=int)
    write_images(
        images,
        write_file,
        str(tmp_path),
        name="write",
        done={0, 2},
        on_progress=lambda done, _: progress.append(done),
    )
    assert sorted(int(p.stem) for p in tmp_path.iterdir()) == [4, *range(12, 40, 4)]
    assert progress[0] == 12


def test_shared_blocks_are_kept(runner: Any, tmp_path: Path) -> None:
    # A chunk of the result that is a whole chunk of the source, which another one needs too.
    source = make_images(10) + 0
    images = da.concatenate([source[:10], source[5:15], source[:10]])
    write_images(images, write_file, str(tmp_path), name="write")
    starts = np.cumsum([0, *images.chunks[0][:-1]])
    whole = np.concatenate([np.load(tmp_path / f"{start}.npy") for start in starts])
    np.testing.assert_array_equal(whole, images.compute())


def test_an_error_arrives_unchanged(runner: Any, tmp_path: Path) -> None:
    images = make_images().map_blocks(fail_at_eight, dtype=int)
    with pytest.raises(StackError, match="image 8 has 1 NaN"):
        write_images(images, write_file, str(tmp_path), name="write")
    assert not (tmp_path / "8.npy").exists()


def test_the_same_job_is_written_again(runner: Any, tmp_path: Path) -> None:
    """A cluster that remembers the tasks of a job must not take them for those of the next."""
    for _ in range(2):
        folder = tmp_path / "out"
        folder.mkdir()
        write_images(make_images(), write_file, str(folder), name="write")
        assert len(list(folder.iterdir())) == 10
        shutil.rmtree(folder)


def pause(images: Any) -> Any:
    """Take a while, so that there is time to die."""
    time.sleep(0.05)
    return images + 1


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    images = make_images(1).map_blocks(pause, dtype=int, meta=np.empty((0, 0, 0), int))
    killed: list[int] = []

    def kill_once(written: int, _: int) -> None:
        if written >= 5 and not killed:
            killed.append(next(iter(cluster.workers.values())).pid)
            os.kill(killed[0], signal.SIGKILL)

    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster),
    ):
        write_images(images, write_file, str(tmp_path), name="write", on_progress=kill_once)
    assert killed
    whole = np.concatenate([np.load(tmp_path / f"{i}.npy") for i in range(len(images))])
    np.testing.assert_array_equal(whole, np.arange(240).reshape(SHAPE) + 1)


def test_the_benchmark_of_overhead_runs() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "overhead.py"
    command = [sys.executable, str(script), "--small"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second, third = result.stdout.splitlines()
    assert first.startswith("building denoise() on 100,000 images")
    assert second.endswith("x the kernels' time")
    assert third.endswith("ms a chunk")


def test_a_graph_that_holds_volumes_is_sent_without_a_warning(runner: Any, tmp_path: Path) -> None:
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 B"}):
        write_images(make_images(), write_file, str(tmp_path), name="write-file")
    assert len(list(tmp_path.glob("*.npy"))) == 10
