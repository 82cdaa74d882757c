"""BM3D on one card: emdask beside bm3d-triton, bm3d-cupy and VapourSynth-BM3DCUDA, one run.

    python benchmarks/bm3d_gpu.py [INPUTS] [--programs emdask,bm3d-triton] [--quick] [--out FILE]

INPUTS is a folder with ``micro4096_clean.npy`` and ``micro4096_snr0.1.npy``, likewise
``camera2048_clean.npy`` and ``camera2048_s25.npy``, ``particles_clean.npy``, and ``sigmas.json``;
without it inputs of these sizes are made here. The peers are optional, all from PyPI: bm3d-triton,
bm3d-cupy, vapoursynth-bm3dcuda.

Strength confounds such tables: each program is swept on a crop over strengths, and bm3d-triton also
over mappings to the [0, 1] that it demands; whole images are then timed at each one's best.
Times are those of CUDA events around calls on images that are on the card already, after a warm-up
where that takes less than ten seconds. VapourSynth takes its images from the host and returns them
there, by way of Python: its time holds the bus and these copies. So the copies alone are timed too,
by the same chain without BM3D; the bar is held against what is left without them; and ours is also
timed from host to host.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from inputs import Floats, Input, psnr, simulate_particles, with_noise
from tables import describe_machine, table, write_lines

from emdask.backend import why_no_cuda
from emdask.kernels import bm3d_plan
from emdask.kernels.bm3d_plan import BLOCK, Profile, lay_out, wavelet_matrix

PROFILES = {
    "normal": bm3d_plan.NORMAL,
    "fast": bm3d_plan.FAST,
    "high_noise": bm3d_plan.HIGH_NOISE,
}
STRENGTHS = (0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5)
# Its sigma has a scale of its own.
VAPOURSYNTH_STRENGTHS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
SLOW_STRENGTHS = (0.9, 1.0, 1.2, 1.4)
MAPPINGS = ("least to largest", "sigma at 25/255", "data range")
CROP_PX = 1024
CROP_IMAGES = 8
# A call that takes longer is timed once.
LONG_S = 10.0
LARGE_PX = (11520, 8184)
STAGE_NAMES = {"pad_images": "padding", "start_sums": "clearing", "finish_sums": "finishing"}
# CUDA cores of a multiprocessor for FP32, where they are not 128, by compute capability.
NARROW_CARDS = {"60": 64, "70": 64, "72": 64, "75": 64, "80": 64}
FROM_HOST = ", host to host"
BAR = {"bm3d-triton": (6.0, 10.0), "BM3DCUDA": (2.5, 4.0)}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A call that is timed, and what makes NumPy images in grey levels of its result.

    ``copy`` is the call without BM3D, where copies made by Python are part of the call.
    """

    call: Callable[[], Any]
    finish: Callable[[Any], Floats]
    copy: Callable[[], Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Program:
    """One BM3D: ``prepare(noisy on the card, sigma, setting, data_range)``.

    ``like`` names the program whose best strength it takes.
    """

    name: str
    prepare: Callable[[Any, float, str, float], Prepared]
    strengths: Sequence[float]
    settings: Sequence[str] = ("",)
    given: str = ""
    like: str = ""


@dataclass(frozen=True, kw_only=True)
class Best:
    """Where a sweep found the highest PSNR, and that of strength 1 and the first setting."""

    strength: float
    setting: str
    psnr: float
    nominal_psnr: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One program on one whole input; or why there is nothing."""

    program: str
    times_ms: Sequence[float] = ()
    copies_ms: Sequence[float] = ()
    psnr: float = 0.0
    failure: str = ""

    @property
    def median_ms(self) -> float:
        """Median of the times."""
        return statistics.median(self.times_ms)

    @property
    def without_copies_ms(self) -> float:
        """The median less that of the copies alone."""
        copies = statistics.median(self.copies_ms) if self.copies_ms else 0.0
        return max(0.0, self.median_ms - copies)


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the arithmetic floor needs to know."""

    name: str
    capability: str
    n_multiprocessors: int
    clock_hz: float

    @property
    def operations_per_s(self) -> float:
        """FP32 operations a second; a fused multiply-add is one."""
        lanes = NARROW_CARDS.get(self.capability, 128)
        return self.n_multiprocessors * lanes * self.clock_hz


def main() -> None:
    """Measure and print all tables."""
    arguments = parse_arguments()
    if (reason := why_no_cuda()) is not None:
        print(f"bm3d_gpu.py: an NVIDIA card is needed; {reason}.", file=sys.stderr)
        sys.exit(2)
    inputs = read_inputs(arguments.inputs) if arguments.inputs else make_inputs(arguments.quick)
    chosen = arguments.programs.split(",") if arguments.programs else None
    programs = [p for p in find_programs() if chosen is None or p.name.split()[0] in chosen]
    card = describe_card()
    lines = [*describe_run(card, programs), ""]
    print("\n".join(lines), flush=True)
    for rows in make_tables(inputs, programs, card, arguments):
        lines += [*rows, ""]
        print("\n".join([*rows, ""]), flush=True)
    write_lines(lines, arguments.out)


def make_tables(
    inputs: list[Input], programs: list[Program], card: Card, arguments: argparse.Namespace
) -> Iterator[list[str]]:
    """Yield the lines of each table as soon as it is measured."""
    for row in inputs:
        best = {program.name: sweep(program, row) for program in programs if not program.like}
        yield sweep_table(row, best)
        measured = [measure(p, row, best[p.like or p.name], arguments.seconds) for p in programs]
        yield whole_table(row, measured)
        yield bar_lines(measured)
    for row in inputs:
        yield stage_table(row, card)
    yield large_table((512, 384) if arguments.quick else LARGE_PX)
    yield [f"Copying on the card: {copy_bandwidth() / 1e9:,.0f} GB/s, read and written together."]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="BM3D on one card beside its peers")
    parser.add_argument("inputs", nargs="?", type=Path, help="folder of inputs")
    parser.add_argument("--programs", help="names of those to run, with commas; all by default")
    parser.add_argument("--seconds", type=float, default=5, help="for each figure, at least once")
    parser.add_argument("--quick", action="store_true", help="small inputs: seconds")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    return parser.parse_args()


