"""The sweeps that chose the defaults of the deconvolutions and of the filters of a band.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/deconvolution.py [--images N]
        [--quick] [--out FILE]

Particles are simulated without and with a CTF, at SNR 1 to 0.05. Without, PSNR is that of the
result; with a CTF it is that of the result after the best scale and offset, against the density
that no CTF has touched. Each table varies one parameter and leaves the others at their defaults.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from arguments import QUICK, errors_as_sentences, parse_count
from inputs import Floats
from scipy.ndimage import gaussian_filter
from tables import describe_machine, table, write_lines

import emdask
from emdask.denoisers import FAMILY
from emdask.method import find_method
from emdask.metrics import affine_fit, psnr
from emdask.simulators.demo_images import demo_particles

SNRS = (1, 0.4, 0.2, 0.1, 0.05)
METHODS = ("wiener", "unsupervised_wiener", "richardson_lucy", "lowpass", "bandpass")
SWEEPS: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("wiener", "strength", (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)),
    ("unsupervised_wiener", "n_iterations", (10, 20, 30, 60, 120)),
    ("unsupervised_wiener", "seed", (0, 1, 2)),
    ("richardson_lucy", "n_iterations", (1, 2, 3, 5, 10, 20, 50)),
    ("richardson_lucy", "width_px", ("auto", 1.0, 2.0, 3.0, 4.0)),
    ("lowpass", "edge", (0.0, 0.5, 1.0, 1.5, 2.0)),
)
WIDTHS_PX = np.geomspace(0.5, 12, 40)


class Row(NamedTuple):
    """Noisy particles and the density that they show."""

    name: str
    noisy: xr.DataArray
    density: Floats
    ctf: bool

    def judge(self, images: Any) -> float:
        """PSNR in dB, mean over the images."""
        values = np.asarray(images, np.float64)
        if self.ctf:
            values = affine_fit(values, self.density)
        ranges = np.ptp(self.density, axis=(1, 2))
        pairs = zip(values, self.density, ranges, strict=True)
        return float(np.mean([psnr(a, b, data_range=float(r)) for a, b, r in pairs]))


def main() -> None:
    """Measure and print all tables."""
    arguments = parse_arguments()
    rows = simulate(1 if arguments.quick else arguments.images, arguments.quick)
    lines = [describe_machine("numpy", "scipy", "scikit-image"), ""]
    lines += [QUICK, ""] if arguments.quick else []
    print("\n".join(lines), flush=True)
    measures: list[Callable[[], list[str]]] = [
        lambda sweep=sweep: sweep_table(rows, *sweep)  # type: ignore[misc]
        for sweep in SWEEPS
    ]
    for measure in [*measures, lambda: defaults_table(rows)]:
        part = [*measure(), ""]
        lines += part
        print("\n".join(part), flush=True)
    write_lines(lines, arguments.out)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Sweeps of the deconvolutions")
    parser.add_argument("--images", type=parse_count, default=8, help="images of each input")
    parser.add_argument("--quick", action="store_true", help="few small inputs: seconds")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    return parser.parse_args()


def simulate(n_images: int, quick: bool) -> list[Row]:
    """Make particles without and with a CTF at each SNR; noise of unit deviation."""
    size = {"box_px": 32, "pixel_size_A": 8.0} if quick else {"box_px": 128, "pixel_size_A": 2.0}
    rows = []
    for ctf in (False, True):
        for snr in SNRS[-1:] if quick else SNRS:
            options: dict[str, Any] = {"snr": snr, "seed": 1, **size}
            noisy, _ = demo_particles(n_images, ctf=ctf, **options)
            _, density = demo_particles(n_images, ctf=False, **options)
            rows.append(Row(f"{'CTF, ' if ctf else ''}{snr:g}", noisy.load(), density, ctf))
    return rows


def timed(rows: Sequence[Row], denoise: Callable[[xr.DataArray], Any]) -> list[str]:
    """PSNR of each input, and CPU milliseconds an image."""
    start = time.process_time()
    results = [np.asarray(denoise(row.noisy)) for row in rows]
    seconds = time.process_time() - start
    values = [row.judge(result) for row, result in zip(rows, results, strict=True)]
    n_images = sum(len(row.noisy) for row in rows)
    return [*(f"{value:.2f}" for value in values), f"{1e3 * seconds / n_images:.1f}"]


def denoise_here(stack: xr.DataArray, method: str, **parameters: Any) -> Any:
    """Denoise on the CPU, in this thread."""
    lazy = emdask.denoise(stack, method, device="cpu", **parameters)
    return lazy.compute(scheduler="synchronous").values


def head(first: str, rows: Sequence[Row]) -> list[str]:
    """Titles of the columns."""
    return [first, *(f"SNR {row.name}" for row in rows), "CPU ms an image"]


def sweep_table(rows: list[Row], method: str, name: str, values: Sequence[Any]) -> list[str]:
    """PSNR for each value of one parameter; the default is marked."""
    fields = dataclasses.fields(find_method(FAMILY, method).params)
    default = next(field.default for field in fields if field.name == name)
    # The way through an optical system is corrected by deconvolutions alone.
    shown = rows if find_method(FAMILY, method).takes_optics else [r for r in rows if not r.ctf]
    lines = []
    for value in values:
        options = {name: value}
        found = timed(shown, lambda stack, options=options: denoise_here(stack, method, **options))  # type: ignore[misc]
        lines.append([f"**{value}**" if value == default else f"{value}", *found])
    return [
        f"{method}: {name} (PSNR in dB; the default is bold)",
        "",
        *table(head(name, shown), lines),
    ]


def best_gaussian(row: Row) -> Any:
    """Blur by the width that is best for all images of an input: the control knows the truth."""
    blurs = [gaussian_filter(row.noisy.values, (0, width, width)) for width in WIDTHS_PX]
    return max(blurs, key=row.judge)


def defaults_table(rows: list[Row]) -> list[str]:
    """PSNR of every method at its defaults, sigma estimated, beside the best Gaussian."""
    lines = [["noisy", *(f"{row.judge(row.noisy):.2f}" for row in rows), ""]]
    told = [f"{row.judge(best_gaussian(row)):.2f}" for row in rows]
    lines.append(["best Gaussian, told the truth", *told, ""])
    for method in METHODS:
        found = timed(rows, lambda stack, method=method: denoise_here(stack, method))  # type: ignore[misc]
        lines.append([method, *found])
        if find_method(FAMILY, method).takes_optics:
            found = timed(
                rows, lambda stack, method=method: denoise_here(stack, method, psf="none")
            )  # type: ignore[misc]
            lines.append([f"{method}, psf none", *found])
    return ["All at their defaults (PSNR in dB)", "", *table(head("method", rows), lines)]


if __name__ == "__main__":
    with errors_as_sentences():
        main()
