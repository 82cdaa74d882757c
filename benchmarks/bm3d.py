"""BM3D of emdask beside the PyPI package ``bm3d``: CPU seconds and PSNR on the same inputs.

    python benchmarks/bm3d.py [INPUTS] [--quick] [--out FILE]

INPUTS is a folder with ``particles_clean.npy``, ``particles_snr0.1.npy``, ``camera512_clean.npy``
and so on, and ``sigmas.json``; without it a photograph and simulated particles are made here.
Everything runs on one thread and CPU time is compared; the peer is optional. Strength confounds
such tables, so each method's sigma is swept, and both the nominal and the best are shown.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from inputs import Floats, Input, psnr, simulate_particles, with_noise
from scipy.ndimage import gaussian_filter
from tables import describe_machine, table, write_lines

from emdask.kernels import bm3d_cpu, bm3d_plan
from emdask.kernels.noise import estimate_sigma

STRENGTHS = (0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.7, 2.0)
PEER_STRENGTHS = (1.0, 1.2, 1.4)
N_SWEEP = 4
LARGEST_SWEPT_PX = 600


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One column: denoises images at a sigma."""

    name: str
    run: Callable[[Floats, float], Any]
    slow: bool = False


def main() -> None:
    """Measure and print all tables."""
    arguments = parse_arguments()
    # Before the peer and its libraries are loaded.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    inputs = read_inputs(arguments.inputs) if arguments.inputs else make_inputs(arguments.quick)
    peers = [*our_profiles(), *package_bm3d(), *plugin_bm3dcpu()]
    if arguments.quick:
        peers = [peer for peer in peers if not peer.slow]
    lines = [describe_machine("numpy"), "", *([] if arguments.quick else compile_time()), ""]
    print("\n".join(lines), flush=True)
    for measure in (
        lambda: nominal_table(inputs, peers),
        lambda: strength_table(inputs, peers, arguments.quick),
        lambda: sigma_table(inputs),
        lambda: stage_table(inputs),
        lambda: core_table(inputs[-1]),
    ):
        rows = [*measure(), ""]
        lines += rows
        print("\n".join(rows), flush=True)
    write_lines(lines, arguments.out)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="BM3D beside its peers")
    parser.add_argument("inputs", nargs="?", type=Path, help="folder of inputs")
    parser.add_argument("--quick", action="store_true", help="small inputs, no slow peer: seconds")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    return parser.parse_args()


# Inputs


def read_inputs(folder: Path) -> list[Input]:
    """Read prepared inputs: photograph, 40 particles at three SNRs, crop of any micrograph."""
    sigmas = json.loads((folder / "sigmas.json").read_text())
    camera = np.load(folder / "camera512_clean.npy")[None]
    rows = [
        Input(
            name=f"camera 512, sigma {s}",
            clean=camera,
            noisy=np.load(folder / f"camera512_s{s}.npy")[None],
            sigma=s,
            data_range=255,
        )
        for s in (25, 50)
    ]
    particles = np.load(folder / "particles_clean.npy")[:40]
    rows += [
        Input(
            name=f"40 particles 128, SNR {snr}",
            clean=particles,
            noisy=np.load(folder / f"particles_snr{snr}.npy")[:40],
            sigma=sigmas[f"particles_snr{snr}"],
            data_range=1,
        )
        for snr in (0.4, 0.1, 0.05)
    ]
    if not (folder / "micro4096_clean.npy").exists():
        return rows
    window = np.s_[1024:2048, 1024:2048]
    crop = Input(
        name="micrograph crop 1024, SNR 0.1",
        clean=np.array(np.load(folder / "micro4096_clean.npy", mmap_mode="r")[window])[None],
        noisy=np.array(np.load(folder / "micro4096_snr0.1.npy", mmap_mode="r")[window])[None],
        sigma=sigmas["micro4096_snr0.1"],
        data_range=1,
    )
    return [*rows, crop]


def make_inputs(quick: bool) -> list[Input]:
    """Make a photograph and particles with noise; seeded."""
    from skimage import data

    rng = np.random.default_rng(20261122)
    camera = data.camera().astype(np.float32)[None]
    camera = camera[:, 150:278, 150:278] if quick else camera
    inputs = [with_noise("camera, sigma 25", camera, 25.0, 255.0, rng)]
    particles = simulate_particles(3 if quick else 40, 64 if quick else 128, rng)
    for snr in (0.4, 0.1, 0.05):
        sigma = float(np.sqrt(particles.var() / snr))
        name = f"{len(particles)} particles {particles.shape[-1]}, SNR {snr}"
        inputs.append(with_noise(name, particles, sigma, 1.0, rng))
    return inputs


# Peers


