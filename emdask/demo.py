"""``emdask demo``: simulated images through the real pipeline, and a report of what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.comparisons import best_gaussian
from emdask.console import Stopwatch, connect_quietly, follow_images, rate_text, say, say_table
from emdask.denoisers import denoise
from emdask.io import open_stack, save_stack
from emdask.metrics import low_frequency_ratio, psnr
from emdask.report import (
    Section,
    Table,
    claim_folder,
    draw_power,
    environment_text,
    picture_images,
    provenance_rows,
    write_report,
)
from emdask.simulators.demo_images import demo_micrograph, demo_particles

Images = npt.NDArray[Any]

METHOD = "bm3d"
MARK_TEXT = "Simulated images and their report, made by `emdask demo`. Nothing here is needed.\n"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One stack of the demo before and after.

    Parameters
    ----------
    name
        "particles" or "micrograph".
    source, target
        Files that were denoised and written.
    stack
        What was written, opened again.
    noisy, clean, denoised : array, shape (n, h, w)
        Pixels.
    seconds
        Wall time of opening, denoising and saving.
    """

    name: str
    source: Path
    target: Path
    stack: xr.DataArray
    noisy: Images
    clean: Images
    denoised: Images
    seconds: float

    def mean_psnr(self, images: Images) -> float:
        """Mean over the images, in dB, against the clean images with their CTF."""
        return float(np.mean(psnr(images, self.clean)))


def run_demo(
    out: Path, *, seed: int = 0, n_workers: int | None = None, small: bool = False
) -> Path:
    """Simulate, write, denoise, judge and report.

    Parameters
    ----------
    out
        Folder for the files and ``report.html``.
    seed
        Of the random numbers.
    n_workers
        Worker processes; None for one a core.
    small
        A few small images, to see in seconds that all works.

    Returns
    -------
    pathlib.Path
        The report.

    Raises
    ------
    FileExistsError
        If the folder holds something that no demo made.
    """
    claim_folder(out, "demo", MARK_TEXT)
    say(f"Simulating particles and a micrograph in {out}/ ...")
    sizes: dict[str, Any] = {"n_images": 8, "box_px": 64, "pixel_size_A": 4.0} if small else {}
    particles = demo_particles(**sizes, seed=seed)
    micrograph = demo_micrograph(256 if small else 1024, seed=seed)
    save_stack(particles[0], out / "particles.mrcs", overwrite=True)
    save_stack(micrograph[0], out / "micrographs/", overwrite=True)
    with connect_quietly(n_workers=n_workers) as client:
        results = [
            _denoise(out, "particles", particles[1], client.dashboard_link),
            _denoise(out, "micrograph", micrograph[1], client.dashboard_link),
        ]
    tables = {result.name: judge(result) for result in results}
    report = _report(out, results, tables)
    _say_results(out, results, tables, report)
    return report


def _denoise(out: Path, name: str, clean: Images, dashboard: str) -> Result:
    """Open what was written, denoise it, save it, as a user would."""
    source, target = {
        "particles": (out / "particles.star", out / "particles_bm3d.mrcs"),
        "micrograph": (out / "micrographs" / "micrographs.star", out / "micrograph_bm3d.zarr"),
    }[name]
    watch = Stopwatch()
    stack = open_stack(source)
    with follow_images(f"{METHOD}, {name}", len(stack), dashboard) as on_progress:
        result = denoise(stack, METHOD)
        save_stack(result, target, overwrite=True, on_progress=on_progress)
    seconds = watch.seconds
    saved = open_stack(target.with_suffix(".star") if target.suffix == ".mrcs" else target)
    return Result(
        name=name,
        source=source,
        target=target,
        stack=saved,
        noisy=stack.values,
        clean=clean,
        denoised=saved.values,
        seconds=seconds,
    )