# Inputs


def read_inputs(folder: Path) -> list[Input]:
    """Read prepared inputs; a thousand particles are those of the folder with new noise."""
    sigmas = json.loads((folder / "sigmas.json").read_text())
    particles = np.load(folder / "particles_clean.npy")
    particles = np.resize(particles, (1000, *particles.shape[1:]))
    rng = np.random.default_rng(20261122)
    return [
        Input(
            name="micrograph 4096, SNR 0.1",
            clean=np.load(folder / "micro4096_clean.npy")[None],
            noisy=np.load(folder / "micro4096_snr0.1.npy")[None],
            sigma=sigmas["micro4096_snr0.1"],
            data_range=1,
        ),
        Input(
            name="camera 2048, sigma 25",
            clean=np.load(folder / "camera2048_clean.npy")[None],
            noisy=np.load(folder / "camera2048_s25.npy")[None],
            sigma=25,
            data_range=255,
        ),
        with_noise("1000 particles 128, SNR 0.1", particles, sigmas["particles_snr0.1"], 1, rng),
    ]


def make_inputs(quick: bool) -> list[Input]:
    """Make a micrograph of particles, a photograph and particles, with noise; seeded."""
    from skimage import data

    rng = np.random.default_rng(20261122)
    particles = simulate_particles(16 if quick else 200, 64 if quick else 128, rng)
    micrograph = tile_particles(particles, 4 if quick else 32, rng)
    camera = data.camera().astype(np.float32)
    # Copies side by side: what matching finds within its window is as in one.
    camera = camera[:256, :256] if quick else np.tile(camera, (4, 4))
    many = np.resize(particles, (32 if quick else 1000, *particles.shape[1:]))
    side, n, size = micrograph.shape[1], len(many), many.shape[1]
    return [
        at_snr(f"micrograph {side}, SNR 0.1", micrograph, rng),
        with_noise(f"camera {camera.shape[0]}, sigma 25", camera[None], 25.0, 255.0, rng),
        at_snr(f"{n} particles {size}, SNR 0.1", many, rng),
    ]


