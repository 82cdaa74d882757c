"""Particle picking: quality on simulated micrographs, CPU time and memory, beside Topaz in one run.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/pick.py [MAP]
        [--tables quality times rate] [--pickers general simulated log template] [--peer TOPAZ]
        [--micrographs N] [--rounds N] [--binnings 8 4]
        [--device cpu|cuda] [--rate N] [--folder FOLDER] [--quick] [--out FILE]

MAP is the density map of a ribosome, whose voxels are ``--voxel-A`` wide; without it a phantom is
seen. ``--peer`` is the command ``topaz`` of an environment that has Topaz, which then runs on the
same files with its pretrained networks, as a program of its own.

Quality: micrographs of 4096 px with 300 particles of 130 px, dark on slanting ice, and lumps of ice
that are none, in three series (`SERIES`). SNR is the variance of the particles within their discs
over that of the noise. A pick is right within a quarter of a diameter of a particle that has no
better pick; lumps cover none. The threshold of F1 is each method's default; the best in hindsight
is told beside it.

Times are CPU seconds, user and system, of whole processes, from MRC to a file of coordinates.

``--rate`` measures micrographs per second from a store to coordinates, on a cluster of workers that
is warm, by the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from arguments import QUICK, errors_as_sentences, parse_count
from scipy.signal import resample
from scipy.spatial import KDTree
from tables import describe_machine, table, write_lines

import emdask
from emdask.errors import MissingLibraryError
from emdask.kernels.ice import add_crystal
from emdask.metrics import match_picks
from emdask.pickers import build_search, run_search
from emdask.placement import on_cards
from emdask.simulators.specimen import measure_diameter
from emdask.volumes import build_volume

TABLES = ("quality", "times", "rate")
SNRS = (0.1, 0.05, 0.02)
SIZE_PX, DIAMETER_PX, N_PARTICLES = 4096, 130.0, 300
QUICK_PX, QUICK_DIAMETER_PX, QUICK_PARTICLES = 512, 48.0, 12
# A right pick is at most so many diameters off.
RADIUS = 0.25
# Below all scores that matter: average precision needs the picks that no threshold lets through.
LOWEST = -1e9
SEED = 2
PICKERS, MODELS = ("general", "simulated", "log", "template"), ("general", "simulated")
# Pickers whose time is told: networks take what one does, templates what their number says.
TIMED = ("general", "log")
N_THREADS = 2
# Lumps of ice: sizes in diameters and darkness in deviations of the noise; of faint ones the least
# darkness, and how fast darker ones become rare.
LUMP_SIZE, LUMP_DARKNESS = (0.5, 2.5), (1.4, 5.0)
FAINT_SIZE, FAINT_DARKNESS, FAINT_POWER = (0.4, 1.2), 0.12, 2.8
# The rim of a lump bulges by so much of its radius at most; tries to find room for one.
BULGE, TRIES = 1.07, 20_000
NETWORKS = ("resnet16_u64", "resnet8_u64")
# Of the peer: a region's radius in diameters, and the score at which its networks say "as likely
# a particle as not".
PEER_RADIUS, PEER_THRESHOLD = 0.45, 0.0
# Micrographs that differ; the others of a store are these again.
DISTINCT = 4
# A process begins with the peak memory of the one that started it: this one is small.
LAUNCHER = """
import json, os, sys
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
code, cpu_s = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
print(json.dumps([code, cpu_s, usage.ru_maxrss / 1e3]))
"""

Array = Any


class Series(NamedTuple):
    """What makes micrographs of a kind hard: a CTF, lumps, and lumps as faint as particles."""

    ctf: dict[str, Any] | None
    n_lumps: int
    n_faint: int


SERIES = {
    "ice": Series(None, 7, 0),
    "faint ice": Series(None, 3, 60),
    "CTF": Series({"defocus_A": (10_000.0, 20_000.0)}, 7, 0),
}


class Sample(NamedTuple):
    """Micrographs, where their particles are, what these are, and how large."""

    stack: xr.DataArray
    truth: pd.DataFrame
    volume: xr.DataArray
    diameter_px: float


class Quality(NamedTuple):
    """Average precision, F1 at the default threshold, and the best F1."""

    average_precision: float
    f1: float
    best_f1: float


class Spent(NamedTuple):
    """CPU seconds of a process and the most MB that it held."""

    cpu_s: float
    memory_MB: float


class Streamed(NamedTuple):
    """Seconds of the clock and of the workers' CPUs, and the number of picks."""

    clock_s: float
    cpu_s: float
    n_picks: int


