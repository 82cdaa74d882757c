"""What the engine adds to its kernels: graph building, scheduling and writing.

    python benchmarks/overhead.py            the figures of the documentation, about two minutes
    python benchmarks/overhead.py --small    the same in seconds, for the tests

1. Building ``denoise()`` on a stack of 10 million images of 128x128 in chunks of 1024.
2. A kernel that takes half a second a chunk, 200 chunks, 2 workers, into a Zarr store; the pure
   time is that of the kernel alone / 2.
3. Many small chunks on two threads: the time of a task, with a kernel that does nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, LocalCluster

import emdask
from emdask.lazy import read_images

SIDE_PX = 64


def make(source: Any, start: int, stop: int) -> np.ndarray:
    """Read images that are all zeros."""
    return np.zeros((stop - start, *source), "f4")


def pause(images: np.ndarray, seconds: float) -> np.ndarray:
    """Stand for a kernel of that time, which leaves the core to the rest of the engine."""
    time.sleep(seconds)
    return images + 1


def measure_building(n_images: int, chunk: int) -> float:
    """Return the seconds in which the graph of `denoise` is built."""
    shape = (n_images, 128, 128)
    images = read_images(make, shape[1:], shape=shape, dtype="f4", chunk=chunk, name="make")
    start = time.perf_counter()
    clean = emdask.denoise(images, method="bm3d", sigma=1.0)
    seconds = time.perf_counter() - start
    assert clean.shape == shape
    return seconds


def measure_saving(n_chunks: int, seconds: float, client: Client | None) -> tuple[float, float]:
    """Return the seconds that saving takes, and those of the kernels on two workers alone."""
    shape = (n_chunks * 8, SIDE_PX, SIDE_PX)
    images = read_images(make, shape[1:], shape=shape, dtype="f4", chunk=8, name="make")
    slow = images.map_blocks(pause, seconds=seconds, dtype="f4", name="pause")
    with tempfile.TemporaryDirectory() as folder:
        if client is not None:  # imports on the workers are not the engine's work
            emdask.save_stack(images[:32], Path(folder, "warm.zarr"))
        start = time.perf_counter()
        path = emdask.save_stack(slow, Path(folder, "out.zarr"))
        taken = time.perf_counter() - start
        assert float(emdask.open_stack(path)[-1].mean()) == 1
    return taken, n_chunks * seconds / 2


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    small = parser.parse_args().small
    n_images, n_chunks, seconds, n_tasks = (
        (100_000, 8, 0.05, 50) if small else (10_000_000, 200, 0.5, 10_000)
    )
    print(f"building denoise() on {n_images:,} images: {measure_building(n_images, 1024):.2f} s")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        taken, pure = measure_saving(n_chunks, seconds, client)
    times = f"{taken:.2f} s, {taken / pure:.3f} x the kernels' time"
    print(f"{n_chunks} chunks of {seconds} s, 2 workers: {times}")
    taken, _ = measure_saving(n_tasks, 0.0, None)
    print(f"{n_tasks} chunks without work, local threads: {1e3 * taken / n_tasks:.2f} ms a chunk")


if __name__ == "__main__":
    main()
