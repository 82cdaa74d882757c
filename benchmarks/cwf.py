"""Covariance Wiener filtering: errors, CPU time and memory, beside ASPIRE in one run.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/cwf.py [PROJECTIONS]
        [--tables errors times stream] [--peer PYTHON] [--device cpu|cuda] [--images N]
        [--stream N] [--workers N] [--folder FOLDER] [--quick] [--out FILE]

PROJECTIONS is a folder that ``cwf_aspire.py project`` has written; without it a phantom is
projected. ``--peer`` is a Python that has ASPIRE, whose covariance Wiener filter then gets the same
images (``cwf_aspire.py``). The noise is white and its variance is told to all. The error is that
against the clean projections without CTF, relMSE = sum |found - clean|² / sum |clean|²; SNR is the
mean square of what is seen through the CTF over the variance of the noise.

``--stream`` simulates so many images of 128 px on the fly, each with a defocus of its own, learns
from them, and writes them denoised into a store in ``--folder``, on worker processes whose memory
is told. On a card the seconds are those of the clock, after a warm-up.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import dask
import numpy as np
import xarray as xr
from arguments import QUICK, errors_as_sentences, parse_count
from tables import describe_machine, table, write_lines

import emdask
from emdask.errors import MissingLibraryError
from emdask.kernels.ctf import ctf_2d
from emdask.lazy import read_images
from emdask.stack import build_stack

TABLES = ("errors", "times", "stream")
BOX_PX, QUICK_PX = 64, 32
# What is timed: the prepared projections, and a phantom in a box twice as large, of a quarter as
# many images; with CTF and without.
TIMED = [(enlarged, with_ctf) for with_ctf in (False, True) for enlarged in (1, 2)]
SNRS = (1.0, 0.2, 0.1, 0.05)
# Where more is to be gained: an SNR, and for which numbers of images it is shown.
FEW = {0.01: (100, 1000, 2000)}
TIMED_SNR = 0.1
NOISE_SEED = 20261124
OPTICS = {"voltage_kV": 200.0, "spherical_aberration_mm": 2.0, "amplitude_contrast": 0.1}
DEFOCI_A = np.linspace(15_000, 25_000, 7)
CHUNK = 500
# What ours is asked for, by the name of a column.
WAYS: dict[str, dict[str, Any]] = {
    "emdask": {},
    "noise estimated": {"sigma": "auto"},
    "frobenius": {"shrinkage": "frobenius"},
}
STREAM_PX, STREAM_SAMPLE = 128, 200
STREAM_CTF = {"defocus_A": (10_000.0, 25_000.0), "astigmatism_A": (0.0, 300.0)}
# The parts of ours, by where they are called from.
STAGES = {
    "basis": ("denoisers.cwf", "steerable_basis"),
    "Fourier transforms": ("kernels.steerable_images", "to_half_planes"),
    "expansion": ("kernels.steerable_images", "expand"),
    "sums": ("denoisers.cwf", "sum_coefficients"),
    "mean and covariance of the sums": ("denoisers.cwf", "estimate_covariance"),
    "Wiener filters": ("denoisers.cwf", "filter_coefficients"),
    "evaluation": ("denoisers.cwf", "evaluate"),
    "inverse transforms": ("denoisers.cwf", "to_images"),
}

Array = Any


class Sample(NamedTuple):
    """Projections: without CTF, as they are seen through it, and their defoci."""

    clean: Array
    seen: Array
    defocus_A: Array | None
    pixel_size_A: float


class Noisy(NamedTuple):
    """A sample with white noise."""

    sample: Sample
    images: Array
    noise_variance: float


class Seconds(NamedTuple):
    """What a filter took: once for its basis, to learn, and to apply what it has learnt."""

    setup: float
    learn: float
    apply: float

    @property
    def whole(self) -> float:
        """Seconds to learn and to apply."""
        return self.learn + self.apply


class Streamed(NamedTuple):
    """MB that a worker held at most until a step was over, CPU s of all; clock and error."""

    memory_before: float
    memory_learn: float
    memory_apply: float
    simulate: float
    learn: float
    apply: float
    clock: float
    error: float


def main() -> None:
    """Measure and print all tables."""
    options = parse_arguments()
    if options.measure_stream:
        print(json.dumps(stream_here(options.measure_stream, options)._asdict()))
        return
    lines = ["# Covariance Wiener filtering", "", describe_machine("numpy", "scipy", "dask"), ""]
    lines += [QUICK, ""] if options.quick else []
    print("\n".join(lines), flush=True)
    parts = {
        "errors": [lambda: error_lines(options)],
        "times": [partial(time_lines, options, case) for case in TIMED],
        "stream": [lambda: stream_lines(options)],
    }
    for part in chain.from_iterable(parts[name] for name in options.tables):
        found = [*part(), ""]
        lines += found
        print("\n".join(found), flush=True)
    write_lines(lines, options.out)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="covariance Wiener filtering beside ASPIRE")
    parser.add_argument("projections", nargs="?", type=Path, help="folder of cwf_aspire.py project")
    parser.add_argument("--peer", type=Path, help="a Python that has ASPIRE")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, help="which")
    parser.add_argument("--images", type=parse_count, default=4000, help="that are timed at 64 px")
    parser.add_argument("--rounds", type=parse_count, default=2, help="of timing")
    parser.add_argument("--stream", type=parse_count, default=20_000)
    parser.add_argument("--workers", type=parse_count, default=1, help="processes that stream")
    parser.add_argument("--folder", type=Path, help="for the store that is streamed to")
    parser.add_argument("--measure-stream", type=parse_count, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="few small images: seconds")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    options = parser.parse_args(arguments)
    if options.quick:
        options.images, options.rounds, options.stream = 40, 1, 24
        options.projections = None
    return options


# Images


def load_sample(options: argparse.Namespace, n_images: int, with_ctf: bool) -> Sample:
    """Projections that were prepared, or else those of a phantom."""
    if options.projections is None:
        return project_phantom(QUICK_PX if options.quick else BOX_PX, n_images, with_ctf)
    kind = "ctf" if with_ctf else "noctf"
    given = np.load(options.projections / f"projections_{kind}_n{n_images}.npz")
    defocus_A = given["defocus_A"] if with_ctf else None
    # Under ASPIRE's CTF a particle is dark.
    seen = -given["seen"] if with_ctf else given["seen"]
    return Sample(given["clean"], seen, defocus_A, float(given["pixel_size_A"]))


def project_phantom(box_px: int, n_images: int, with_ctf: bool) -> Sample:
    """Project the same phantom at the resolution of the box; centred, views alike."""
    pixel_size_A = 325.0 / box_px
    particle = emdask.phantom(400, radius_A=110, width_A=(5.0, 7.0)).volume(box_px, pixel_size_A)
    clean = emdask.simulate(particle, n_images, snr=None).clean.values
    clean /= np.sqrt(np.mean(np.square(clean)))
    if not with_ctf:
        return Sample(clean, clean, None, pixel_size_A)
    groups = np.random.default_rng(0).integers(len(DEFOCI_A), size=n_images)
    transfer = ctf_2d(
        clean.shape[1:], pixel_size_A=pixel_size_A, defocus_u_A=DEFOCI_A, **OPTICS
    ).astype(np.float32)
    seen = np.fft.irfft2(np.fft.rfft2(clean) * transfer[groups], s=clean.shape[1:])
    return Sample(clean, seen.astype(np.float32), DEFOCI_A[groups], pixel_size_A)


def add_noise(sample: Sample, snr: float) -> Noisy:
    """Add white noise."""
    variance = float(np.mean(np.square(sample.seen, dtype=np.float64))) / snr
    noise = np.random.default_rng(NOISE_SEED).standard_normal(sample.seen.shape, np.float32)
    noise *= np.sign(1.0 if sample.defocus_A is None else -1.0, dtype=np.float32)
    return Noisy(sample, sample.seen + np.float32(np.sqrt(variance)) * noise, variance)


class Held:
    """Images in memory, which Dask neither copies nor hashes."""

    def __init__(self, images: Array) -> None:
        self.images = images
        self.name = uuid.uuid4().hex

    def __dask_tokenize__(self) -> str:
        return self.name

    def read(self, start: int, stop: int) -> Array:
        """Return some of them."""
        return self.images[start:stop]


def as_stack(noisy: Noisy) -> xr.DataArray:
    """Label images, in chunks."""
    sample = noisy.sample
    shape, dtype = noisy.images.shape, noisy.images.dtype
    held = Held(noisy.images)
    images = read_images(Held.read, held, shape=shape, dtype=dtype, chunk=CHUNK, name="held")
    attrs = {"pixel_size_A": sample.pixel_size_A}
    if sample.defocus_A is None:
        return build_stack(images, attrs=attrs)
    defoci = {"defocus_u_A": sample.defocus_A, "defocus_v_A": sample.defocus_A}
    return build_stack(images, defoci, attrs | OPTICS)


def relative_error(found: Array, clean: Array) -> float:
    """relMSE."""
    clean = np.asarray(clean, np.float64)
    return float(np.sum(np.square(found - clean)) / np.sum(np.square(clean)))


def first_images(sample: Sample, n_images: int) -> Sample:
    """Return the first images of a sample."""
    some = slice(n_images)
    defocus_A = None if sample.defocus_A is None else sample.defocus_A[some]
    return sample._replace(clean=sample.clean[some], seen=sample.seen[some], defocus_A=defocus_A)


# Filters


def seconds_of(run: Callable[[], Any], device: str = "cpu") -> tuple[Any, float]:
    """Result and CPU seconds of a call; seconds of the clock where a card does the work."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    result = run()
    return result, clock() - start