def main() -> None:
    """Measure and print all tables."""
    options = parse_arguments()
    lines = ["# Particle picking", "", describe_machine("numpy", "scipy", "dask"), ""]
    lines += [QUICK, ""] if options.quick else []
    print("\n".join(lines), flush=True)
    parts = {
        "quality": [partial(quality_lines, options, name) for name in SERIES],
        "times": [lambda: time_lines(options)],
        "rate": [lambda: rate_lines(options)],
    }
    for part in chain.from_iterable(parts[name] for name in options.tables):
        found = [*part(), ""]
        lines += found
        print("\n".join(found), flush=True)
    write_lines(lines, options.out)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="particle picking beside Topaz")
    parser.add_argument("map", nargs="?", type=Path, help="density map of the particle")
    parser.add_argument("--voxel-A", dest="voxel_A", type=float, default=5.0, help="of the map")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES[:2], help="which")
    parser.add_argument("--pickers", nargs="+", choices=PICKERS, default=[*PICKERS])
    parser.add_argument("--peer", type=Path, help="the command topaz")
    parser.add_argument("--binnings", nargs="+", type=parse_count, default=[8, 4], help="of Topaz")
    parser.add_argument("--micrographs", type=parse_count, default=1, help="for each SNR")
    parser.add_argument("--rounds", type=parse_count, default=2, help="of timing")
    parser.add_argument("--rate", type=parse_count, default=64, help="micrographs of the store")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--workers", type=parse_count, default=1, help="processes, without cards")
    parser.add_argument("--folder", type=Path, help="for micrographs and stores")
    parser.add_argument("--quick", action="store_true", help="small micrographs: seconds")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    options = parser.parse_args(arguments)
    if options.quick:
        options.map, options.rounds, options.micrographs, options.rate = None, 1, 1, 2
        options.binnings = options.binnings[:1]
    return options


# Micrographs


def make_volume(options: argparse.Namespace) -> xr.DataArray:
    """Return the particle, at the pixel size at which it has the diameter that is wanted."""
    wanted_px = QUICK_DIAMETER_PX if options.quick else DIAMETER_PX
    if options.map is None:
        blobs = emdask.phantom(200, radius_A=110, width_A=(5.0, 7.0))
        return blobs.volume(round(1.4 * wanted_px), 240.0 / wanted_px)
    given = emdask.open_volume(options.map, pixel_size_A=options.voxel_A)
    before = given.shape[0]
    after = round(before * wanted_px / measure_diameter(given.values))
    # The centre is the voxel that keeps its place.
    density = np.fft.ifftshift(given.values)
    for axis in range(3):
        density = resample(density, after, axis=axis)
    return build_volume(np.fft.fftshift(density), given.attrs["pixel_size_A"] * before / after)


