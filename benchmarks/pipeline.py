"""Where the time of a stack goes from Zarr through a denoiser to Zarr, and how well stages overlap.

    python benchmarks/pipeline.py [--device DEVICE] [--method bm3d|copy] [--quick] [--out FILE]

Each stage (read, decode, to device, kernel, to host, encode, write) runs alone on the same chunks
with the same number of threads; then the whole, through ``open_stack``, ``denoise`` and
``save_stack``. Its rate over that of the slowest stage alone is 1 where the stages overlap
perfectly; over that of the stages one after another it is 1 where they do not overlap and the
engine adds nothing. On the CPU the stages share the cores and cannot overlap, so there the whole is
also held against the rate that the sum of their CPU time allows if all cores are free; where others
use them, the ratio of CPU times is what remains. Method "copy" is the way of the data without a
kernel: the most that any kernel can get. All rounds are interleaved; medians of ratios are shown.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import numpy.typing as npt
import psutil
from arguments import QUICK, errors_as_sentences, parse_count
from tables import describe_machine, table, write_lines

import emdask
from emdask.backend import DEVICES, check_device, resolve_device
from emdask.blocks_cuda import THREADS_A_CARD
from emdask.denoisers import FAMILY
from emdask.io.output import replace_file
from emdask.io.shards import Shards, compose_shard, decode_chunk
from emdask.io.zarr_output import COMPRESSIONS, choose_compression, choose_inner
from emdask.lazy import map_images, read_images
from emdask.method import Method, resolve_method

Images = npt.NDArray[Any]
SNR = 0.1


@dataclass(frozen=True, kw_only=True)
class Copy:
    """Parameters of the method that only copies: none."""


def copy_images(images: Any, params: Copy) -> Any:
    """Stand for a kernel that takes no time."""
    return images.astype(np.float32)


COPY = Method(params=Copy, apply={"cpu": copy_images, "cuda": copy_images})


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is measured.

    Parameters
    ----------
    folder
        Where the stores lie.
    source, target
        How images lie in the stores that are read and written.
    name, method, params
        The denoiser.
    device
        "cpu" or "cuda".
    n_threads
        Threads, or worker processes of one thread.
    is_cold
        Whether the input is dropped from the page cache before each measurement.
    """

    folder: Path
    source: Shards
    target: Shards
    name: str
    method: Method
    params: Any
    device: str
    n_threads: int
    is_cold: bool

    @property
    def n_images(self) -> int:
        """Images of the stack."""
        return self.source.shape[0]

    @property
    def starts(self) -> range:
        """First image of each chunk."""
        return range(0, self.n_images, self.source.shard)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of the way: ``prepare(job)`` for each thread, ``run(job, prepared, start)``."""

    name: str
    prepare: Callable[[Job], Any]
    run: Callable[[Job, Any, int], None]


@dataclass(frozen=True)
class Spent:
    """Seconds of a run: by the clock, and of the CPU in all threads and processes."""

    wall_s: float
    cpu_s: float


Rounds = dict[str, list[Spent]]


def main() -> None:
    """Measure and print all tables."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        job = make_job(arguments, Path(folder))
        lines = [*describe_job(job), *([QUICK, ""] if arguments.quick else [])]
        print("\n".join(lines), flush=True)
        rounds = measure_rounds(job, 1 if arguments.quick else arguments.rounds)
    rows = [*stage_table(job, rounds), "", *whole_table(job, rounds), ""]
    print("\n".join(rows), flush=True)
    write_lines([*lines, *rows], arguments.out)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="a stack from Zarr through a denoiser to Zarr")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--method", default="bm3d", help="a denoiser, or copy: no kernel")
    parser.add_argument("--images", type=parse_count, help="images; 512, or 65536 on a card")
    parser.add_argument("--side", type=parse_count, default=128, help="px")
    parser.add_argument("--chunk", type=parse_count, help="images a chunk; 32, or 2048 on a card")
    parser.add_argument("--dtype", choices=("float32", "float16", "int8"), default="float32")
    parser.add_argument("--compression", choices=COMPRESSIONS, default="auto", help="of both")
    threads = "threads; as many as cores, or 4 on a card"
    parser.add_argument("--threads", type=parse_count, help=threads)
    parser.add_argument("--cold", action="store_true", help="read from disk, not the page cache")
    parser.add_argument("--folder", type=Path, help="where the stores are made")
    parser.add_argument("--rounds", type=parse_count, default=5, help="repetitions; medians")
    parser.add_argument("--quick", action="store_true", help="a small stack, one round: seconds")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    return parser.parse_args()