def at_snr(name: str, clean: Floats, rng: np.random.Generator, snr: float = 0.1) -> Input:
    """Add noise of the variance that gives the signal-to-noise ratio."""
    return with_noise(name, clean, float(np.sqrt(clean.var() / snr)), 1.0, rng)


def tile_particles(particles: Floats, n: int, rng: np.random.Generator) -> Floats:
    """Lay n x n particles side by side, each turned by some right angle; (1, h, w)."""
    rows = [
        np.concatenate(
            [np.rot90(particles[rng.integers(len(particles))], rng.integers(4)) for _ in range(n)],
            axis=1,
        )
        for _ in range(n)
    ]
    return np.concatenate(rows)[None]


def crop_input(row: Input) -> Input:
    """Take the middle of the first images: enough to choose a strength on."""
    h, w = row.clean.shape[1:]
    top, left = max(h - CROP_PX, 0) // 2, max(w - CROP_PX, 0) // 2
    window = np.s_[:CROP_IMAGES, top : top + CROP_PX, left : left + CROP_PX]
    return Input(
        name=row.name,
        clean=row.clean[window],
        noisy=np.ascontiguousarray(row.noisy[window]),
        sigma=row.sigma,
        data_range=row.data_range,
    )


# Programs


def find_programs() -> list[Program]:
    """List our profiles and the peers that are installed."""
    found = [
        Program(
            name=f"emdask {name}",
            prepare=functools.partial(prepare_emdask, profile),
            strengths=STRENGTHS,
        )
        for name, profile in PROFILES.items()
    ]
    found += [
        Program(
            name=f"emdask {name}{FROM_HOST}",
            prepare=functools.partial(prepare_from_host, profile),
            strengths=STRENGTHS,
            like=f"emdask {name}",
        )
        for name, profile in PROFILES.items()
    ]
    if importlib.util.find_spec("bm3d_triton") is not None:
        given = "two_step=True, clamp=False; step 3, window 39, groups 16 and 32 are fixed"
        found.append(
            Program(
                name="bm3d-triton",
                prepare=prepare_triton,
                strengths=STRENGTHS,
                settings=MAPPINGS,
                given=given,
            )
        )
    if importlib.util.find_spec("bm3d_cupy") is not None:
        given = "its defaults: step 3, window 39, groups 16 and 32"
        found.append(
            Program(name="bm3d-cupy", prepare=prepare_cupy, strengths=SLOW_STRENGTHS, given=given)
        )
    return [*found, *find_vapoursynth()]


def prepare_emdask(
    profile: Profile, noisy: Any, sigma: float, setting: str, data_range: float
) -> Prepared:
    """Ours: one call for any number of images."""
    import cupy

    from emdask.kernels import bm3d_cuda

    sigmas = cupy.full(len(noisy), sigma)
    return Prepared(call=lambda: bm3d_cuda.denoise(noisy, sigmas, profile), finish=cupy.asnumpy)


def prepare_from_host(
    profile: Profile, noisy: Any, sigma: float, setting: str, data_range: float
) -> Prepared:
    """Ours from NumPy to NumPy, as a task of a stack does it."""
    import cupy

    from emdask.blocks_cuda import run_in_pieces
    from emdask.kernels import bm3d_cuda

    images = cupy.asnumpy(noisy)

    def denoise(there: Any) -> Any:
        return bm3d_cuda.denoise(there, cupy.full(len(there), sigma), profile)

    return Prepared(call=lambda: run_in_pieces(denoise, images, along={}), finish=np.asarray)