def simulate(options: argparse.Namespace, series: Series, snr: float, n: int) -> Sample:
    """Simulate micrographs of a series."""
    if options.quick:
        series = Series(series.ctf, min(series.n_lumps, 1), series.n_faint // 15)
    volume = make_volume(options)
    diameter_px = measure_diameter(volume.values)
    made, truth = emdask.simulate_micrographs(
        volume,
        n,
        snr=snr,
        snr_in="particles",
        size_px=QUICK_PX if options.quick else SIZE_PX,
        n_particles=QUICK_PARTICLES if options.quick else N_PARTICLES,
        ctf=series.ctf,
        seed=SEED,
    )
    images = made.images.compute(scheduler="synchronous")
    for index, image in enumerate(images.values):
        places = truth[truth["image_id"] == index][["x_px", "y_px"]].to_numpy()
        add_lumps(image, draw_lumps(series, diameter_px, index), places, diameter_px, index)
    return Sample(images.chunk({"image": 1}), truth, volume, diameter_px)


def draw_lumps(series: Series, diameter_px: float, index: int) -> list[tuple[float, float]]:
    """Draw radius and darkness of the lumps of a micrograph."""
    rng = np.random.default_rng([SEED, index, 0])
    low, high = LUMP_SIZE
    sizes = [
        *(low * (high / low) ** rng.random(series.n_lumps)),
        *rng.uniform(*FAINT_SIZE, series.n_faint),
    ]
    rare = FAINT_DARKNESS * (1 - rng.random(series.n_faint)) ** (-1 / FAINT_POWER)
    darkness = [*rng.uniform(*LUMP_DARKNESS, series.n_lumps), *rare]
    return [(size * diameter_px / 2, dark) for size, dark in zip(sizes, darkness, strict=True)]


def add_lumps(
    image: Array,
    lumps: Sequence[tuple[float, float]],
    places: Array,
    diameter_px: float,
    index: int,
) -> None:
    """Add lumps to a micrograph, in place, where they cover no particle."""
    rng = np.random.default_rng([SEED, index, 1])
    particles = KDTree(places)
    ice = np.zeros_like(image)
    for radius_px, darkness in lumps:
        tried = rng.uniform(0, image.shape[::-1], (TRIES, 2))
        # Of none that is free, the freest.
        room_px, _ = particles.query(tried)
        free = room_px > BULGE * radius_px + diameter_px / 2
        x, y = tried[np.argmax(free) if free.any() else np.argmax(room_px)]
        add_crystal(ice, x, y, radius_px, darkness, int(rng.integers(2, 7)))
    image -= ice


# Quality


def quality_lines(options: argparse.Namespace, name: str) -> list[str]:
    """Average precision and F1 of all pickers, by SNR, on one series."""
    columns = [
        judge_pickers(simulate(options, SERIES[name], snr, options.micrographs), options)
        for snr in SNRS
    ]
    rows = [
        [who, *(cell for column in columns for cell in quality_cells(column[who]))]
        for who in columns[0]
    ]
    head = [f"SNR {snr:g}: {what}" for snr in SNRS for what in ("AP", "F1", "best F1")]
    kind = "a phantom" if options.map is None else "the map given"
    title = f"Series {name!r}: {kind}, micrographs for each SNR: {options.micrographs}"
    return [title, "", *table(["", *head], rows)]


def quality_cells(found: Quality) -> list[str]:
    """Format figures for a table."""
    return [f"{value:.3f}" for value in found]


def judge_pickers(sample: Sample, options: argparse.Namespace) -> dict[str, Quality]:
    """Pick by ours and by the peer."""
    found = {name: judge_here(sample, name, options) for name in options.pickers}
    if options.peer is not None:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found |= judge_peer(sample, Path(folder), options)
    return found


def judge_here(sample: Sample, name: str, options: argparse.Namespace) -> Quality:
    """Pick by one of ours, at its default threshold and below it."""
    method, parameters = describe_picker(name, sample)
    search = build_search(sample.stack, method, diameter_px=sample.diameter_px, **parameters)
    all_of_them = replace(search, threshold=LOWEST)
    table = run_search(sample.stack, all_of_them, device=options.device)
    return judge(table.compute(scheduler="synchronous"), sample, search.threshold)


def describe_picker(name: str, sample: Sample) -> tuple[str, dict[str, Any]]:
    """Return the method and its parameters; templates are projections of the truth itself."""
    if name == "template":
        return name, {"template": sample.volume}
    return ("cnn", {"model": name}) if name in MODELS else (name, {})


def judge(picks: pd.DataFrame, sample: Sample, threshold: float) -> Quality:
    """Compare picks with the truth."""
    radius_px = RADIUS * sample.diameter_px
    found = match_picks(picks, sample.truth, radius_px=radius_px, threshold=threshold)
    return Quality(found.average_precision, found.f1, found.best.f1)


def judge_peer(sample: Sample, folder: Path, options: argparse.Namespace) -> dict[str, Quality]:
    """Let Topaz pick, with each of its networks and binnings."""
    files = write_micrographs(sample.stack, folder / "micrographs")
    found = {}
    for binning in options.binnings:
        small = folder / f"by{binning}"
        run_peer(prepare_command(options.peer, files, small, binning))
        for network in NETWORKS:
            target = folder / f"{network}-{binning}.txt"
            run_peer(extract_command(options.peer, small, target, network, binning, sample))
            picks = read_peer(target)
            found[peer_name(network, binning)] = judge(picks, sample, PEER_THRESHOLD)
    return found


def write_micrographs(stack: xr.DataArray, folder: Path) -> list[Path]:
    """Write an MRC file for each micrograph."""
    emdask.save_stack(stack, folder)
    return sorted(folder.glob("*.mrc"))


# The peer


def peer_name(network: str, binning: int) -> str:
    """Name a row of the peer."""
    return f"Topaz {network}, binned by {binning}"


def prepare_command(peer: Path, files: Sequence[Path], small: Path, binning: int) -> list[str]:
    """Shrink and normalise micrographs."""
    options = ["-s", f"{binning}", "-d", "-1", "-j", f"{N_THREADS}", "-o", f"{small}/"]
    return [f"{peer}", "preprocess", *options, *map(str, files)]


def extract_command(
    peer: Path, small: Path, target: Path, network: str, binning: int, sample: Sample
) -> list[str]:
    """Score micrographs and find particles, in pixels of the originals."""
    radius = max(1, round(PEER_RADIUS * sample.diameter_px / binning))
    options = ["-m", network, "-r", f"{radius}", "-x", f"{binning}", "-d", "-1"]
    options += ["-j", f"{N_THREADS}", "-o", f"{target}"]
    return [f"{peer}", "extract", *options, *(f"{path}" for path in sorted(small.glob("*.mrc")))]


def run_peer(command: Sequence[str]) -> Spent:
    """Run a command of the peer."""
    spent, _ = run_process(command)
    return spent


def read_peer(path: Path) -> pd.DataFrame:
    """Read the coordinates that Topaz writes."""
    found = pd.read_csv(path, sep="\t")
    names = {"image_name": "micrograph", "x_coord": "x_px", "y_coord": "y_px", "score": "score"}
    return found.rename(columns=names)[[*names.values()]]


def run_process(command: Sequence[str]) -> tuple[Spent, str]:
    """Run a program on two threads; what it took, and what it printed."""
    threads = {f"{library}_NUM_THREADS": f"{N_THREADS}" for library in ("OMP", "OPENBLAS", "MKL")}
    launch = [sys.executable, "-I", "-S", "-c", LAUNCHER, *command]
    run = subprocess.run(launch, capture_output=True, text=True, env=os.environ | threads)
    *printed, last = run.stdout.splitlines() or [""]
    if run.returncode or json.loads(last)[0]:
        told = (run.stderr.strip().splitlines() or [""])[-1]
        raise MissingLibraryError(f"{Path(command[0]).name} cannot be run: {told}")
    return Spent(*json.loads(last)[1:]), "\n".join(printed)


# Times


def time_lines(options: argparse.Namespace) -> list[str]:
    """CPU seconds and memory for one micrograph, pair by pair, and those of the parts of ours."""
    sample = simulate(options, SERIES["ice"], SNRS[1], 1)
    rounds: list[dict[str, Spent]] = []
    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in TIMED if name in options.pickers}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        files = write_micrographs(sample.stack, Path(folder) / "micrographs")
        for number in range(options.rounds):
            spent = {}
            for name, told in parts.items():
                target = Path(folder) / f"{name}-{number}.star"
                spent[name], of_parts = time_here(files[0], target, name, sample)
                told.append(of_parts)
            if options.peer is not None:
                spent |= time_peer(files, Path(folder) / f"{number}", sample, options)
            rounds.append(spent)
    size = f"{sample.stack.shape[1]} x {sample.stack.shape[2]}"
    title = f"One micrograph of {size} float32, MRC to coordinates, threads: {N_THREADS}"
    lines = [title, "", *spent_table(rounds), "", *ratio_lines(rounds)]
    for name, told in parts.items():
        whole_s = statistics.median(spent[name].cpu_s for spent in rounds)
        lines += ["", *part_table(name, told, whole_s)]
    return lines


