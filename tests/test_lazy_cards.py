"""Mixed clusters: what needs a card goes to workers that declare one; nothing waits for ever."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, Scheduler, SpecCluster, Worker, get_worker

import emdask
from emdask.backend import array_namespace, why_no_cuda
from emdask.errors import DeviceError
from emdask.lazy import map_images, map_tiles, read_images, write_images
from emdask.method import Method, parameter

N_IMAGES = 24
WITH_CARD, WITHOUT = 1.0, 0.0


@dataclass(frozen=True, kw_only=True)
class Who:
    """A method whose result says which worker it ran on."""

    pause_s: float = parameter(0.02, "time that a chunk takes", "s")


def _who(images: Any, params: Who) -> Any:
    time.sleep(params.pause_s)
    xp = array_namespace(images)
    return xp.full(images.shape, WITH_CARD if get_worker().name == "card" else WITHOUT, "f4")


METHOD = Method(params=Who, apply={"cpu": _who, "cuda": _who}, halo=lambda params: 1)


def _zeros(source: None, start: int, stop: int) -> np.ndarray:
    return np.zeros((stop - start, 8, 8), "f4")


def _save(folder: str, images: np.ndarray, start: int) -> None:
    np.save(Path(folder, f"{start}.npy"), images)


@pytest.fixture(autouse=True)
def _settings_return() -> Iterator[None]:
    """Graphs for cards are optimised by a setting, which outlives the client."""
    yield
    dask.config.config.pop("array_optimize", None)


@contextmanager
def start_workers(**resources: dict[str, int]) -> Iterator[Any]:
    """Start workers of these names and resources in this process."""
    workers = {
        name: {"cls": Worker, "options": {"nthreads": 2, "resources": declared, "name": name}}
        for name, declared in resources.items()
    }
    options = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    scheduler = {"cls": Scheduler, "options": options}
    with SpecCluster(workers=workers, scheduler=scheduler) as cluster, Client(cluster) as client:
        yield client


@pytest.fixture
def mixed(cuda_on_host: Any) -> Iterator[Any]:
    """Client of a worker with a card and one without."""
    cuda_on_host.strict = True
    with start_workers(card={"GPU": 2}, plain={}) as client:
        yield client


@pytest.fixture
def images() -> da.Array:
    return read_images(_zeros, None, shape=(N_IMAGES, 8, 8), dtype="f4", chunk=1, name="read-zeros")


def make_chains(images: da.Array, device: str) -> dict[str, da.Array]:
    """Build graphs of several shapes; every pixel is 1 where all of the method ran on the card."""
    there = emdask.denoise(images, Who(), device=device)
    between = emdask.denoise(images + 1, Who(), device=device)
    twice = emdask.denoise(there.rechunk((3, 8, 8)), Who(), device=device)
    tiles = map_tiles(images[:2], METHOD, Who(), tile_px=4, name="who", device=device)
    return {
        "one step": there,
        "slices and arithmetic": (there[1:] * 3 - 1)[:, 2:] / 2,
        "two branches": da.concatenate([between, there[5:9]]),
        "two steps": twice,
        "a mean": da.stack([there.mean(axis=(1, 2))] * 2).reshape((2, N_IMAGES, 1)),
        "tiles": tiles.rechunk((1, 8, 8)),
    }


@pytest.mark.parametrize("chain", make_chains(da.zeros((N_IMAGES, 8, 8)), "cpu"))
def test_what_needs_a_card_goes_to_it(
    mixed: Any, images: da.Array, chain: str, tmp_path: Path
) -> None:
    lazy = make_chains(images, "cuda")[chain]
    np.testing.assert_array_equal(lazy.compute(), WITH_CARD)
    if lazy.chunks[1:] == tuple((size,) for size in lazy.shape[1:]):
        write_images(lazy, _save, str(tmp_path), name="write")
        written = [np.load(path) for path in tmp_path.iterdir()]
        assert sum(map(len, written)) == len(lazy)
        np.testing.assert_array_equal(np.concatenate(written), WITH_CARD)


def test_asking_for_cards_makes_no_more_tasks(mixed: Any, images: da.Array) -> None:
    marked, plain = (make_chains(images, device) for device in ("cuda", "cpu"))
    for chain in marked:
        with_cards, without = dask.optimize(marked[chain])[0], dask.optimize(plain[chain])[0]
        assert len(dict(with_cards.dask)) == len(dict(without.dask)), chain
    (one_step,) = dask.optimize(marked["one step"])
    # One task a chunk reads and computes; one more describes the source.
    assert len(dict(one_step.dask)) == N_IMAGES + 1
    # What was optimised is an array like any other.
    np.testing.assert_array_equal((0 * one_step[3:] + 1).compute(), np.ones((N_IMAGES - 3, 8, 8)))


def test_a_graph_built_before_the_client_is_written_by_cards(
    cuda_on_host: Any, images: da.Array, tmp_path: Path
) -> None:
    cuda_on_host.strict = True
    lazy = emdask.denoise(images, Who(), device="cuda")
    with start_workers(card={"GPU": 2}, plain={}):
        write_images(lazy, _save, str(tmp_path), name="write")
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(np.load(path), WITH_CARD)
    assert len(list(tmp_path.iterdir())) == N_IMAGES


def test_auto_runs_anywhere(mixed: Any, images: da.Array, tmp_path: Path) -> None:
    lazy = emdask.denoise(images, Who(), device="auto")
    assert set(np.unique(lazy.compute())) == {WITHOUT, WITH_CARD}
    write_images(lazy, _save, str(tmp_path), name="write")
    values = {float(np.load(path).flat[0]) for path in tmp_path.iterdir()}
    assert values == {WITHOUT, WITH_CARD}


@pytest.mark.skipif(why_no_cuda() is None, reason="there is a card")
def test_nothing_waits_for_a_card_that_nobody_declares(images: da.Array, tmp_path: Path) -> None:
    with start_workers(one={}, two={"memory": 7}):
        lazy = map_images(images, METHOD, Who(), name="who", device="cuda")
        with pytest.raises(DeviceError, match="NVIDIA card"):
            lazy.compute()
        with pytest.raises(DeviceError, match="NVIDIA card"):
            write_images(lazy, _save, str(tmp_path), name="write")


def test_a_job_for_plain_workers_follows_one_for_cards(
    cuda_on_host: Any, images: da.Array, tmp_path: Path
) -> None:
    """Leaving a mixed cluster leaves nothing behind that waits for cards."""
    cuda_on_host.strict = True
    with start_workers(card={"GPU": 2}, plain={}):
        first = emdask.denoise(images, Who(), device="cuda")
        np.testing.assert_array_equal(first.compute(), WITH_CARD)
    with start_workers(plain={}):
        np.testing.assert_array_equal(
            emdask.denoise(images + 0, Who(), device="cuda").compute(), WITHOUT
        )
        write_images(first, _save, str(tmp_path), name="write")
    assert len(list(tmp_path.iterdir())) == N_IMAGES