def prepare_triton(noisy: Any, sigma: float, setting: str, data_range: float) -> Prepared:
    """bm3d-triton clips its input to [0, 1], so that grey levels are mapped there."""
    import cupy
    import torch
    from bm3d_triton import denoise

    offset, factor = map_to_unit(noisy, sigma, setting, data_range)
    mapped = torch.from_dlpack(((noisy - offset) * factor).astype(np.float32)[:, None])
    return Prepared(
        call=lambda: denoise(mapped, sigma * factor, two_step=True, clamp=False),
        finish=lambda result: cupy.asnumpy(cupy.from_dlpack(result)[:, 0]) / factor + offset,
    )


def map_to_unit(noisy: Any, sigma: float, setting: str, data_range: float) -> tuple[float, float]:
    """Offset and factor that bring grey levels to [0, 1].

    "least to largest" keeps every pixel; "sigma at 25/255" puts the noise where a program of 8-bit
    photographs expects it, with the mean at a half; "data range" is that of the clean image, so
    that noise beyond it is clipped.
    """
    if setting == "data range":
        return 0.0, 1 / data_range
    if setting == "sigma at 25/255":
        factor = 25 / 255 / sigma
        return float(noisy.mean()) - 0.5 / factor, factor
    least, largest = float(noisy.min()), float(noisy.max())
    return least, 1 / (largest - least)


def prepare_cupy(noisy: Any, sigma: float, setting: str, data_range: float) -> Prepared:
    """bm3d-cupy takes one image at a time."""
    import cupy
    from bm3d_cupy import bm3d_gpu

    level = cupy.float32(sigma)
    return Prepared(
        call=lambda: [bm3d_gpu(image, level) for image in noisy],
        finish=lambda images: np.stack([cupy.asnumpy(image) for image in images]),
    )


def find_vapoursynth() -> list[Program]:
    """List the C++ BM3D of VapourSynth on CUDA, both plugins, where they are installed."""
    if importlib.util.find_spec("vapoursynth") is None:
        return []
    import vapoursynth

    plugins = {"bm3dcuda": "BM3DCUDA", "bm3dcuda_rtc": "BM3DCUDA rtc"}
    return [
        Program(
            name=name,
            prepare=functools.partial(prepare_vapoursynth, plugin),
            strengths=VAPOURSYNTH_STRENGTHS,
            given="block_step=3, bm_range=19, host copies included",
        )
        for plugin, name in plugins.items()
        if hasattr(vapoursynth.core, plugin)
    ]


def prepare_vapoursynth(
    plugin: str, noisy: Any, sigma: float, setting: str, data_range: float
) -> Prepared:
    """Both steps of VapourSynth's filter, from host memory to host memory."""
    import cupy
    import vapoursynth

    core = vapoursynth.core
    images = cupy.asnumpy(noisy)
    length, height, width = images.shape
    bm3d = getattr(core, plugin).BM3D
    # Its sigma is that of grey levels 0 to 255 where the image has 0 to 1.
    settings = {"sigma": 255 * sigma, "block_step": 3, "bm_range": 19}

    def fill(n: int, f: Any) -> Any:
        frame = f.copy()
        np.asarray(frame[0])[...] = images[n]
        return frame

    def make_clip() -> Any:
        blank = core.std.BlankClip(
            format=vapoursynth.GRAYS, width=width, height=height, length=length, keep=True
        )
        return core.std.ModifyFrame(blank, blank, fill)

    def read(clip: Any) -> list[Floats]:
        return [np.array(frame[0]) for frame in clip.frames()]

    def call() -> list[Floats]:
        clip = make_clip()
        return read(bm3d(clip, ref=bm3d(clip, **settings), **settings))

    return Prepared(call=call, finish=np.stack, copy=lambda: read(make_clip()))


# Measures