def time_here(
    source: Path, target: Path, name: str, sample: Sample
) -> tuple[Spent, dict[str, Any]]:
    """Pick by one of ours in a process of its own; all of it, and its parts."""
    script = Path(__file__).resolve().with_name("pick_once.py")
    method, _ = describe_picker(name, sample)
    command = [sys.executable, script, source, target, method, sample.diameter_px]
    spent, printed = run_process([f"{part}" for part in command])
    parts = json.loads(printed.splitlines()[-1])
    # The parts reset the peak that the process is known by.
    most_MB = max(spent.memory_MB, *parts["memory_MB"].values())
    return Spent(spent.cpu_s, most_MB), parts


def time_peer(
    files: Sequence[Path], folder: Path, sample: Sample, options: argparse.Namespace
) -> dict[str, Spent]:
    """Let Topaz pick from one micrograph; its two commands, and both."""
    spent = {}
    for binning in options.binnings:
        small, name = folder / f"by{binning}", peer_name(NETWORKS[0], binning)
        small.mkdir(parents=True)
        first = run_peer(prepare_command(options.peer, files, small, binning))
        target = folder / f"by{binning}.txt"
        command = extract_command(options.peer, small, target, NETWORKS[0], binning, sample)
        second = run_peer(command)
        spent |= {f"{name}: preprocess": first, f"{name}: extract": second}
        both = Spent(first.cpu_s + second.cpu_s, max(first.memory_MB, second.memory_MB))
        spent[f"{name}: both"] = both
    return spent


def spent_table(rounds: list[dict[str, Spent]]) -> list[str]:
    """Medians of rounds."""
    rows = []
    for name in rounds[0]:
        cpu_s = [spent[name].cpu_s for spent in rounds]
        memory_MB = [spent[name].memory_MB for spent in rounds]
        cells = (statistics.median(cpu_s), min(cpu_s), max(cpu_s))
        rows.append([name, *(f"{s:.2f}" for s in cells), f"{statistics.median(memory_MB):.0f}"])
    return table(["", "CPU s", "least", "most", "peak MB"], rows)


