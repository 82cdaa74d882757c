"""The sweeps that chose the defaults of the classical filters, and all of them side by side.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/filters.py [INPUTS] [--images N]
        [--quick] [--out FILE]

Particles are simulated without and with a CTF, at SNR 1 to 0.05; each table varies one parameter
and leaves the others at their defaults. INPUTS is a folder with ``particles_clean.npy`` and
``particles_snr0.1.npy`` of another protein, which took no part in the choice: a last table shows
them.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from arguments import QUICK, errors_as_sentences, parse_count
from inputs import Floats, Input, psnr
from scipy.ndimage import gaussian_filter
from tables import describe_machine, table, write_lines

from emdask.denoisers import FAMILY
from emdask.method import build_params, find_method
from emdask.simulators.demo_images import demo_particles

SNRS = (1, 0.4, 0.2, 0.1, 0.05)
QUICK_SNRS = (0.1,)
METHODS = (
    *("gaussian", "mean", "median", "bilateral", "nl_means", "tv_chambolle", "tv_bregman"),
    "wavelet",
)
STRENGTHS = (0.6, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5)
SWEEPS: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("gaussian", "width_px", ("auto", 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)),
    ("mean", "size_px", ("auto", 3, 5, 7, 11, 15, 21)),
    ("median", "size_px", ("auto", 3, 5, 7, 11, 15, 19)),
    ("bilateral", "strength", STRENGTHS),
    ("bilateral", "width_px", ("auto", 2.0, 4.0, 6.0, 10.0)),
    ("bilateral", "guide_px", ("auto", 0.0, 1.0, 2.0, 4.0)),
    ("nl_means", "strength", STRENGTHS),
    ("nl_means", "patch_px", (5, 7, 9, 11, 13)),
    ("nl_means", "window_px", (11, 15, 21)),
    ("nl_means", "n_scales", ("auto", 1, 2, 3, 4)),
    ("tv_chambolle", "strength", STRENGTHS),
    ("tv_chambolle", "n_iterations", (50, 100, 150, 400)),
    ("tv_bregman", "strength", STRENGTHS),
    ("tv_bregman", "n_iterations", (50, 100, 400)),
    ("wavelet", "strength", STRENGTHS),
    ("wavelet", "wavelet", ("haar", "db2", "db4", "sym4", "sym8", "bior4.4")),
    ("wavelet", "shrinkage", ("bayes", "visu")),
    ("wavelet", "n_scales", (3, 4, 5, 6)),
    ("wavelet", "cycle_spin", (1, 2, 4, 8, 16, 32)),
)
WIDTHS_PX = np.geomspace(0.5, 12, 40)


def main() -> None:
    """Measure and print all tables."""
    arguments = parse_arguments()
    snrs = QUICK_SNRS if arguments.quick else SNRS
    inputs = simulate(1 if arguments.quick else arguments.images, snrs, arguments.quick)
    sweeps = [
        (method, name, values[:1] if arguments.quick else values) for method, name, values in SWEEPS
    ]
    lines = [describe_machine("numpy", "scipy", "scikit-image", "PyWavelets"), ""]
    if arguments.quick:
        lines += [QUICK, ""]
    print("\n".join(lines), flush=True)
    measures: list[Callable[[], list[str]]] = [
        lambda sweep=sweep: sweep_table(inputs, *sweep)  # type: ignore[misc]
        for sweep in sweeps
    ]
    measures.append(lambda: defaults_table("All at their defaults", inputs))
    if arguments.inputs:
        held_out = read_inputs(arguments.inputs)
        title = f"Held out: particles of {arguments.inputs.name}, range of the PSNR 1"
        measures.append(lambda: defaults_table(title, held_out, library_filters()))
    for measure in measures:
        rows = [*measure(), ""]
        lines += rows
        print("\n".join(rows), flush=True)
    write_lines(lines, arguments.out)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Sweeps of the classical filters")
    parser.add_argument("inputs", nargs="?", type=Path, help="folder of particles to check with")
    parser.add_argument("--images", type=parse_count, default=4, help="images of each input")
    parser.add_argument("--quick", action="store_true", help="few small inputs: seconds")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    return parser.parse_args()


# Inputs


def simulate(n_images: int, snrs: Sequence[float], quick: bool) -> list[Input]:
    """Make particles without and with a CTF at each SNR; noise of unit deviation."""
    size = {"box_px": 32, "pixel_size_A": 8.0} if quick else {"box_px": 128, "pixel_size_A": 2.0}
    inputs = []
    for ctf in (False, True):
        for snr in snrs:
            stack, clean = demo_particles(n_images, snr=snr, ctf=ctf, **size)  # type: ignore[arg-type]
            inputs.append(
                Input(
                    name=f"{'CTF, ' if ctf else ''}{snr:g}",
                    clean=clean,
                    noisy=stack.values,
                    sigma=1.0,
                    data_range=float(np.ptp(clean)),
                )
            )
    return inputs


def read_inputs(folder: Path) -> list[Input]:
    """Read the first 40 particles at each SNR."""
    clean = np.load(folder / "particles_clean.npy")[:40]
    inputs = []
    for path in sorted(folder.glob("particles_snr*.npy"), reverse=True):
        noisy = np.load(path)[:40]
        sigma = float((noisy - clean).std())
        snr = path.stem.removeprefix("particles_snr")
        inputs.append(Input(name=snr, clean=clean, noisy=noisy, sigma=sigma, data_range=1.0))
    return inputs


def library_filters() -> dict[str, Callable[[Input], Any]]:
    """List scikit-image's functions at what their documentation names, told the true sigma."""
    from skimage import restoration

    def each(function: Callable[[Any, float], Any]) -> Callable[[Input], Any]:
        return lambda row: np.array([function(image, row.sigma) for image in row.noisy])

    return {
        "scikit-image wavelet": each(
            lambda image, sigma: restoration.denoise_wavelet(
                image, sigma=sigma, wavelet="db1", method="BayesShrink"
            )
        ),
        "scikit-image TV, weight = sigma": each(
            lambda image, sigma: restoration.denoise_tv_chambolle(image, weight=sigma)
        ),
        "scikit-image NLM, h = 0.8 sigma": each(
            lambda image, sigma: restoration.denoise_nl_means(image, h=0.8 * sigma, sigma=sigma)
        ),
    }