def sweep(program: Program, row: Input) -> Best | str:
    """Find the strength and setting of the highest PSNR on a crop; or why there is none."""
    import cupy

    crop = crop_input(row)
    noisy = cupy.asarray(crop.noisy)
    found: dict[tuple[float, str], float] = {}
    for setting in program.settings:
        for strength in program.strengths:
            sigma = strength * crop.sigma
            try:
                prepared = program.prepare(noisy, sigma, setting, crop.data_range)
                result = prepared.finish(prepared.call())
            except Exception as error:  # a peer that fails is a finding
                return f"{type(error).__name__}: {error}".splitlines()[0]
            found[strength, setting] = psnr(result, crop.clean, crop.data_range)
    return choose_best(found, (1.0, program.settings[0]))


def choose_best(found: dict[tuple[float, str], float], nominal: tuple[float, str]) -> Best:
    """Choose the strength and setting of the highest PSNR."""
    strength, setting = max(found, key=lambda key: found[key])
    return Best(
        strength=strength,
        setting=setting,
        psnr=found[strength, setting],
        nominal_psnr=found[nominal],
    )


def measure(program: Program, row: Input, best: Best | str, seconds: float) -> Measured:
    """Time a program on a whole input at its best strength."""
    import cupy

    if isinstance(best, str):
        return Measured(program=program.name, failure=best)
    noisy = cupy.asarray(row.noisy)
    try:
        prepared = program.prepare(noisy, best.strength * row.sigma, best.setting, row.data_range)
        results: list[Any] = []
        first = time_calls(lambda: results.append(prepared.call()), 0)
        result = prepared.finish(results.pop())
        # Else it was the warm-up.
        times = first if first[0] > 1e3 * LONG_S else time_calls(prepared.call, seconds)
        copies = time_copies(prepared, seconds)
    except Exception as error:  # a peer that fails is a finding
        failure = f"{type(error).__name__}: {error}".splitlines()[0]
        return Measured(program=program.name, failure=failure)
    finally:
        cupy.get_default_memory_pool().free_all_blocks()
    value = psnr(result, row.clean, row.data_range)
    return Measured(program=program.name, times_ms=times, copies_ms=copies, psnr=value)


def time_copies(prepared: Prepared, seconds: float) -> list[float]:
    """Milliseconds of the call without BM3D, where there is one; after a warm-up."""
    if prepared.copy is None:
        return []
    prepared.copy()
    return time_calls(prepared.copy, seconds)


def time_calls(call: Callable[[], Any], seconds: float, most: int = 50) -> list[float]:
    """Milliseconds of each call by CUDA events, for about that long."""
    import cupy

    times: list[float] = []
    begin = time.perf_counter()
    while not times or (len(times) < most and time.perf_counter() - begin < seconds):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        call()
        stop.record()
        stop.synchronize()
        times.append(float(cupy.cuda.get_elapsed_time(start, stop)))
    return times


def time_stages(row: Input, profile: Profile) -> tuple[dict[str, float], float]:
    """Milliseconds of each stage of ours by CUDA events, and of the whole; one run of it."""
    import cupy

    from emdask.kernels.bm3d import denoise_batch
    from emdask.kernels.bm3d_cuda import TWIN

    noisy, sigmas = cupy.asarray(row.noisy), cupy.full(len(row.noisy), row.sigma)
    events: list[tuple[str, Any, Any]] = []

    def clocked(name: str) -> Callable[..., Any]:
        function = getattr(TWIN, name)

        def run(*arguments: Any) -> Any:
            start, stop = cupy.cuda.Event(), cupy.cuda.Event()
            start.record()
            result = function(*arguments)
            stop.record()
            events.append((name, start, stop))
            return result

        return run

    names = ("match_blocks", "filter_hard", "filter_wiener", *STAGE_NAMES)
    twin = TWIN._replace(**{name: clocked(name) for name in names})
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    denoise_batch(noisy, sigmas, profile, twin)
    stop.record()
    stop.synchronize()
    calls = [(name, float(cupy.cuda.get_elapsed_time(a, b))) for name, a, b in events]
    return sum_stages(calls), float(cupy.cuda.get_elapsed_time(start, stop))


