"""What compression costs and brings on images of cryo-EM, for the default of `save_stack`.

    python benchmarks/codecs.py [--images FILE] [--quick] [--out FILE]

Every codec writes and reads the same pixels in shards through emdask's own code and, in the same
round, through zarr-python; then the same without shards, a file for each chunk. All runs on one
core and from the page cache. Rates are those of images, not of compressed bytes: gigabytes of
pixels for each second of CPU time, medians over rounds in which every codec had its turn.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import zarr
from arguments import QUICK, errors_as_sentences, parse_count
from inputs import simulate_particles
from tables import describe_machine, table, write_lines
from zarr.codecs import BloscCodec

import emdask
from emdask.io import shards as emdask_shards
from emdask.io.shards import Shards, read_shards, write_shard

Images = npt.NDArray[Any]
SIDE_PX = 128
CHUNK_BYTES = 4 * 2**20
SHARD_BYTES = 16 * 2**20
# GB/s of storage for each core: a shared file system, a disk, a fast local disk.
STORAGE_RATES = (0.05, 0.2, 1.0)


@dataclass(frozen=True)
class Codec:
    """A compression as Blosc knows it."""

    name: str
    level: int = 0
    shuffle: str = "noshuffle"

    def __str__(self) -> str:
        return self.name if self.name == "none" else f"{self.name} {self.level}, {self.shuffle}"


CODECS = (
    Codec("none"),
    *(Codec("lz4", 1, shuffle) for shuffle in ("noshuffle", "shuffle", "bitshuffle")),
    Codec("lz4", 5, "bitshuffle"),
    *(Codec("zstd", 1, shuffle) for shuffle in ("noshuffle", "shuffle", "bitshuffle")),
    *(Codec("zstd", 3, shuffle) for shuffle in ("shuffle", "bitshuffle")),
    Codec("zstd", 5, "bitshuffle"),
)
QUICK_CODECS = (CODECS[0], CODECS[3], CODECS[7])


@dataclass(frozen=True, kw_only=True)
class Job:
    """One store of one codec: sharded, or a file for each chunk."""

    codec: Codec
    sharded: bool


@dataclass(frozen=True)
class Spent:
    """Seconds of a call: of the CPU, and by the clock."""

    cpu_s: float
    wall_s: float


Rates = dict[tuple[Job, str], list[Spent]]


def main() -> None:
    """Measure and print all tables."""
    arguments = parse_arguments()
    use_one_core()
    # Opened before hours of work, read after.
    stacks = [(path.name, emdask.open_stack(path)) for path in arguments.images]
    size, n_rounds, codecs = (
        (2 * 2**20, 1, QUICK_CODECS) if arguments.quick else (SHARD_BYTES, arguments.rounds, CODECS)
    )
    machine = describe_machine("emdask", "zarr", "imagecodecs", "numpy")
    lines = [f"{machine}; one core, {size / 2**20:g} MiB a shard, {n_rounds} rounds", ""]
    lines += [QUICK, ""] if arguments.quick else []
    print("\n".join(lines), flush=True)
    for name, images in make_inputs(size, stacks):
        spent, ratios = measure_codecs(images, codecs, n_rounds)
        rows = describe_input(name, images, spent, ratios)
        lines += rows
        print("\n".join(rows), flush=True)
    write_lines(lines, arguments.out)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="compression of stacks of cryo-EM")
    parser.add_argument("--images", type=Path, action="append", default=[], help="also of a file")
    parser.add_argument("--rounds", type=parse_count, default=7, help="repetitions; medians")
    parser.add_argument("--quick", action="store_true", help="few codecs, small stores: seconds")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    return parser.parse_args()


def use_one_core() -> None:
    """Keep to one core, as a task of Dask does, and zarr-python to one thread."""
    os.environ["BLOSC_NTHREADS"] = "1"
    zarr.config.set({"threading.max_workers": 1})
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


# Inputs


def make_inputs(n_bytes: int, stacks: list[tuple[str, Any]]) -> Iterator[tuple[str, Images]]:
    """Yield stacks of about that size: simulated, seeded, and those opened, with their names."""
    rng = np.random.default_rng(20261122)
    particles = simulate_particles(64, SIDE_PX, rng)
    noise = particles + rng.normal(size=particles.shape) * np.sqrt(particles.var() / 0.1)
    counts = rng.poisson(1 + 0.3 * particles)
    clean = emdask.denoise(noise.astype("f4"), "bm3d").compute()
    yield "float32: particles and noise, SNR 0.1", fill(noise.astype("f4"), n_bytes, rng)
    yield "float16: the same", fill(noise.astype("f2"), n_bytes, rng)
    yield "int8: electron counts, 1 a pixel", fill(counts.astype("i1"), n_bytes, rng)
    yield "int16: the same noise, 100 grey levels a sigma", fill(digitise(noise), n_bytes, rng)
    yield "float32: denoised by BM3D", fill(clean, n_bytes, rng)
    for name, stack in stacks:
        yield f"{stack.dtype}: {name}", fill(stack.values, n_bytes, rng)


def digitise(noise: Images) -> Images:
    """Round to integers as a camera's software does."""
    return np.clip(np.round(100 * noise / noise.std()), -32768, 32767).astype("i2")