def learn_here(noisy: Noisy, device: str = "cpu", **parameters: Any) -> xr.Dataset:
    """Learn ours in one thread."""
    settings = {"sigma": float(np.sqrt(noisy.noise_variance)), "device": device} | parameters
    with dask.config.set(scheduler="synchronous", num_workers=1):
        return emdask.learn_denoiser(as_stack(noisy), "cwf", **settings).compute()


def apply_here(
    noisy: Noisy, model: xr.Dataset, device: str = "cpu", **parameters: Any
) -> list[Array]:
    """Apply ours in one thread; chunks, because putting them together is no part of it."""
    settings = {"sigma": float(np.sqrt(noisy.noise_variance)), "device": device} | parameters
    denoised = emdask.denoise(as_stack(noisy), "cwf", model=model, **settings)
    with dask.config.set(scheduler="synchronous", num_workers=1):
        return list(dask.compute(*denoised.data.to_delayed().ravel()))


def filter_here(noisy: Noisy, device: str = "cpu", **parameters: Any) -> tuple[Array, Seconds]:
    """Learn and apply ours in one thread; the setup is what the first two images take."""
    first = noisy._replace(sample=first_images(noisy.sample, 2), images=noisy.images[:2])

    def learn(given: Noisy) -> xr.Dataset:
        return learn_here(given, device, **parameters)

    def apply(given: Noisy, model: xr.Dataset) -> list[Array]:
        return apply_here(given, model, device, **parameters)

    _, setup = seconds_of(lambda: apply(first, learn(first)), device)
    model, learning = seconds_of(lambda: learn(noisy), device)
    chunks, applying = seconds_of(lambda: apply(noisy, model), device)
    return np.concatenate(chunks), Seconds(setup, learning, applying)