def sum_stages(calls: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Add up the calls of each stage; matching belongs to the filter that follows it."""
    totals: dict[str, float] = {}
    steps = {"filter_hard": "hard filter", "filter_wiener": "Wiener filter"}
    step = "hard filter"
    for name, milliseconds in reversed(calls):
        step = steps.get(name, step)
        stage = STAGE_NAMES.get(name, step)
        if name == "match_blocks":
            stage = f"matching for the {step}"
        totals[stage] = totals.get(stage, 0.0) + milliseconds
    return dict(reversed(totals.items()))


def copy_bandwidth(n_bytes: int = 2**30) -> float:
    """Bytes read and written in a second by a copy on the card."""
    import cupy

    source = cupy.zeros(n_bytes, np.uint8)
    target = cupy.empty_like(source)
    times = time_calls(lambda: cupy.copyto(target, source), 0.5)
    return 2 * n_bytes / (1e-3 * statistics.median(times[1:] or times))


# Floor


def describe_card() -> Card:
    """Ask the card for what the floor needs."""
    import cupy

    device = cupy.cuda.Device()
    return Card(
        name=cupy.cuda.runtime.getDeviceProperties(device.id)["name"].decode(),
        capability=str(device.compute_capability),
        n_multiprocessors=int(device.attributes["MultiProcessorCount"]),
        # In kHz, at most; not every driver tells, and then there is no floor.
        clock_hz=1e3 * float(device.attributes.get("ClockRate", "nan")),
    )


def count_operations(profile: Profile) -> dict[str, int]:
    """FP32 operations a reference block by stage; a sum, product or fused multiply-add is one.

    Full groups; loads, stores and choosing the nearest blocks are left out. Matching shares sums
    of squares: of each shift, 9 pixels are new to a reference block (two operations each), and 9
    sums lead from them to the block's.
    """
    pixels = BLOCK * BLOCK
    matching = profile.window_px**2 * (9 * 2 + 9)
    # Rows and columns of a block, each a product with a matrix that has zeros.
    wavelet = 2 * BLOCK * int(np.count_nonzero(np.abs(wavelet_matrix()) > 1e-12))
    # Sums and differences of mirrored pixels first: two matrices of a quarter of the size.
    cosine = 2 * BLOCK * (BLOCK + 2 * (BLOCK // 2) ** 2)
    hard, wiener = profile.hard_group, profile.wiener_group
    # Thresholding, or a gain: square, sum, quotient, product; then the sum into the image.
    return {
        "matching for the hard filter": matching,
        "hard filter": hard * (2 * wavelet + 3 * pixels) + 2 * haar_operations(hard),
        "matching for the Wiener filter": matching,
        "Wiener filter": wiener * (3 * cosine + 6 * pixels) + 3 * haar_operations(wiener),
    }


def haar_operations(group: int) -> int:
    """Operations of a Haar transform across a group of blocks."""
    return 2 * (group - 1) * BLOCK * BLOCK


def direct_matching(profile: Profile) -> int:
    """Operations a reference block if each pair of blocks is compared on its own."""
    return profile.window_px**2 * BLOCK * BLOCK * 2


def floor_ms(operations: float, shape: tuple[int, ...], profile: Profile, card: Card) -> float:
    """Milliseconds that so many operations a reference block take on images (n, h, w)."""
    layout = lay_out((shape[1], shape[2]), profile.window_px)
    n_blocks = shape[0] * layout.n_down * layout.n_across
    return 1e3 * operations * n_blocks / card.operations_per_s


# Text


def describe_run(card: Card, programs: Sequence[Program]) -> list[str]:
    """Machine, card, versions, and what each program was given."""
    packages = [n for n in ("torch", "triton", "bm3d-triton", "bm3d-cupy") if is_installed(n)]
    lines = [describe_machine("emdask", "numpy", *packages), "", card_line(card)]
    lines += ["", *(f"- {p.name}: {p.given}" for p in programs if p.given)]
    if all(program.name.startswith("emdask") for program in programs):
        lines.append("No peer is installed: pip install bm3d-triton bm3d-cupy")
    return lines


def card_line(card: Card) -> str:
    """Card, its memory and the versions of CUDA and CuPy."""
    import cupy

    free, total = cupy.cuda.Device().mem_info
    runtime = cupy.cuda.runtime.runtimeGetVersion()
    return (
        f"{card.name}: {card.n_multiprocessors} multiprocessors at {card.clock_hz / 1e9:.2f} GHz, "
        f"{card.operations_per_s / 1e12:.1f} T FP32 operations/s; "
        f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free; "
        f"CUDA {runtime // 1000}.{runtime % 1000 // 10}, CuPy {cupy.__version__}"
    )


def is_installed(package: str) -> bool:
    """Say whether a distribution is there."""
    try:
        version(package)
    except ImportError:
        return False
    return True


def sweep_table(row: Input, found: dict[str, Best | str]) -> list[str]:
    """PSNR of each program at the nominal and at its best strength, on a crop."""
    head = ["program", "PSNR at the nominal sigma, dB", "best PSNR, dB", "at"]
    rows = []
    for name, best in found.items():
        if isinstance(best, str):
            rows.append([name, "failed", best, ""])
            continue
        at = f"{best.strength:g} x sigma" + (f", {best.setting}" if best.setting else "")
        rows.append([name, f"{best.nominal_psnr:.3f}", f"{best.psnr:.3f}", at])
    size = f"{min(CROP_PX, row.clean.shape[1])} x {min(CROP_PX, row.clean.shape[2])}"
    return [f"## {row.name}", "", f"Strength, on a crop of {size}", "", *table(head, rows)]


def whole_table(row: Input, measured: Sequence[Measured]) -> list[str]:
    """Time and PSNR on whole images, and time over that of our first profile."""
    head = ["program", "ms, median (least to largest)", "images/s", "PSNR, dB", "x our time"]
    ours = next((m for m in measured if m.program.startswith("emdask") and m.times_ms), None)
    rows = []
    for m in measured:
        if not m.times_ms:
            rows.append([m.program, f"failed: {m.failure}", "", "", ""])
            continue
        times = f"{m.median_ms:.2f} ({min(m.times_ms):.2f} to {max(m.times_ms):.2f})"
        ratio = f"{m.median_ms / ours.median_ms:.2f}" if ours else ""
        rate = f"{len(row.noisy) / m.median_ms * 1e3:,.1f}"
        rows.append([m.program, times, rate, f"{m.psnr:.3f}", ratio])
        if m.copies_ms:
            rows.append(without_copies_row(m, len(row.noisy), ours))
    return ["Whole, each at its best strength", "", *table(head, rows)]


def without_copies_row(m: Measured, n_images: int, ours: Measured | None) -> list[str]:
    """The row of a program's time less its copies, which are told."""
    name = f"{m.program} less copies of {statistics.median(m.copies_ms):.2f} ms"
    left = m.without_copies_ms
    rate = f"{n_images / left * 1e3:,.1f}" if left else ""
    ratio = f"{left / ours.median_ms:.2f}" if ours else ""
    return [name, f"{left:.2f}", rate, f"{m.psnr:.3f}", ratio]


def bar_lines(measured: Sequence[Measured]) -> list[str]:
    """Hold our fastest profile that is no worse than the better peer against the bar.

    A peer's time is that without copies; where it has copies, host to host is told beside.
    """
    peers = [m for m in measured if m.times_ms and m.program in BAR]
    emdask = {m.program: m for m in measured if m.times_ms and m.program.startswith("emdask")}
    ours = [m for name, m in emdask.items() if not name.endswith(FROM_HOST)]
    if not peers:
        return ["No peer with a bar was measured."]
    wanted = max(m.psnr for m in peers)
    good = [m for m in ours if m.psnr >= wanted]
    if not good:
        return [f"None of our profiles reaches the better peer's {wanted:.3f} dB."]
    fastest = min(good, key=lambda m: m.median_ms)
    lines = [
        f"{fastest.program} at {fastest.psnr:.3f} dB is "
        f"{m.without_copies_ms / fastest.median_ms:.2f} times as fast as {m.program} at "
        f"{m.psnr:.3f} dB{' less its copies' if m.copies_ms else ''} "
        f"(bar {BAR[m.program][0]:g}, goal {BAR[m.program][1]:g})."
        for m in peers
    ]
    if (from_host := emdask.get(fastest.program + FROM_HOST)) is not None:
        lines += [
            f"From host to host it is {m.median_ms / from_host.median_ms:.2f} times as fast as "
            f"{m.program} with its copies."
            for m in peers
            if m.copies_ms
        ]
    return lines


def stage_table(row: Input, card: Card, n_runs: int = 7) -> list[str]:
    """Where the time of the normal profile goes, beside the arithmetic floor."""
    profile = bm3d_plan.NORMAL
    time_stages(row, profile)
    runs = [time_stages(row, profile) for _ in range(n_runs)]
    whole = statistics.median(total for _, total in runs)
    stages = {name: statistics.median(run[name] for run, _ in runs) for name in runs[0][0]}
    return describe_stages(row, card, stages, whole)


def describe_stages(row: Input, card: Card, stages: dict[str, float], whole_ms: float) -> list[str]:
    """Lines of the table of stages."""
    profile, shape = bm3d_plan.NORMAL, row.noisy.shape
    floors = {
        name: floor_ms(operations, shape, profile, card)
        for name, operations in count_operations(profile).items()
    }
    rows = [
        [name, f"{ms:.3f}", f"{floors[name]:.3f}" if name in floors else ""]
        for name, ms in stages.items()
    ]
    rows.append(["rest", f"{whole_ms - sum(stages.values()):.3f}", ""])
    rows.append(["whole", f"{whole_ms:.3f}", f"{sum(floors.values()):.3f}"])
    direct = floor_ms(direct_matching(profile), shape, profile, card)
    head = ["stage", "ms, median", "arithmetic floor, ms"]
    title = f"Stages of emdask normal on {row.name}"
    note = f"Matching block by block, without shared sums, has a floor of {direct:.3f} ms a step."
    return [title, "", *table(head, rows), "", note]


def large_table(shape: tuple[int, int]) -> list[str]:
    """Time and device memory of ours on the largest micrographs there are."""
    import cupy

    from emdask.kernels import bm3d_cuda

    pool = cupy.get_default_memory_pool()
    rng = np.random.default_rng(20261122)
    noisy = rng.standard_normal((1, *shape), np.float32)
    rows = []
    for name, profile in PROFILES.items():
        pool.free_all_blocks()
        images, sigmas = cupy.asarray(noisy), cupy.ones(1)
        call = functools.partial(bm3d_cuda.denoise, images, sigmas, profile)
        call()
        # The pool keeps what it once took: this is the most at any time, images included.
        peak = pool.total_bytes()
        times = time_calls(call, 5, 10)
        stated = stated_bytes(shape, profile, bm3d_cuda.PIXEL_BYTES, bm3d_cuda.GROUP_BYTES)
        cells = [f"{statistics.median(times):.1f}", f"{peak / 2**20:,.0f}"]
        rows.append([f"emdask {name}", *cells, f"{stated / 2**20:,.0f}"])
        del images
    head = ["program", "ms, median", "device memory at most, MiB", "stated by its docstring, MiB"]
    title = f"One micrograph of {shape[0]} x {shape[1]}, noise alone"
    return [title, "", *table(head, rows)]


def stated_bytes(
    shape: tuple[int, int], profile: Profile, pixel_bytes: int, group_bytes: int
) -> int:
    """Working memory for one image as the docstring of the kernel states it, and its input."""
    layout = lay_out(shape, profile.window_px)
    return pixel_bytes * layout.height * layout.width + group_bytes + 4 * shape[0] * shape[1]


if __name__ == "__main__":
    main()