# The stack


def make_job(arguments: argparse.Namespace, folder: Path) -> Job:
    """Write the input store and plan the output."""
    name, method, params = find_method(arguments.method)
    device = resolve_device(check_device(arguments.device, name, method.apply), method.apply)
    n_images, chunk = (65_536, 2048) if device == "cuda" else (512, 32)
    if arguments.quick:
        n_images, chunk = 16, 4
    shape = (arguments.images or n_images, arguments.side, arguments.side)
    chunk = min(arguments.chunk or chunk, shape[0])
    images = read_images(
        make_images,
        (arguments.side, arguments.dtype),
        shape=shape,
        dtype=arguments.dtype,
        chunk=chunk,
        name="make",
    )
    with dask.config.set(scheduler="threads"):
        emdask.save_stack(images, folder / "in.zarr", compression=arguments.compression)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    plan = {"shape": shape, "shard": chunk}
    return Job(
        folder=folder,
        source=plan_shards(folder / "in.zarr", arguments.dtype, arguments.compression, plan),
        target=plan_shards(folder / "out.zarr", "float32", arguments.compression, plan),
        name=name,
        method=method,
        params=params,
        device=device,
        n_threads=arguments.threads or (THREADS_A_CARD if device == "cuda" else cores or 1),
        is_cold=arguments.cold,
    )


def find_method(name: str) -> tuple[str, Method, Any]:
    """Return a denoiser, or the one that only copies."""
    if name == "copy":
        return name, COPY, Copy()
    return resolve_method(FAMILY, name, {})


def make_images(source: Any, start: int, stop: int) -> Images:
    """Make images of a blob with noise, or electron counts of it; seeded."""
    side, dtype = source
    rng = np.random.default_rng([20261122, start])
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    blob = np.exp(-(y**2 + x**2) / (2 * (side / 8) ** 2)).astype("f4")
    shape = (stop - start, side, side)
    if dtype == "int8":
        return rng.poisson(1 + 0.3 * blob, shape).astype(dtype)
    noise = rng.standard_normal(shape, np.float32) * np.sqrt(blob.var() / SNR)
    return (blob + noise).astype(dtype)


def plan_shards(store: Path, dtype: str, compression: str, plan: Any) -> Shards:
    """Say how images lie in a store that `save_stack` writes."""
    pixel = np.dtype(dtype)
    if compression == "auto":
        compression = choose_compression(pixel)
    height, width = plan["shape"][1:]
    return Shards(
        folder=str(store / "images"),
        dtype=pixel.newbyteorder("<").str,
        inner=choose_inner(plan["shard"], height * width * pixel.itemsize),
        compression=compression,
        **plan,
    )


# Stages


def nothing(job: Job) -> None:
    """Stages of files need no preparation."""