def judge(result: Result) -> list[tuple[str, str]]:
    """Compare with the truth and with the best Gaussian.

    Returns
    -------
    list of (str, str)
        What, and its PSNR in dB.
    """
    width_px, blurred = best_gaussian(result.noisy, result.clean)
    images = {
        "noisy": result.noisy,
        f"best Gaussian, {width_px:.1f} px, told the truth": blurred,
        METHOD: result.denoised,
    }
    return [(name, f"{result.mean_psnr(array):.2f} dB") for name, array in images.items()]


def _report(out: Path, results: list[Result], tables: Mapping[str, list[tuple[str, str]]]) -> Path:
    headline = []
    for result in results:
        before, after = tables[result.name][0][1], tables[result.name][-1][1]
        headline.append((f"{before.split()[0]} → {after}", f"PSNR, {result.name}"))
        n = len(result.noisy)
        words = f"to denoise {n} {result.name}" if n > 1 else f"to denoise one {result.name}"
        headline.append((f"{result.seconds:.3g} s", words))
    sections = [_section(result, tables[result.name]) for result in results]
    sections.append(
        Section(
            title="Your own images",
            text="The same, from a terminal; emdask denoise --help lists all options.",
            command=own_command(),
        )
    )
    sections.append(Section(title="How it was made", text=environment_text()))
    return write_report(
        out / "report.html",
        title="emdask demo",
        text="A protein that does not exist, simulated, then denoised by the steps real images "
        "take: open, denoise, save, on one worker a core. Because the images are simulated, the "
        "truth is known and every result can be measured against it.",
        headline=headline,
        sections=sections,
    )


def _section(result: Result, table: list[tuple[str, str]]) -> Section:
    attrs = result.stack.attrs
    n, h, w = result.noisy.shape
    defocus_um = result.stack.defocus_u_A.values / 1e4
    what = f"{n} particle images" if n > 1 else "One micrograph"
    defocus = f"{defocus_um.min():.2f}"
    defocus += f" to {defocus_um.max():.2f}" if n > 1 else ""
    ice = ", ice that thickens to one side" if result.name == "micrograph" else ""
    ratio = float(low_frequency_ratio(result.noisy - result.denoised).mean())
    figures = [
        *((f"PSNR, {name}", value) for name, value in table),
        ("low-frequency power of the residual, white noise = 1", f"{ratio:.2f}"),
        ("wall time", rate_text(n, result.seconds)),
        ("read from", result.source.name),
        ("written to", result.target.name),
        *((f"step: {step}", parameters) for step, parameters in provenance_rows(attrs)),
    ]
    return Section(
        title=result.name.capitalize(),
        text=f"{what} of {w} x {h} pixels of {attrs['pixel_size_A']:g} Å: random views, defocus "
        f"{defocus} µm at {attrs['voltage_kV']:g} kV{ice}, white noise at SNR 0.1.",
        pictures=picture_images(result.noisy, result.denoised, result.clean),
        table=Table(header=("", ""), rows=figures),
        drawing=draw_power(
            result.noisy, result.denoised, result.clean, pixel_size_A=attrs["pixel_size_A"]
        ),
    )


def own_command() -> str:
    """Return the command for a reader's own particles.

    Examples
    --------
    >>> own_command()
    'emdask denoise particles.star denoised.mrcs --method bm3d --preview preview.png'
    """
    words = ["particles.star", "denoised.mrcs", "--method", METHOD, "--preview", "preview.png"]
    return shlex.join(["emdask", "denoise", *words])


def _say_results(
    out: Path,
    results: list[Result],
    tables: Mapping[str, list[tuple[str, str]]],
    report: Path,
) -> None:
    rows = []
    for result in results:
        values = [f"{name}: {value}" for name, value in tables[result.name]]
        rows.append((result.name, *values, rate_text(len(result.noisy), result.seconds)))
    say()
    say_table(("", "PSNR against the clean images", "", "", "time"), rows)
    say()
    say(f"Pictures and spectra:  {report}")
    say(f"Your own images:       {own_command()}")
    say(f"What a file holds:     emdask info {shlex.quote(str(results[0].source))}")