def filter_by_peer(noisy: Noisy, python: Path) -> tuple[Array, Seconds]:
    """Learn and apply ASPIRE's in a process of its own, one thread."""
    sample = noisy.sample
    sign = 1 if sample.defocus_A is None else -1
    given = {
        "noisy": sign * noisy.images,
        "noise_variance": noisy.noise_variance,
        "pixel_size_A": sample.pixel_size_A,
    }
    if sample.defocus_A is not None:
        given |= {"defocus_A": sample.defocus_A}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "images.npz", Path(folder) / "denoised.npy"
        np.savez(source, **given)
        script = Path(__file__).resolve().with_name("cwf_aspire.py")
        command = [python.absolute(), script, "denoise", source, target]
        # It writes logs where it is run.
        run = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if run.returncode:
            last = (run.stderr.strip().splitlines() or [""])[-1]
            raise MissingLibraryError(f"ASPIRE cannot be run by {python}: {last}")
        seconds = json.loads(run.stdout.splitlines()[-1])
        return np.load(target), Seconds(**seconds)


# Tables


def error_lines(options: argparse.Namespace) -> list[str]:
    """Errors by CTF, number of images and SNR."""
    counts = (40,) if options.quick else (100, 1000, 2000, 4000)
    samples = {
        (with_ctf, count): load_sample(options, count, with_ctf)
        for with_ctf in (False, True)
        for count in counts
    }
    truth = learn_truth(samples[False, counts[-1]])
    rows = []
    for (with_ctf, count), sample in samples.items():
        few = [snr for snr, counts in FEW.items() if count in counts]
        for snr in SNRS[:2] if options.quick else [*(SNRS if count != 2000 else ()), *few]:
            errors = errors_at(add_noise(sample, snr), truth, options)
            cells = [f"{value:.4f}" if value is not None else "" for value in errors]
            rows.append(["yes" if with_ctf else "no", f"{count}", f"{snr:g}", *cells])
    head = ["CTF", "images", "SNR", *WAYS, "told the truth", "ASPIRE"]
    what = "projections of a phantom" if options.projections is None else "projections given"
    size = samples[False, counts[0]].clean.shape[-1]
    return [f"relMSE, {what}, {size} px", "", *table(head, rows)]