# Measures


def run(method: str, images: Floats, **parameters: Any) -> Floats:
    """Denoise images, without Dask."""
    record = find_method(FAMILY, method)
    result: Floats = record.apply["cpu"](images, build_params(method, record, parameters))
    return result


def timed_psnr(inputs: Sequence[Input], denoise: Callable[[Input], Any]) -> tuple[list[float], str]:
    """PSNR of each input, and CPU milliseconds an image."""
    start = time.process_time()
    results = [denoise(row) for row in inputs]
    seconds = time.process_time() - start
    values = [
        psnr(result, row.clean, row.data_range) for result, row in zip(results, inputs, strict=True)
    ]
    return values, f"{1e3 * seconds / sum(len(row.noisy) for row in inputs):.1f}"


def cells(values: Sequence[float]) -> list[str]:
    """Values and their mean."""
    return [f"{value:.2f}" for value in (*values, float(np.mean(values)))]


def sweep_table(inputs: list[Input], method: str, name: str, values: Sequence[Any]) -> list[str]:
    """PSNR for each value of one parameter; the default is marked."""
    fields = dataclasses.fields(find_method(FAMILY, method).params)
    default = next(field.default for field in fields if field.name == name)
    rows = []
    for value in values:
        found, milliseconds = timed_psnr(
            inputs, lambda row, value=value: run(method, row.noisy, **{name: value})
        )
        shown = f"**{value}**" if value == default else f"{value}"
        rows.append([shown, *cells(found), milliseconds])
    head = [name, *(f"SNR {row.name}" for row in inputs), "mean", "CPU ms an image"]
    return [f"{method}: {name} (PSNR in dB; the default is bold)", "", *table(head, rows)]


def best_gaussian(row: Input) -> Floats:
    """Blur by the width that is best for all images of an input: the control knows the truth."""
    blurs = [gaussian_filter(row.noisy, (0, width, width)) for width in WIDTHS_PX]
    return max(blurs, key=lambda blur: psnr(blur, row.clean, row.data_range))  # type: ignore[no-any-return]


def defaults_table(
    title: str, inputs: list[Input], more: dict[str, Callable[[Input], Any]] | None = None
) -> list[str]:
    """PSNR of every filter at its defaults, sigma estimated, beside the best Gaussian."""
    ways: dict[str, Callable[[Input], Any]] = {
        "noisy": lambda row: row.noisy,
        "best Gaussian, told the truth": best_gaussian,
        **{name: lambda row, name=name: run(name, row.noisy) for name in METHODS},  # type: ignore[misc]
        **(more or {}),
        "bm3d": lambda row: run("bm3d", row.noisy),
    }
    ways["bm3d"](dataclasses.replace(inputs[0], noisy=inputs[0].noisy[:1]))  # loads its code
    rows = []
    for name, denoise in ways.items():
        values, milliseconds = timed_psnr(inputs, denoise)
        rows.append([name, *cells(values), milliseconds])
    head = ["method", *(f"SNR {row.name}" for row in inputs), "mean", "CPU ms an image"]
    return [f"{title} (PSNR in dB)", "", *table(head, rows)]


if __name__ == "__main__":
    with errors_as_sentences():
        main()
