"""Streaming a stack larger than memory holds (threads + 2) x 3 chunks at most."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHUNK_MIB, N_CHUNKS, THREADS = 8, 100, 2
SCRIPT = """
import resource, sys
import dask, numpy as np, dask.array as da
import emdask
from emdask.lazy import read_images

CHUNK, SIDE = 32, 256  # 8 MiB

def make(source, start, stop):
    return np.full((stop - start, SIDE, SIDE), 1.0, "f4")

def plus_one(images):
    return images + 1

def source(n_chunks):
    shape = (CHUNK * n_chunks, SIDE, SIDE)
    images = read_images(make, None, shape=shape, dtype="f4", chunk=CHUNK, name="make")
    return images

def peak_MiB(*_):
    # Not ru_maxrss: a process that is forked inherits its parent's peak.
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

if __name__ == "__main__":
    where, kind, steps, path = sys.argv[1:]
    n_chunks, threads = map(int, steps.split(","))
    if where == "cluster":
        from distributed import Client, LocalCluster
        size = {"n_workers": 1, "threads_per_worker": threads}
        cluster = LocalCluster(**size, dashboard_address="127.0.0.1:0")
        client = Client(cluster)
        peak = lambda: max(client.run(peak_MiB).values())
    else:
        dask.config.set(pool=__import__("concurrent.futures").futures.ThreadPoolExecutor(threads))
        peak = peak_MiB
    emdask.save_stack(source(4), path + "/warm.zarr")
    images = source(n_chunks)
    if kind == "zarr":
        emdask.save_stack(images, path + "/in.zarr")
        images = emdask.open_stack(path + "/in.zarr").data
    before = peak()
    if kind == "slice":
        images = images[CHUNK // 2 : -CHUNK // 2]
    out = images.map_blocks(plus_one, dtype="f4", name="plus")
    emdask.save_stack(out, path + "/out." + ("mrcs" if kind == "mrcs" else "zarr"))
    print("MiB", before, peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ("threads", "plain"),
        ("threads", "mrcs"),
        ("threads", "slice"),
        ("cluster", "zarr"),
        ("cluster", "slice"),
    ],
)
def test_streaming_holds_a_few_chunks(tmp_path: Path, where: str, kind: str) -> None:
    script = tmp_path / "stream.py"
    script.write_text(SCRIPT)
    arguments = [where, kind, f"{N_CHUNKS},{THREADS}", str(tmp_path)]
    result = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=True
    )
    _, before, after = result.stdout.split()[-3:]
    assert float(after) - float(before) < (THREADS + 2) * 3 * CHUNK_MIB