def read_file(job: Job, _: Any, start: int) -> None:
    """Read the bytes of one shard."""
    np.fromfile(job.source.path(start // job.source.shard), np.uint8)


def load_chunks(job: Job) -> list[Images]:
    """Contents of the inner chunks of the first shard, in memory."""
    raw = np.fromfile(job.source.path(0), np.uint8)
    n_chunks = job.source.shard // job.source.inner
    index = raw[-job.source.tail_bytes : -4].view("<u8").reshape(n_chunks, 2)
    return [raw[offset : offset + length] for offset, length in index.astype(int)]


def decode(job: Job, chunks: list[Images], _: int) -> None:
    """Decode one shard."""
    inner = job.source.inner
    images = np.empty((job.source.shard, *job.source.shape[1:]), job.source.dtype)
    for k, raw in enumerate(chunks):
        decode_chunk(job.source, raw, images[k * inner : (k + 1) * inner])


def load_images(job: Job) -> Images:
    """Images of the first chunk, in memory."""
    return emdask.open_stack(job.folder / "in.zarr")[: job.source.shard].values


def run_kernel(job: Job, images: Images, _: int) -> None:
    """Denoise one chunk."""
    job.method.apply["cpu"](images, job.params)


@dataclass(frozen=True, kw_only=True)
class OnCard:
    """What a thread needs for a stage on the card: images there and here, buffer and stream."""

    stream: Any
    pinned: Images
    images: Images
    on_card: Any


def load_on_card(job: Job) -> OnCard:
    """Put the first chunk onto the card."""
    return put_on_card(load_images(job))


def load_result_on_card(job: Job) -> OnCard:
    """Put images as a denoiser gives them onto the card."""
    return put_on_card(load_result(job))


def put_on_card(images: Images) -> OnCard:
    """Copy images to the card; pinned memory, and a stream of the thread's own."""
    import cupy
    import cupyx

    loaded = OnCard(
        stream=cupy.cuda.Stream(non_blocking=True),
        pinned=cupyx.empty_pinned(images.shape, images.dtype),
        images=images,
        on_card=cupy.empty(images.shape, images.dtype),
    )
    copy_in(loaded)
    return loaded


def copy_in(loaded: OnCard) -> None:
    """Copy images into pinned memory and from there to the card."""
    loaded.pinned[...] = loaded.images
    loaded.on_card.set(loaded.pinned, stream=loaded.stream)
    loaded.stream.synchronize()


def copy_to_device(job: Job, loaded: OnCard, _: int) -> None:
    """Copy one chunk to the card, as a block of a stack goes there."""
    copy_in(loaded)


def run_kernel_on_card(job: Job, loaded: OnCard, _: int) -> None:
    """Denoise one chunk on the card."""
    with loaded.stream:
        job.method.apply["cuda"](loaded.on_card, job.params)
    loaded.stream.synchronize()


def copy_to_host(job: Job, loaded: OnCard, _: int) -> None:
    """Copy one chunk from the card into pinned and then into ordinary memory."""
    loaded.on_card.get(stream=loaded.stream, out=loaded.pinned)
    loaded.stream.synchronize()
    loaded.pinned.copy()


def load_result(job: Job) -> Images:
    """Images as a denoiser gives them: for integers, the mean of neighbours."""
    images = load_images(job).astype(np.float32)
    smooth: Images = (images + np.roll(images, 1, 1) + np.roll(images, 1, 2)) / np.float32(3)
    return smooth


def encode(job: Job, images: Images, _: int) -> None:
    """Compose one shard."""
    compose_shard(job.target, images)


def compose(job: Job) -> list[Any]:
    """Contents of one shard, in memory."""
    (job.folder / "written").mkdir(exist_ok=True)
    return compose_shard(job.target, load_result(job))


def write_file(job: Job, parts: list[Any], start: int) -> None:
    """Write one shard."""
    folder = job.folder / "written"
    replace_file(folder / str(start), parts, job.folder / "drafts")


def list_stages(job: Job) -> list[Stage]:
    """Stages of the way that are not empty, in order."""
    kernel = Stage(name="kernel", prepare=load_images, run=run_kernel)
    stages = [Stage(name="read", prepare=nothing, run=read_file)]
    if job.source.compression != "none":
        stages.append(Stage(name="decode", prepare=load_chunks, run=decode))
    if job.device == "cuda":
        stages += [
            Stage(name="to device", prepare=load_on_card, run=copy_to_device),
            Stage(name="kernel", prepare=load_on_card, run=run_kernel_on_card),
            Stage(name="to host", prepare=load_result_on_card, run=copy_to_host),
        ]
    else:
        stages.append(kernel)
    if job.target.compression != "none":
        stages.append(Stage(name="encode", prepare=load_result, run=encode))
    return [*stages, Stage(name="write", prepare=compose, run=write_file)]


# Measures


def measure_rounds(job: Job, n_rounds: int) -> Rounds:
    """Run every stage and every form of the whole in turn, again and again."""
    rounds: Rounds = defaultdict(list)
    wholes = dict(list_wholes(job))
    warm_up(job)
    # The first round fills caches; a single one is for tests.
    n_warm = min(n_rounds - 1, 1)
    for number in range(n_warm + n_rounds):
        measured = {stage.name: measure_stage(job, stage) for stage in list_stages(job)}
        measured |= {where: measure_whole(job, client) for where, client in wholes.items()}
        for name, spent in measured.items() if number >= n_warm else ():
            rounds[name].append(spent)
    return rounds


def warm_up(job: Job) -> None:
    """Compile kernels and load code: each stage on the first chunk."""
    (job.folder / "drafts").mkdir(exist_ok=True)
    for stage in list_stages(job):
        stage.run(job, stage.prepare(job), 0)
    shutil.rmtree(job.folder / "written", ignore_errors=True)


def count_text(n: int, what: str, plural: str) -> str:
    """Number and noun."""
    return f"{n} {what if n == 1 else plural}"


def list_wholes(job: Job) -> list[tuple[str, Callable[[], Any]]]:
    """Where the whole is run: a name, and what starts its client."""
    threads = count_text(job.n_threads, "thread", "threads")
    wholes = [(f"{threads} of one process", lambda: contextlib.nullcontext())]
    if job.device == "cuda":
        name = f'connect("cuda"), {threads} a card'
        return [
            *wholes,
            (
                name,
                lambda: emdask.connect("cuda", threads_per_worker=job.n_threads, quiet=True),
            ),
        ]
    processes = count_text(job.n_threads, "process", "processes")
    name = f'connect("local"), {processes}'
    return [*wholes, (name, lambda: emdask.connect("local", n_workers=job.n_threads, quiet=True))]


def measure_stage(job: Job, stage: Stage) -> Spent:
    """Seconds of a stage on all chunks, on its own threads; preparing is not counted."""
    (job.folder / "drafts").mkdir(exist_ok=True)
    prepared = [stage.prepare(job) for _ in range(job.n_threads)]
    drop_cache(job)

    def work(thread: int) -> None:
        for start in job.starts[thread :: job.n_threads]:
            stage.run(job, prepared[thread], start)

    with clocked() as spent:
        run_threads(work, job.n_threads)
    shutil.rmtree(job.folder / "written", ignore_errors=True)
    return spent()


def run_threads(work: Callable[[int], None], n_threads: int) -> None:
    """Call ``work(0), work(1) ...`` at once; an error of any is raised."""
    errors: list[BaseException] = []

    def guarded(thread: int) -> None:
        try:
            work(thread)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def measure_whole(job: Job, start_client: Callable[[], Any]) -> Spent:
    """Seconds of the whole on a client; starting it, and its imports, are not counted."""
    few, out = 2 * job.n_threads * job.source.shard, job.folder / "out.zarr"
    with start_client() as client:
        threads = contextlib.nullcontext()
        if client is None:
            threads = dask.config.set(scheduler="threads", num_workers=job.n_threads)
        with threads:
            if client is not None:
                run_whole(job, few)
                shutil.rmtree(out)
            drop_cache(job)
            with clocked() as spent:
                run_whole(job)
    # Writing is slower where files that nobody needs hold the memory: all begin alike.
    shutil.rmtree(out)
    return spent()


def run_whole(job: Job, n_images: int | None = None) -> None:
    """Denoise the store, or its first images, as a user does."""
    stack = emdask.open_stack(job.folder / "in.zarr")[:n_images]
    clean = stack.copy(
        data=map_images(stack.data, job.method, job.params, name=job.name, device=job.device)
    )
    emdask.save_stack(clean, job.folder / "out.zarr", compression=job.target.compression)


@contextlib.contextmanager
def clocked() -> Iterator[Callable[[], Spent]]:
    """Time a block of code; what it yields says the seconds afterwards."""
    seconds: list[float] = []
    wall, cpu = time.perf_counter(), cpu_seconds()
    yield lambda: Spent(*seconds)
    seconds[:] = time.perf_counter() - wall, cpu_seconds() - cpu


def cpu_seconds() -> float:
    """CPU time of this process and of those that it started."""
    children = psutil.Process().children(recursive=True)
    times = [child.cpu_times() for child in children]
    return time.process_time() + sum(t.user + t.system for t in times)


def drop_cache(job: Job) -> None:
    """Make the system forget the input's files, where that is asked for."""
    for number in range(len(job.starts) if job.is_cold else 0):
        with open(job.source.path(number), "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# Text


def describe_job(job: Job) -> list[str]:
    """Machine, card and sizes."""
    n, height, width = job.source.shape
    parts = [
        f"{n:,} images of {height} x {width}, {np.dtype(job.source.dtype)} "
        f"({job.source.compression}) to float32 ({job.target.compression})",
        f"chunks of {job.source.shard}",
        f"method {job.name} on {job.device}",
        "from the disk" if job.is_cold else "from the page cache",
    ]
    machine = ", ".join([describe_machine("emdask", "dask", "zarr", "numpy"), *card_name(job)])
    return [machine, "", ", ".join(parts), ""]


def card_name(job: Job) -> list[str]:
    """Name of the card, if one is used."""
    if job.device == "cpu":
        return []
    import cupy

    return [cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()]


def stage_table(job: Job, rounds: Rounds) -> list[str]:
    """Each stage's own rate."""
    head = ["stage alone", "images/s", "GB/s of input images", "CPU ms an image"]
    rows = [[stage.name, *rate_cells(job, rounds[stage.name])] for stage in list_stages(job)]
    threads = count_text(job.n_threads, "thread", "threads")
    return [f"Stages alone on {threads}", "", *table(head, rows)]


def whole_table(job: Job, rounds: Rounds) -> list[str]:
    """The whole beside its slowest stage and, on the CPU, beside the sum of the stages."""
    names = [stage.name for stage in list_stages(job)]
    head = ["whole", "images/s", "GB/s of input images", "CPU ms an image"]
    head += [
        "/ slowest stage alone",
        "/ stages one after another",
        "/ what CPU time allows",
        "CPU time of stages / of whole",
    ]
    rows = []
    for where, _ in list_wholes(job):
        ratios = [
            (
                slowest_wall(rounds, names, i) / whole.wall_s,
                sum(rounds[name][i].wall_s for name in names) / whole.wall_s,
                allowed_wall(rounds, names, i, job.n_threads) / whole.wall_s,
                stages_cpu(rounds, names, i) / whole.cpu_s,
            )
            for i, whole in enumerate(rounds[where])
        ]
        cells = [spread(values) for values in zip(*ratios, strict=True)]
        rows.append([where, *rate_cells(job, rounds[where]), *cells])
    slowest = min(names, key=lambda name: -median_wall(rounds[name]))
    lines = [f"The whole; the slowest stage is: {slowest}. Ratios: median (least to largest)", ""]
    return [*lines, *table(head, rows)]


def rate_cells(job: Job, spent: Sequence[Spent]) -> list[str]:
    """Images a second, gigabytes a second, CPU milliseconds an image; medians."""
    wall_s = median_wall(spent)
    cpu_s = statistics.median(seconds.cpu_s for seconds in spent)
    n_bytes = job.n_images * job.source.image_bytes
    return [
        f"{job.n_images / wall_s:,.0f}",
        f"{n_bytes / wall_s / 1e9:.3f}",
        f"{1e3 * cpu_s / job.n_images:.3f}",
    ]


def median_wall(spent: Sequence[Spent]) -> float:
    """Median of the seconds by the clock."""
    return statistics.median(seconds.wall_s for seconds in spent)


def slowest_wall(rounds: Rounds, names: Sequence[str], i: int) -> float:
    """Seconds of the slowest stage in one round."""
    return max(rounds[name][i].wall_s for name in names)


def stages_cpu(rounds: Rounds, names: Sequence[str], i: int) -> float:
    """CPU seconds of all stages in one round."""
    return sum(rounds[name][i].cpu_s for name in names)


def allowed_wall(rounds: Rounds, names: Sequence[str], i: int, n_threads: int) -> float:
    """Seconds that all stages take where every core is busy all the time."""
    return stages_cpu(rounds, names, i) / min(n_threads, os.cpu_count() or 1)


def spread(values: Sequence[float]) -> str:
    """Median, least and largest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    with errors_as_sentences():
        main()