def our_profiles() -> list[Peer]:
    """List our own profiles."""

    def use(profile: bm3d_plan.Profile) -> Callable[[Floats, float], Floats]:
        return lambda images, sigma: bm3d_cpu.denoise(images, np.full(len(images), sigma), profile)

    return [
        Peer(name="emdask normal", run=use(bm3d_plan.NORMAL)),
        Peer(name="emdask fast", run=use(bm3d_plan.FAST)),
        Peer(name="emdask high_noise", run=use(bm3d_plan.HIGH_NOISE)),
    ]


def package_bm3d() -> list[Peer]:
    """List the profiles of the PyPI package, if it is installed."""
    # This file has the same name and lies in the first folder that Python looks through.
    here = Path(__file__).resolve().parent
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != here]
    sys.modules.pop("bm3d", None)
    if importlib.util.find_spec("bm3d") is None:
        print("the package bm3d is not installed: no peer (pip install bm3d==4.0.3)")
        return []
    import bm3d

    def use(profile: Any) -> Callable[[Floats, float], Any]:
        return lambda images, sigma: np.array([bm3d.bm3d(x, sigma, profile) for x in images])

    profiles = {"np": bm3d.BM3DProfile(), "lc": bm3d.BM3DProfileLC()}
    return [Peer(name=f"bm3d '{name}'", run=use(p), slow=True) for name, p in profiles.items()]


def plugin_bm3dcpu() -> list[Peer]:
    """List the C++ BM3D of VapourSynth, with our step and window, if it is installed."""
    if importlib.util.find_spec("vapoursynth") is None:
        print("VapourSynth is not installed: no C++ peer (pip install vapoursynth-bm3dcpu)")
        return []
    import vapoursynth

    core = vapoursynth.core
    core.num_threads = 1

    def run(images: Floats, sigma: float) -> Floats:
        def fill(n: int, f: Any) -> Any:
            frame = f.copy()
            np.asarray(frame[0])[...] = images[n]
            return frame

        length, height, width = images.shape
        blank = core.std.BlankClip(
            format=vapoursynth.GRAYS, width=width, height=height, length=length, keep=True
        )
        noisy = core.std.ModifyFrame(blank, blank, fill)
        # Its sigma is that of grey levels 0 to 255 where the image has 0 to 1.
        settings = {"sigma": 255 * sigma, "block_step": 3, "bm_range": 19}
        basic = core.bm3dcpu.BM3D(noisy, **settings)
        final = core.bm3dcpu.BM3D(noisy, ref=basic, **settings)
        return np.array([np.asarray(frame[0]) for frame in final.frames()])

    return [Peer(name="VapourSynth C++", run=run)]


# Measures


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call and what it returned."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def best_gaussian(row: Input, n: int | None = None) -> float:
    """PSNR of the best Gaussian blur: the control."""
    noisy, clean = row.noisy[:n], row.clean[:n]
    widths = np.arange(0.5, 8, 0.25)
    return max(psnr(gaussian_filter(noisy, (0, w, w)), clean, row.data_range) for w in widths)


def nominal_table(inputs: list[Input], peers: list[Peer]) -> list[str]:
    """CPU seconds and PSNR at the nominal sigma."""
    for peer in peers:
        peer.run(inputs[0].noisy[:1, :32, :32], inputs[0].sigma)  # loads its code
    head = ["input", *(peer.name for peer in peers), "best Gaussian"]
    rows = []
    for row in inputs:
        cells = []
        for peer in peers:
            seconds, result = timed(lambda peer=peer, row=row: peer.run(row.noisy, row.sigma))
            cells.append(f"{seconds:.2f} s, {psnr(result, row.clean, row.data_range):.3f}")
        rows.append([row.name, *cells, f"{best_gaussian(row):.3f}"])
    return ["Nominal sigma: CPU seconds, PSNR in dB", "", *table(head, rows)]


def strength_table(inputs: list[Input], peers: list[Peer], quick: bool) -> list[str]:
    """PSNR at the best of several sigmas, on the first images of each input."""
    head = ["input", *(peer.name for peer in peers), "best Gaussian"]
    title = (
        f"Best sigma of {STRENGTHS} (bm3d: {PEER_STRENGTHS}) times the nominal, first {N_SWEEP} "
        "images of each input"
    )
    rows = []
    for row in inputs:
        cells = [best_strength(row, peer, quick) for peer in peers]
        rows.append([row.name, *cells, f"{best_gaussian(row, N_SWEEP):.3f}"])
    return [title, "", *table(head, rows)]


def best_strength(row: Input, peer: Peer, quick: bool) -> str:
    """Best PSNR over the strengths and where it is."""
    if peer.slow and row.noisy.shape[-1] > LARGEST_SWEPT_PX:
        return "not swept"
    strengths = PEER_STRENGTHS if peer.slow or quick else STRENGTHS
    noisy, clean = row.noisy[:N_SWEEP], row.clean[:N_SWEEP]
    found = [
        (psnr(peer.run(noisy, row.sigma * factor), clean, row.data_range), factor)
        for factor in strengths
    ]
    value, factor = max(found)
    return f"{value:.3f} at {factor:g}"


