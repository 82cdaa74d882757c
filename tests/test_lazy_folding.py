"""Large sums: one pass in chains, the same for any chunks, a bounded number of them alive."""

import logging
import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster

from emdask import lazy
from emdask.errors import StackError
from emdask.kernels.ctf import Optics
from emdask.method import Reconstructor, parameter

LIVE: dict[str, int] = {"now": 0, "most": 0}
LOCK = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Total:
    """Sum of the images, each times its half."""

    factor: float = parameter(1.0, "times which")


class Sums:
    """Counts how many of it are alive."""

    def __init__(self, total: Any, n_calls: int) -> None:
        self.total, self.n_calls = total, n_calls
        with LOCK:
            LIVE["now"] += 1
            LIVE["most"] = max(LIVE["most"], LIVE["now"])

    def __del__(self) -> None:
        with LOCK:
            LIVE["now"] -= 1


def insert(sums: Any, images: Any, params: Total, *, half: Any, optics: Any) -> Sums:
    weight = half * params.factor * (1.0 if optics is None else optics.defocus_u_A)
    added = np.einsum("n,nhw->hw", np.broadcast_to(weight, len(images)), images.astype(float))
    if sums is None:
        return Sums(added, 1)
    return Sums(sums.total + added, sums.n_calls + 1)


def combine(a: Sums, b: Sums) -> Sums:
    return Sums(a.total + b.total, a.n_calls + b.n_calls)


def finalize(sums: Sums, params: Total) -> xr.Dataset:
    return xr.Dataset({"total": (("y", "x"), sums.total), "n_calls": sums.n_calls})


RECORD = Reconstructor(params=Total, insert={"cpu": insert}, combine=combine, finalize=finalize)


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of two images of 8 x 8 and more, with four bytes a pixel."""
    monkeypatch.setattr(lazy, "FOLD_BYTES", 2 * 8 * 8 * 4)
    monkeypatch.setattr(lazy, "FOLD_VOLUMES", {"cpu": 0})
    LIVE.update(now=0, most=0)


def fold(images: da.Array, half: Any, **options: Any) -> Any:
    return lazy.fold_images(
        images, RECORD, Total(), name="total", device="cpu", along={"half": half}, **options
    )


@pytest.mark.parametrize("chunk", [1, 3, 20])
def test_sum_is_that_of_all_images_for_any_chunks(chunk: int) -> None:
    images = np.random.default_rng(0).normal(size=(20, 8, 8)).astype(np.float32)
    half = np.arange(20) % 2 + 1
    result = fold(da.from_array(images, chunks=(chunk, 8, 8)), half).compute()
    np.testing.assert_allclose(result.total, np.einsum("n,nhw->hw", half, images), rtol=1e-5)
    # Chunks of one image go two by two.
    assert int(result.n_calls) == {1: 10, 3: 7, 20: 1}[chunk]


def test_optics_go_along_with_their_images() -> None:
    images = np.ones((5, 8, 8), np.float32)
    optics = Optics(pixel_size_A=1.0, defocus_u_A=np.arange(5.0), defocus_v_A=1.0)
    lazy_images = da.from_array(images, chunks=(2, 8, 8))
    result = fold(lazy_images, np.ones(5), optics=optics).compute()
    assert float(result.total[0, 0]) == 10.0


def test_chains_hold_few_sums() -> None:
    images = da.ones((200, 8, 8), chunks=(1, 8, 8), dtype=np.float32)
    with dask.config.set(num_workers=2):
        result = fold(images, np.ones(200)).compute(scheduler="threads")
    assert int(result.n_calls) == 100
    # Two threads, each with what it was given and what it makes of it; and one being handed on.
    assert LIVE["most"] <= 6


@pytest.mark.parametrize(("n_threads", "n_calls"), [(1, 13), (4, 13), (20, 20), (400, 100)])
def test_sums_are_copied_seldom_but_all_threads_have_work(
    monkeypatch: pytest.MonkeyPatch, n_threads: int, n_calls: int
) -> None:
    """Two volumes of 8 x 8 x 8 are 16 images, as long as each thread finds as many."""
    monkeypatch.setattr(lazy, "FOLD_VOLUMES", {"cpu": 2})
    images = da.ones((200, 8, 8), chunks=(1, 8, 8), dtype=np.float32)
    with dask.config.set(num_workers=n_threads):
        result = fold(images, np.ones(200))
    assert int(result.compute(scheduler="sync").n_calls) == n_calls


def test_a_chunk_is_read_in_the_task_that_adds_it() -> None:
    images = da.ones((12, 8, 8), chunks=(1, 8, 8), dtype=np.float32) + 1
    tasks = dict(fold(images, np.ones(12)).dask)
    assert len(tasks) <= 6 + lazy._count_threads() + 2


def test_each_number_of_threads_has_its_own_tasks() -> None:
    images = da.ones((12, 8, 8), chunks=(1, 8, 8), dtype=np.float32)
    keys = []
    for n_threads in (1, 3):
        with dask.config.set(scheduler="threads", num_workers=n_threads):
            keys.append({str(key) for key in fold(images, np.ones(12)).dask})
    with dask.config.set(scheduler="synchronous"):
        assert {str(key) for key in fold(images, np.ones(12)).dask} == keys[0]
    assert not keys[0] & keys[1]


def test_bad_image_is_named() -> None:
    images = np.zeros((6, 8, 8), np.float32)
    images[4, 2, 2] = np.nan
    with pytest.raises(StackError, match="image 4 has 1 NaN"):
        fold(da.from_array(images, chunks=(2, 8, 8)), np.ones(6)).compute()


def test_on_a_cluster() -> None:
    images = np.random.default_rng(1).normal(size=(16, 8, 8)).astype(np.float32)
    array = da.from_array(images, chunks=(2, 8, 8))
    with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0"):
        result = fold(array, np.ones(16)).compute()
    np.testing.assert_allclose(result.total, images.sum(axis=0), rtol=1e-4, atol=1e-4)


def insert_slowly(sums: Any, images: Any, params: Total, *, half: Any, optics: Any) -> Any:
    """Take a while, so that there is time to die."""
    time.sleep(0.1)
    return np.array([images.sum(), 1.0]) + (0 if sums is None else sums)


def label(sums: Any, params: Total) -> xr.Dataset:
    return xr.Dataset({"total": sums[0], "n_calls": sums[1]})


def test_what_a_dead_worker_held_is_added_up_anew() -> None:
    record = Reconstructor(
        params=Total, insert={"cpu": insert_slowly}, combine=np.add, finalize=label
    )
    images = da.ones((80, 8, 8), chunks=(1, 8, 8), dtype=np.float32)
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        options: dict[str, Any] = {"name": "total", "device": "cpu", "along": {"half": np.ones(80)}}
        future = client.compute(lazy.fold_images(images, record, Total(), **options))
        time.sleep(1.5)
        assert not future.done()
        os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
        result = future.result(timeout=60)
    assert float(result.total) == 80 * 64
    assert int(result.n_calls) == 40
