"""What simulated images cost: each stage of a particle's, the way to the disk, micrographs.

    python benchmarks/simulation.py [--out FILE]    the figures of benchmarks/results, two minutes
    python benchmarks/simulation.py --quick         shows that it runs

One thread; CPU milliseconds an image. "write" is the same images from memory into the same file by
the same call, so that the last columns tell what simulating leaves of the disk's speed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import scipy.fft as fft
from arguments import QUICK
from tables import describe_machine, print_lines, table

import emdask
from emdask.kernels.coloured_noise import colour_noise, noise_gain
from emdask.kernels.draws import normal_images
from emdask.kernels.projections import rotation_matrices
from emdask.kernels.slices import prepare_volume, slice_volume
from emdask.simulators.truth import optics_record

PIXEL_A = 2.0
CTF = {"defocus_A": (10_000.0, 20_000.0), "astigmatism_A": (0.0, 300.0)}
AT_ONCE = 32


def seconds_of(run: Callable[[], Any]) -> float:
    """Return the CPU seconds of a call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def stages(made: Any, volume: Any, n_images: int) -> dict[str, float]:
    """CPU milliseconds an image of each stage."""
    size = made.images.shape[-1]
    ids = np.arange(n_images)
    spectrum = prepare_volume(volume.values)
    matrices = rotation_matrices(made.rotation_deg.values)
    shifts_px = made.shift_A.values / PIXEL_A
    names = ("defocus_u_A", "defocus_v_A", "astigmatism_deg")
    optics = optics_record({name: made[name].values for name in names}, PIXEL_A)
    white = normal_images(0, ids, (size, size))
    terms = np.fft.rfft2(white[:AT_ONCE]).astype(np.complex64)
    batches = [slice(i, i + AT_ONCE) for i in range(0, n_images, AT_ONCE)]
    runs: dict[str, Callable[[], Any]] = {
        "central slice": lambda: [
            slice_volume(spectrum, matrices[b], shifts_px[b]) for b in batches
        ],
        "CTF": lambda: [optics[b].ctfs((size, size), len(matrices[b])) for b in batches],
        "inverse transform": lambda: [fft.irfft2(term) for _ in batches for term in terms],
        "white noise": lambda: normal_images(0, ids, (size, size)),
        "colouring it": lambda: colour_noise(white, noise_gain((size, size))),
    }
    return {name: 1e3 * seconds_of(run) / n_images for name, run in runs.items()}


def writing(made: Any, folder: Path) -> list[tuple[str, ...]]:
    """Rows of the second table: simulate and save, and save alone."""
    n_images, size, _ = made.images.shape
    n_bytes = made.images.nbytes
    held = made.images.copy(data=made.images.compute().data)
    rows = []
    for name in ("out.zarr", "out.mrcs"):
        both = seconds_of(lambda name=name: emdask.save_stack(made.images, folder / name))
        alone = seconds_of(lambda name=name: emdask.save_stack(held, folder / f"held-{name}"))
        rates = [f"{n_bytes / seconds / 1e6:.0f}" for seconds in (both, alone)]
        per_image = [f"{1e3 * seconds / n_images:.2f}" for seconds in (both, alone)]
        rows.append((f"{size}", name.partition(".")[2], *per_image, *rates, f"{both / alone:.1f}"))
    return rows


def micrographs(size_px: int, n_particles: int, box_px: int) -> list[tuple[str, ...]]:
    """Rows of the third table: a micrograph, without noise and with it."""
    pixel_A = 256 / box_px
    volume = emdask.phantom(60, radius_A=80, width_A=(5, 8)).volume(box_px, pixel_A)
    kinds: dict[str, dict[str, Any]] = {
        "white noise": {},
        "coloured noise": {"noise": "coloured"},
        "coloured noise, film, 5 crystals": {"noise": "coloured", "carbon": 1.0, "n_crystals": 5},
    }
    rows = []
    for name, options in kinds.items():
        options |= {"size_px": size_px, "n_particles": n_particles, "ctf": CTF, "snr": 0.1}
        made, _ = emdask.simulate_micrographs(volume, 3, **options)
        made.images[0].compute()
        figures = []
        for stack in (made.clean, made.images):
            seconds = [seconds_of(stack[i].compute) for i in (1, 2)]
            figures.append(f"{min(seconds):.2f}")
        rows.append((f"{size_px}", f"{n_particles} of {box_px} px", name, *figures))
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cases = ((32, 64),) if options.quick else ((128, 1024), (256, 256))
    lines = ["# Simulated images", "", describe_machine("numpy", "scipy", "numba"), ""]
    measured, written = [], []
    with dask.config.set(scheduler="synchronous"), tempfile.TemporaryDirectory() as folder:
        for size, n_images in cases:
            scale = 256 / (size * PIXEL_A)
            volume = emdask.phantom(60, radius_A=70 / scale, width_A=(5, 8)).volume(size, PIXEL_A)
            made = emdask.simulate(volume, n_images, snr=0.1, ctf=CTF, shifts_A=4.0)
            made.images[0].compute()
            columns = stages(made, volume, n_images)
            measured.append([f"{size}", *(f"{ms:.2f}" for ms in columns.values())])
            (Path(folder) / f"{size}").mkdir()
            written += writing(made, Path(folder) / f"{size}")
    lines += ["CPU ms an image, one thread:", "", *table(["box, px", *columns], measured), ""]
    head = ("box, px", "file", "simulate and write, ms", "write, ms")
    head += ("simulate and write, MB/s", "write, MB/s", "ratio")
    lines += table(head, written)
    fields = ((128, 2, 32),) if options.quick else ((4096, 300, 128), (4096, 300, 256))
    head = ("micrograph, px", "particles", "with", "without noise, s", "with noise, s")
    with dask.config.set(scheduler="synchronous"):
        rows = [row for case in fields for row in micrographs(*case)]
    lines += [
        "",
        "CPU seconds a micrograph, one thread, the better of two:",
        "",
        *table(head, rows),
    ]
    print_lines(lines, options.out, QUICK if options.quick else None)


if __name__ == "__main__":
    main()