def sigma_table(inputs: list[Input]) -> list[str]:
    """Estimated over true sigma."""
    rows = []
    for row in inputs:
        ratios = estimate_sigma(row.noisy) / row.sigma
        rows.append([row.name, f"{ratios.min():.3f}", f"{ratios.max():.3f}"])
    return ["Estimated sigma / true sigma", "", *table(["input", "lowest", "highest"], rows)]


def stage_table(inputs: list[Input]) -> list[str]:
    """Where the time of the normal profile goes, in microseconds a reference block and step."""
    head = ["input", "matching", "hard filter", "Wiener filter", "both steps", "rest"]
    rows = [[row.name, *stage_times(row)] for row in inputs]
    lines = ["Microseconds a reference block (profile normal)", "", *table(head, rows)]
    floor = arithmetic_floor(bm3d_plan.NORMAL)
    lines += ["", "Arithmetic floor, vector operations of 8 lanes a reference block:"]
    lines += [f"- {name}: {count:,.0f}" for name, count in floor.items()]
    per_cycle = sum(floor.values()) / 2
    lines.append(f"At 2 operations a cycle and 3 GHz: {per_cycle / 3000:.1f} microseconds.")
    return lines


def stage_times(row: Input) -> list[str]:
    """Time of each compiled stage, by wrapping it with a clock."""
    spent: dict[str, float] = {}
    twin = bm3d_cpu.TWIN
    names = ("match_blocks", "filter_hard", "filter_wiener")

    def clocked(name: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            seconds, result = timed(lambda: getattr(twin, name)(*arguments))
            spent[name] = spent.get(name, 0.0) + seconds
            return result

        return run

    bm3d_cpu.TWIN = twin._replace(**{name: clocked(name) for name in names})
    try:
        sigmas = np.full(len(row.noisy), row.sigma)
        whole, _ = timed(lambda: bm3d_cpu.denoise(row.noisy, sigmas))
    finally:
        bm3d_cpu.TWIN = twin
    layout = bm3d_plan.lay_out(row.noisy.shape[1:], bm3d_plan.NORMAL.window_px)
    unit = 1e-6 * layout.n_down * layout.n_across * len(row.noisy)
    parts = [spent[name] / unit for name in names]
    return [f"{part:.2f}" for part in (*parts, whole / unit, whole / unit - sum(parts))]


def arithmetic_floor(profile: bm3d_plan.Profile) -> dict[str, float]:
    """Count vector operations of full groups; loads, stores and selection are left out."""
    n_shifts = profile.window_px**2
    # A butterfly of the Haar transform: two sums and two products for each of eight rows.
    haar = 4 * 8
    wavelet = 2 * np.count_nonzero(np.abs(bm3d_plan.wavelet_matrix()) > 1e-12) + 24
    cosine = 2 * (8 + 32) + 24
    hard, wiener = profile.hard_group, profile.wiener_group
    return {
        "matching, both steps": 2 * n_shifts * 27 / 8,
        "hard filter": hard * (2 * wavelet + 2 * haar + 8 * 4 + 8),
        "Wiener filter": wiener * (3 * cosine + 3 * haar + 8 * 6 + 8),
    }


def core_table(row: Input) -> list[str]:
    """Wall time of the same work twice, one after the other and on two threads."""
    sigmas = np.full(len(row.noisy), row.sigma)

    def work() -> None:
        bm3d_cpu.denoise(row.noisy, sigmas)

    start = time.perf_counter()
    work()
    work()
    serial = time.perf_counter() - start
    threads = [threading.Thread(target=work) for _ in range(2)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = time.perf_counter() - start
    return [
        f"Two threads at once on {row.name}: {serial:.2f} s one after the other, "
        f"{together:.2f} s together: {serial / together:.2f} times as fast "
        f"({os.cpu_count()} cores, load {os.getloadavg()[0]:.1f})."
    ]


def compile_time() -> list[str]:
    """CPU seconds of the first call in a fresh process, with an empty and with a filled cache."""
    code = (
        "import time, numpy as np; from emdask.kernels.bm3d_cpu import denoise;"
        "x = np.eye(32, dtype='f4')[None]; t = time.process_time(); denoise(x, np.ones(1));"
        "print(time.process_time() - t)"
    )
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        seconds = [
            float(
                subprocess.run(
                    [sys.executable, "-c", code],
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout
            )
            for _ in range(2)
        ]
    return [f"First call: {seconds[0]:.1f} CPU s compiling, {seconds[1]:.1f} s from the cache."]


if __name__ == "__main__":
    main()