def fill(images: Images, n_bytes: int, rng: np.random.Generator) -> Images:
    """Repeat images in any of eight orientations until they take that many bytes."""
    side = min(images.shape[1:])
    square = images[:, :side, :side]
    n = max(round(n_bytes / square[0].nbytes), 1)
    turned = [np.rot90(square[i % len(square)], rng.integers(4)) for i in range(n)]
    return np.stack([image[:, ::-1] if rng.integers(2) else image for image in turned])


# Measures


def measure_codecs(
    images: Images, codecs: tuple[Codec, ...], n_rounds: int
) -> tuple[Rates, dict[Codec, float]]:
    """Seconds of every call in every round, and bytes of images / bytes of the shard."""
    jobs = [Job(codec=codec, sharded=sharded) for sharded in (True, False) for codec in codecs]
    spent: Rates = defaultdict(list)
    ratios: dict[Codec, float] = {}
    # What one job leaves behind, as garbage and free memory, must not always meet the same other.
    order = np.random.default_rng(20261122)
    gc.disable()
    # The first round fills caches and loads code; a single one is for tests.
    n_warm = min(n_rounds - 1, 1)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(n_warm + n_rounds):
            gc.collect()
            for i in order.permutation(len(jobs)):
                job = jobs[i]
                measured, n_bytes = measure_job(images, job, Path(folder))
                if job.sharded:
                    ratios[job.codec] = images.nbytes / n_bytes
                for what, seconds in measured.items() if number >= n_warm else ():
                    spent[job, what].append(seconds)
    gc.enable()
    return spent, {codec: ratios[codec] for codec in codecs}