def ratio_lines(rounds: list[dict[str, Spent]]) -> list[str]:
    """CPU time of the peer over that of ours, in the same round."""
    lines = []
    for peer in (name for name in rounds[0] if name.endswith(": both")):
        for ours in (name for name in TIMED if name in rounds[0]):
            ratios = [spent[peer].cpu_s / spent[ours].cpu_s for spent in rounds]
            lines.append(
                f"{peer.removesuffix(': both')} / emdask {ours}: {statistics.median(ratios):.1f} "
                f"({min(ratios):.1f} to {max(ratios):.1f} in {len(ratios)} rounds)"
            )
    return lines


def part_table(name: str, told: list[dict[str, Any]], whole_s: float) -> list[str]:
    """Where the time and the memory of ours go; the process also has to end."""
    rows, rest_s = [], whole_s
    for part in told[0]["cpu_s"]:
        cpu_s, memory_MB = (
            statistics.median(parts[what][part] for parts in told)
            for what in ("cpu_s", "memory_MB")
        )
        rest_s -= cpu_s
        rows.append([part, f"{cpu_s:.2f}", f"{memory_MB:.0f}"])
    rows.append(["end", f"{max(rest_s, 0):.2f}", ""])
    return table([f"emdask {name}", "CPU s", "peak MB"], rows)


# Many micrographs


def rate_lines(options: argparse.Namespace) -> list[str]:
    """Micrographs per second from stores to coordinates, by the first picker."""
    name, target, n_workers = options.pickers[0], "cuda", {}
    if options.device == "cpu":
        target, n_workers = "local", {"n_workers": options.workers}
    sample = simulate(options, SERIES["ice"], SNRS[1], min(DISTINCT, options.rate))
    stack = repeat_micrographs(sample.stack, options.rate)
    rows = []
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        emdask.connect(target, quiet=True, **n_workers) as client,
    ):
        for kind, store in {"Zarr": "in.zarr", "MRC files": "in"}.items():
            path = emdask.save_stack(stack, Path(folder) / store)
            opened = emdask.open_stack(path if path.suffix else f"{path}/*.mrc", chunks=1)
            spent = measure_rate(client, opened, name, sample, Path(f"{path}.csv"), options)
            rows.append([kind, f"{options.rate}", *rate_cells(spent, opened)])
    head = ["store", "micrographs", "micrographs/s", "GB/s", "CPU s a micrograph", "picks"]
    size = f"{stack.shape[1]} x {stack.shape[2]} {stack.dtype}"
    title = f"End to end on {options.device}, {name}, {size}, workers: {options.workers}"
    return [title, "", *table(head, rows)]


def rate_cells(spent: Streamed, stack: xr.DataArray) -> list[str]:
    """Format figures for a table."""
    rate = len(stack) / spent.clock_s
    cpu_s = spent.cpu_s / len(stack)
    return [
        f"{rate:.2f}",
        f"{stack.nbytes / 1e9 / spent.clock_s:.2f}",
        f"{cpu_s:.2f}",
        f"{spent.n_picks}",
    ]


def repeat_micrographs(stack: xr.DataArray, n: int) -> xr.DataArray:
    """Return a stack of n micrographs, the given ones again and again, under new names."""
    images = stack[np.arange(n) % len(stack)]
    names = [f"micrograph_{index:06d}.mrc" for index in range(n)]
    return images.assign_coords(image_id=("image", np.arange(n)), micrograph=("image", names))


def measure_rate(
    client: Any,
    stack: xr.DataArray,
    name: str,
    sample: Sample,
    target: Path,
    options: argparse.Namespace,
) -> Streamed:
    """Pick from a stack and write the coordinates, after a warm-up."""
    method, parameters = describe_picker(name, sample)

    def pick(some: xr.DataArray) -> pd.DataFrame:
        found = emdask.pick(
            some, method, diameter_px=sample.diameter_px, device=options.device, **parameters
        )
        with on_cards(options.device):
            return found.compute()

    pick(stack[: 2 * sum(client.nthreads().values())])
    cpu_s, start = sum_cpu(client), time.perf_counter()
    picks = pick(stack)
    emdask.save_picks(picks, target)
    return Streamed(time.perf_counter() - start, sum_cpu(client) - cpu_s, len(picks))


def sum_cpu(client: Any) -> float:
    """CPU seconds of all workers until now."""
    return float(sum(client.run(time.process_time).values()))


if __name__ == "__main__":
    with errors_as_sentences():
        main()