def learn_truth(sample: Sample) -> xr.Dataset:
    """Mean and covariance of clean images: the model that the others cannot know."""
    clean = sample._replace(seen=sample.clean, defocus_A=None)
    noisy = Noisy(clean, clean.clean, 1e-9 * float(np.mean(np.square(clean.clean))))
    return learn_here(noisy, shrinkage="frobenius")


def errors_at(noisy: Noisy, truth: xr.Dataset, options: argparse.Namespace) -> list[float | None]:
    """Errors of ours in all ways, of ours where it is told the model, of the peer."""
    device = options.device
    models = [learn_here(noisy, device, **way) for way in WAYS.values()]
    # Clean images have no CTF, whatever those have that are filtered by what they tell.
    truth = truth.assign_attrs(with_ctf=noisy.sample.defocus_A is not None)
    tried = zip([*models, truth], [*WAYS.values(), {}], strict=True)
    found = [np.concatenate(apply_here(noisy, model, device, **way)) for model, way in tried]
    found += [filter_by_peer(noisy, options.peer)[0] if options.peer else None]
    clean = noisy.sample.clean
    return [None if images is None else relative_error(images, clean) for images in found]


def time_lines(options: argparse.Namespace, case: tuple[int, bool]) -> list[str]:
    """Seconds of ours and of the peer, pair by pair, and where ours go."""
    enlarged, with_ctf = case
    if enlarged == 1:
        sample = load_sample(options, options.images, with_ctf)
    else:
        size = enlarged * (QUICK_PX if options.quick else BOX_PX)
        sample = project_phantom(size, max(options.images // enlarged**2, 2), with_ctf)
    noisy = add_noise(sample, TIMED_SNR)
    ours, theirs = [], []
    for _ in range(options.rounds):
        ours.append(filter_here(noisy, options.device))
        theirs += [filter_by_peer(noisy, options.peer)] if options.peer else []
    columns = {"emdask": ours, "ASPIRE": theirs}
    rows = [time_row(who, rounds, sample) for who, rounds in columns.items() if rounds]
    n_images, _, size = sample.clean.shape
    unit = "CPU s" if options.device == "cpu" else "s"
    head = ["", f"setup, {unit}", "learn", "apply", "learn and apply", "ms an image", "relMSE"]
    ctf = "CTF" if with_ctf else "no CTF"
    title = f"{n_images} images of {size} px, {ctf}, SNR {TIMED_SNR:g}, one thread"
    lines = [title, "", *table(head, rows), ""]
    if theirs:
        ratios = [peer[1].whole / own[1].whole for own, peer in zip(ours, theirs, strict=True)]
        lines += [
            f"ASPIRE / emdask, learn and apply: {statistics.median(ratios):.1f} "
            f"({min(ratios):.1f} to {max(ratios):.1f} in {len(ratios)} rounds)",
            "",
        ]
    return lines + stage_table(noisy, options.device)


def time_row(name: str, rounds: list[tuple[Array, Seconds]], sample: Sample) -> list[str]:
    """Medians of rounds."""
    parts = zip(*(seconds for _, seconds in rounds), strict=True)
    seconds = Seconds(*(statistics.median(part) for part in parts))
    cells = [f"{value:.2f}" for value in (*seconds, seconds.whole)]
    per_image = f"{1e3 * seconds.whole / len(sample.clean):.3f}"
    return [name, *cells, per_image, f"{relative_error(rounds[0][0], sample.clean):.4f}"]


def stage_table(noisy: Noisy, device: str) -> list[str]:
    """Where the time of ours goes: seconds of each part, by wrapping it with a clock."""
    spent: dict[str, float] = {}
    with clocked(spent, device):
        model, learning = seconds_of(lambda: learn_here(noisy, device), device)
        _, applying = seconds_of(lambda: apply_here(noisy, model, device), device)
    spent["all else"] = learning + applying - sum(spent.values())
    per_image = 1e3 / len(noisy.images)
    rows = [[name, f"{value:.3f}", f"{value * per_image:.4f}"] for name, value in spent.items()]
    return table(["emdask, both passes", "s", "ms an image"], rows)


@contextmanager
def clocked(spent: dict[str, float], device: str) -> Iterator[None]:
    """Wrap the parts of ours with clocks; what they call of each other counts once, inside."""
    with ExitStack() as undo:
        for name, (module, function) in STAGES.items():
            home = importlib.import_module(f"emdask.{module}")
            plain = getattr(home, function)
            spent[name] = 0.0

            def run(*args: Any, name: str = name, plain: Any = plain, **named: Any) -> Any:
                def and_wait() -> Any:
                    result = plain(*args, **named)
                    wait_for(device)
                    return result

                result, seconds = seconds_of(and_wait, device)
                spent[name] += seconds
                return result

            setattr(home, function, run)
            undo.callback(setattr, home, function, plain)
        yield


def wait_for(device: str) -> None:
    """Let a card finish."""
    if device == "cuda":
        importlib.import_module("cupy").cuda.get_current_stream().synchronize()


def stream_lines(options: argparse.Namespace) -> list[str]:
    """Peak memory of workers, and CPU time, of many images and of a tenth of them."""
    rows = []
    for count in (max(options.stream // 10, 8), options.stream):
        command = [sys.executable, __file__, "--measure-stream", f"{count}"]
        command += ["--device", options.device, "--workers", f"{options.workers}"]
        command += ["--folder", f"{options.folder}"] if options.folder else []
        command += ["--quick"] if options.quick else []
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        found = Streamed(**json.loads(run.stdout.splitlines()[-1]))
        memory = [f"{value:.0f}" for value in found[:3]]
        per_image = [f"{1e3 * value / count:.2f}" for value in found[3:6]]
        clock, error = f"{found.clock:.0f}", f"{found.error:.4f}"
        size = f"{count * 4 * STREAM_PX**2 / 1e9:.2f}"
        rows.append([f"{count}", size, *memory, *per_image, clock, error])
    head = ["images", "GB", "MB a worker, before", "learning", "applying"]
    head += [
        "CPU ms an image, simulating",
        "learning",
        "applying",
        "seconds of the clock",
        "relMSE",
    ]
    title = (
        f"Streamed: {STREAM_PX} px, SNR {TIMED_SNR:g}, every image its own CTF; worker processes "
        f"of one thread: {options.workers}; the images are simulated in both passes"
    )
    return [title, "", *table(head, rows)]


def stream_here(n_images: int, options: argparse.Namespace) -> Streamed:
    """Learn from simulated images and write them denoised, on workers whose memory is watched."""
    size = 32 if options.quick else STREAM_PX
    particle = emdask.phantom(500, radius_A=90, width_A=(3.0, 5.0)).volume(size, 325.0 / size)
    made = emdask.simulate(particle, n_images, snr=TIMED_SNR, ctf=STREAM_CTF)
    settings: dict[str, Any] = {"sigma": 1.0, "device": options.device}
    target = "cuda" if options.device == "cuda" else "local"
    n_workers = {} if target == "cuda" else {"n_workers": options.workers}
    with (
        emdask.connect(target, quiet=True, **n_workers) as client,
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
    ):
        out, start = Path(folder) / "out.zarr", time.perf_counter()
        # What the workers have held and spent until each step is over.
        client.run(prepare)
        steps = [watch(client)]
        model = emdask.learn_denoiser(made.images, "cwf", **settings).compute()
        steps.append(watch(client))
        emdask.save_stack(emdask.denoise(made.images, "cwf", model=model, **settings), out)
        steps.append(watch(client))
        clock = time.perf_counter() - start
        found = emdask.open_stack(out)[:STREAM_SAMPLE].values
    learnt, applied = np.diff([cpu for _, cpu in steps]).tolist()
    memory = [held for held, _ in steps]
    error = stream_error(found, particle, made)
    simulating = seconds_of(lambda: made.images[: len(found)].values)[1] / len(found)
    return Streamed(*memory, simulating * n_images, learnt, applied, clock, error)


def stream_error(found: Array, particle: xr.DataArray, made: xr.Dataset) -> float:
    """Error of the first images against projections without CTF, scaled as the images are."""
    n_found = len(found)
    plain, seen = (
        emdask.simulate(particle, n_found, snr=None, ctf=ctf).clean.values
        for ctf in (None, STREAM_CTF)
    )
    scale = np.vdot(seen, made.clean[:n_found].values) / np.vdot(seen, seen)
    return relative_error(found, scale * plain)


def prepare() -> None:
    """Load the code of a worker."""
    importlib.import_module("emdask.denoisers.cwf")
    importlib.import_module("emdask.simulators")


def watch(client: Any) -> tuple[float, float]:
    """MB that a worker held at most until now, and CPU seconds of all."""
    held = client.run(peak_memory)
    spent = client.run(time.process_time)
    return max(held.values()), sum(spent.values())


def peak_memory() -> float:
    """MB that this process held at most; that of getrusage begins with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1e3


if __name__ == "__main__":
    with errors_as_sentences():
        main()