def measure_job(images: Images, job: Job, folder: Path) -> tuple[dict[str, Spent], int]:
    """Write and read with emdask, then with zarr-python; also the bytes of emdask's files."""
    inner = min(max(CHUNK_BYTES // images[0].nbytes, 1), len(images))
    shard = len(images) if job.sharded else inner
    array = create_array(folder / "array", images, job, inner)
    shards = Shards(
        folder=str(folder / "array"),
        shape=images.shape,
        dtype=images.dtype.newbyteorder("<").str,
        shard=shard,
        inner=inner,
        compression=job.codec.name,
    )
    drafts = folder / "drafts"

    def write() -> None:
        for start in range(0, len(images), shard):
            write_shard(shards, images[start : start + shard], start, drafts)

    def write_zarr() -> None:
        array[:] = images

    with mock.patch.multiple(
        emdask_shards, COMPRESSION_LEVEL=job.codec.level, SHUFFLE=job.codec.shuffle
    ):
        measured = {"write": timed(write)[0]}
    n_bytes = sum(file.stat().st_size for file in (folder / "array/c").rglob("*/0/0"))
    measured["read"], ours = timed(lambda: read_shards(shards, 0, len(images)))
    shutil.rmtree(folder / "array/c")
    measured["write, zarr"], _ = timed(write_zarr)
    measured["read, zarr"], theirs = timed(lambda: array[:])
    assert np.array_equal(ours, images)
    assert np.array_equal(theirs, images)
    shutil.rmtree(folder / "array")
    return measured, n_bytes


def create_array(path: Path, images: Images, job: Job, inner: int) -> Any:
    """Make the metadata of a store; files of a chunk alone where it is not sharded."""
    compressor = None
    if job.codec.name != "none":
        compressor = BloscCodec(
            cname=job.codec.name,  # type: ignore[arg-type]
            clevel=job.codec.level,
            shuffle=job.codec.shuffle,  # type: ignore[arg-type]
            typesize=images.dtype.itemsize,
        )
    rest = images.shape[1:]
    return zarr.create_array(
        path,
        shape=images.shape,
        dtype=images.dtype,
        chunks=(inner, *rest),
        shards=(len(images), *rest) if job.sharded else None,
        compressors=compressor,
        filters=None,
        fill_value=0,
        config={"write_empty_chunks": True},
    )


def timed(function: Callable[[], Any]) -> tuple[Spent, Any]:
    """Seconds of a call and what it returned."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return Spent(time.process_time() - cpu, time.perf_counter() - wall), result


# Text


def describe_input(
    name: str, images: Images, spent: Rates, ratios: dict[Codec, float]
) -> list[str]:
    """Tables of one input."""
    lines = [f"## {name}", ""]
    for sharded in (True, False):
        form = "Sharded" if sharded else "Not sharded: a file a chunk"
        lines += [f"{form}; GB of images a CPU second (a second by the clock)", ""]
        head = ["codec", "ratio", "write", "read", "write, zarr-python", "read, zarr-python"]
        rows = [
            [str(codec), f"{ratio:.2f}", *rate_cells(images.nbytes, spent, codec, sharded)]
            for codec, ratio in ratios.items()
        ]
        lines += [*table(head, rows), ""]
    return [*lines, *storage_table(images.nbytes, spent, ratios), ""]


def rate_cells(n_bytes: int, spent: Rates, codec: Codec, sharded: bool) -> list[str]:
    """Medians of the rates, emdask's before zarr-python's."""
    job = Job(codec=codec, sharded=sharded)
    names = ("write", "read", "write, zarr", "read, zarr")
    return [
        f"{n_bytes / 1e9 / median_cpu(spent[job, name]):.2f} "
        f"({n_bytes / 1e9 / statistics.median(s.wall_s for s in spent[job, name]):.2f})"
        for name in names
    ]


def median_cpu(spent: list[Spent]) -> float:
    """Median of the CPU seconds."""
    return max(statistics.median(seconds.cpu_s for seconds in spent), 1e-9)


def storage_table(n_bytes: int, spent: Rates, ratios: dict[Codec, float]) -> list[str]:
    """Seconds to write and read once through storage of several rates, sharded, with emdask."""
    shares = [f"{rate:g} GB/s" for rate in STORAGE_RATES]
    lines = ["Seconds a GB of images, written and read once by emdask where a core's share of the"]
    lines += ["storage is:", ""]
    rows = []
    for codec, ratio in ratios.items():
        job = Job(codec=codec, sharded=True)
        cpu_s = sum(median_cpu(spent[job, name]) for name in ("write", "read")) / n_bytes * 1e9
        cells = [f"{cpu_s + storage_seconds(ratio, rate):.1f}" for rate in STORAGE_RATES]
        rows.append([str(codec), *cells])
    return [*lines, *table(["codec", *shares], rows)]


def storage_seconds(ratio: float, rate_gb_per_s: float) -> float:
    """Seconds in which a gigabyte of images, compressed, goes to storage and comes back."""
    return 2 / (ratio * rate_gb_per_s)


if __name__ == "__main__":
    with errors_as_sentences():
        main()
