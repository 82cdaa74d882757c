"""A comparison as a table of text, and as a page of tables, pictures and curves."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.candidates import CONTROLS, GAUSSIAN, NOISY
from emdask.plots import Limits, draw_comparison, draw_frc, grey_limits, png_bytes, svg_text
from emdask.report import (
    Picture,
    PictureTable,
    Section,
    Table,
    environment_text,
    write_report,
)

Array = npt.NDArray[Any]

SHOWN_SNR = 0.1
# The clean image's grey scale, widened: noise that is left is to show as noise, not as white dots.
SCALE_MARGIN = 0.15
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
COLUMNS = {
    "MSE": "mse",
    "PSNR_dB": "psnr",
    "SSIM": "ssim",
    "seconds_per_image": "seconds_per_image",
    "learning_seconds": "learning_seconds",
    "peak_memory_MB": "peak_memory_MB",
    "parameters": "parameters",
    "why_not": "why_not",
}


def over_images(table: xr.Dataset) -> xr.Dataset:
    """Average over the images, and put the methods in order: highest mean PSNR first.

    Parameters
    ----------
    table
        What `emdask.compare` returned.

    Returns
    -------
    xarray.Dataset
        The same variables, those along ``image`` averaged.
    """
    means = table.drop_vars("image_id").map(
        lambda v: v.mean("image", skipna=False, keep_attrs=True) if "image" in v.dims else v
    )
    worked = means.psnr.fillna(-1e9).mean("snr").values
    return means.isel(denoiser=np.argsort(-worked, kind="stable")).assign_attrs(table.attrs)


def shown_snr(table: xr.Dataset) -> float:
    """Return the SNR of the pictures and curves that are shown of one alone: nearest to 0.1.

    Parameters
    ----------
    table
        What `emdask.compare` returned.

    Returns
    -------
    float
    """
    snrs = table.snr.values
    return float(snrs[np.argmin(np.abs(np.log(snrs / SHOWN_SNR)))])


def write_csv(table: xr.Dataset, path: str | Path) -> Path:
    """Write one row a method and SNR, figures averaged over the images.

    Parameters
    ----------
    table
        What `emdask.compare` returned.
    path
        Where to; an existing file is replaced.

    Returns
    -------
    pathlib.Path
    """
    means = over_images(table)
    path = Path(path)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "SNR", *COLUMNS])
        for name in means.denoiser.values:
            for snr in means.snr.values:
                cell = means.sel(denoiser=name, snr=snr)
                values = [cell[variable].item() for variable in COLUMNS.values()]
                writer.writerow([name, f"{snr:g}", *map(_csv_text, values)])
    return path


def _csv_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if np.isnan(value) else f"{value:.6g}"


def text_table(
    means: xr.Dataset, variable: str, style: Callable[[float], str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return header and rows of one figure: a row a method, a column an SNR.

    Parameters
    ----------
    means
        What `over_images` returned.
    variable
        Its name.
    style
        Number to text; what is missing becomes a dash.

    Returns
    -------
    header : tuple of str
    rows : list of tuple of str
    """
    header = ("SNR", *(f"{snr:g}" for snr in means.snr.values))
    values = means[variable].values
    rows = [
        (str(name), *("–" if np.isnan(value) else style(value) for value in row))
        for name, row in zip(means.denoiser.values, values, strict=True)
    ]
    return header, rows


def failures(means: xr.Dataset) -> list[tuple[str, str]]:
    """Return each method that failed, and where and why.

    Parameters
    ----------
    means
        What `emdask.compare` or `over_images` returned.

    Returns
    -------
    list of (str, str)
    """
    return [
        (name, text if snr == "all" else f"at SNR {snr}: {text}")
        for name in means.denoiser.values
        for snr, text in _by_snr(means, name, "why_not")
        if text
    ]


def _by_snr(means: xr.Dataset, name: str, variable: str) -> list[tuple[str, str]]:
    """The texts of a method and the SNRs that they hold for; "all" where it is one text."""
    places: dict[str, list[str]] = {}
    row = means[variable].sel(denoiser=name)
    for snr, text in zip(means.snr.values, row.values, strict=True):
        places.setdefault(str(text), []).append(f"{snr:g}")
    if len(places) == 1:
        return [("all", text) for text in places]
    return [(", ".join(snrs), text) for text, snrs in places.items()]


def write_comparison(table: xr.Dataset, path: str | Path) -> Path:
    """Write the page: tables, pictures, curves, and how all of it was measured.

    Parameters
    ----------
    table
        What `emdask.compare` returned.
    path
        Where to; an existing file is replaced.

    Returns
    -------
    pathlib.Path
    """
    means = over_images(table)
    shown = shown_snr(means)
    n, (h, w) = means.attrs["n_images"], means.attrs["shape_px"]
    sections = [
        _psnr_section(means),
        _pictures_section(means, shown),
        _frc_section(means, shown),
        _figures_section(means),
        _all_pictures_section(means),
        *_failure_sections(means),
        Section(
            title="Parameters",
            text="What is not listed is left to the method; auto is found from the noisy images.",
            table=Table(header=("method", "SNR", "parameters"), rows=_parameter_rows(means)),
        ),
        Section(
            title="How it was measured",
            table=Table(header=("", ""), rows=definitions(means.attrs)),
            text=environment_text(),
        ),
    ]
    return write_report(
        path,
        title="Denoisers compared",
        text=f"{n} clean image{'s' if n > 1 else ''} of {w} x {h} pixels "
        f"({_source_text(means.attrs)}), white noise added, denoised by "
        f"{_count(len(means.denoiser) - len(CONTROLS))}, and measured against the truth.",
        headline=_headline(means, shown),
        sections=sections,
    )


def _source_text(attrs: dict[str, Any]) -> str:
    source = attrs["clean"]
    simulated = "simulated projections of a protein that does not exist"
    return simulated if source == "simulate" else Path(source).name


def _count(n: int) -> str:
    return f"{n} method" + ("" if n == 1 else "s")


def _headline(means: xr.Dataset, snr: float) -> list[tuple[str, str]]:
    at = means.sel(snr=snr)
    methods = at.psnr.drop_sel(denoiser=[*CONTROLS]).dropna("denoiser")
    if methods.size == 0:
        return []
    name = str(methods.denoiser.values[np.argmax(methods.values)])
    best, gaussian, noisy = (float(at.psnr.sel(denoiser=d)) for d in (name, GAUSSIAN, NOISY))
    seconds = float(at.seconds_per_image.sel(denoiser=name))
    return [
        (f"{noisy:.1f} → {best:.1f} dB", f"PSNR of {name}, the best at SNR {snr:g}"),
        (f"{best - gaussian:+.2f} dB", "above the best Gaussian, which is told the truth"),
        (f"{three_digits(seconds * 1e3)} ms", f"CPU time an image of {name}"),
    ]


def _soft_rows(means: xr.Dataset) -> list[int]:
    return [i for i, name in enumerate(means.denoiser.values) if name in CONTROLS]


def _best_cells(values: Array) -> list[tuple[int, int]]:
    """Cell (row, column) of the highest value of each column of figures, names not counted."""
    columns = enumerate(np.where(np.isnan(values), -np.inf, values).T)
    return [(int(column.argmax()), j + 1) for j, column in columns if np.isfinite(column).any()]


def _table(
    means: xr.Dataset, variable: str, style: Callable[[float], str], *, best: int = 0, **words: str
) -> Table:
    """One figure of all methods; ``best`` is 1 or -1 where the highest or lowest stands out."""
    header, rows = text_table(means, variable, style)
    bold = _best_cells(best * means[variable].values) if best else []
    soft = _soft_rows(means)
    return Table(header=header, rows=rows, is_figures=True, bold=bold, soft=soft, **words)


def _psnr_section(means: xr.Dataset) -> Section:
    curves = dict(zip(means.denoiser.values, means.psnr.values, strict=True))
    figure = draw_comparison(means.snr.values, curves, GAUSSIAN, CONTROLS)
    return Section(
        title="PSNR against SNR",
        text="In dB, mean over the images; the best of each SNR stands out. Two rows are controls: "
        "noisy, and best gaussian, whose width is chosen by the truth, which no method knows.",
        table=_table(means, "psnr", "{:.2f}".format, best=1),
        wide_drawing=svg_text(figure) if len(means.snr) > 1 else "",
    )


def _pictures_section(means: xr.Dataset, snr: float) -> Section:
    at = means.sel(snr=snr)
    limits = _limits(means)
    clean = means.clean_picture.values
    pictures = [Picture(png=png_bytes(clean, limits), name="clean", caption="the truth")]
    names = [NOISY, *(name for name in means.denoiser.values if name != NOISY)]
    for name in names:
        if at.why_not.sel(denoiser=name).item():
            continue
        own = grey_limits(at.picture.sel(denoiser=name).values) if name == NOISY else limits
        png = png_bytes(at.picture.sel(denoiser=name).values, own)
        psnr = float(at.psnr.sel(denoiser=name))
        pictures.append(Picture(png=png, name=name, caption=f"{psnr:.2f}\N{NO-BREAK SPACE}dB"))
    return Section(
        title=f"Pictures at SNR {snr:g}",
        text="The first image, all on the grey scale of the clean one but for the noisy one. PSNR "
        "below is the mean of all images.",
        pictures=pictures,
        n_columns=6,
    )


def _limits(means: xr.Dataset) -> Limits:
    clean = means.clean_picture.values
    low, high = float(clean.min()), float(clean.max())
    margin = SCALE_MARGIN * (high - low)
    return low - margin, high + margin


def _all_pictures_section(means: xr.Dataset) -> Section:
    limits = _limits(means)
    rows = []
    for name in means.denoiser.values:
        row = means.picture.sel(denoiser=name).values
        # A method that failed leaves a transparent place.
        shown = [
            png_bytes(_small(image), grey_limits(image) if name == NOISY else limits)
            for image in row
        ]
        rows.append((name, [Picture(png=png, name=name) for png in shown]))
    return Section(
        title="Pictures at each SNR",
        picture_table=PictureTable(
            header=("SNR", *(f"{snr:g}" for snr in means.snr.values)), rows=rows
        ),
    )


def _small(image: Array) -> Array:
    """Average squares of pixels until the image is about 128 px."""
    n = max(1, max(image.shape) // 128)
    h, w = (length // n * n for length in image.shape)
    return np.asarray(image[:h, :w].reshape(h // n, n, w // n, n).mean(axis=(1, 3)))


def _frc_section(means: xr.Dataset, snr: float) -> Section:
    at = means.frc.sel(snr=snr)
    drawn = at.dropna("denoiser", how="any")
    curves = dict(zip(drawn.denoiser.values, drawn.values, strict=True))
    figure = draw_frc(
        at.frequency.values,
        curves,
        controls=CONTROLS,
        pixel_size_A=means.attrs.get("pixel_size_A"),
    )
    return Section(
        title=f"Fourier ring correlation with the clean images at SNR {snr:g}",
        text="1 where a ring of frequencies is as in the clean image but for a factor, 0 where it "
        "has nothing of it or one of the two is empty; mean over the images. A Gaussian only "
        "weights frequencies, and so cannot rise above the noisy images.",
        wide_drawing=svg_text(figure),
    )


def _figures_section(means: xr.Dataset) -> Section:
    tables = [
        _mse_table(means),
        _table(means, "ssim", "{:.3f}".format, best=1, title="SSIM"),
        _table(
            means,
            "seconds_per_image",
            lambda seconds: three_digits(seconds * 1e3),
            title="CPU time, ms an image",
            note="Without learning." if float(means.learning_seconds.max()) > 0 else "",
        ),
    ]
    if not means.attrs["memory_missing"]:
        title = "Peak memory, MB"
        tables.append(_table(means, "peak_memory_MB", "{:.1f}".format, title=title))
    learning = means.isel(denoiser=(means.learning_seconds > 0).any("snr").values)
    if learning.sizes["denoiser"]:
        title = "Learning from all images together, CPU seconds"
        tables.append(_table(learning, "learning_seconds", "{:.2f}".format, title=title))
    return Section(title="Error, similarity, time and memory", tables=tables)


def _mse_table(means: xr.Dataset) -> Table:
    """MSE in a power of ten that suits most of it."""
    power = int(np.floor(np.log10(np.nanmedian(means.mse.values))))
    unit = f"10{str(power).translate(SUPERSCRIPTS)} " if power else ""
    return _table(
        means,
        "mse",
        lambda value: three_digits(value / 10.0**power),
        best=-1,
        title=f"MSE, {unit}grey levels squared",
    )


def three_digits(value: float) -> str:
    """Write a positive number with three digits that count, or all before its point.

    Examples
    --------
    >>> [three_digits(value) for value in (0.02, 4, 99.96, 100, 12345.6)]
    ['0.0200', '4.00', '100', '100', '12,346']
    """
    return f"{value:#.3g}".rstrip(".") if value < 999.5 else f"{value:,.0f}"


def _failure_sections(means: xr.Dataset) -> list[Section]:
    rows = failures(means)
    table = Table(header=("method", "why"), rows=rows)
    return [Section(title="What failed", table=table)] if rows else []


def _parameter_rows(means: xr.Dataset) -> Sequence[tuple[str, ...]]:
    return [
        (name, snr, text or "–")
        for name in means.denoiser.values
        for snr, text in _by_snr(means, name, "parameters")
    ]


def definitions(attrs: dict[str, Any]) -> list[tuple[str, str]]:
    """Say how the figures of a comparison are defined and were measured.

    Parameters
    ----------
    attrs
        Attributes of what `emdask.compare` returned.

    Returns
    -------
    list of (str, str)
        What, and how.

    Examples
    --------
    >>> attrs = {"seed": 3, "n_images": 2, "images_per_block": 2, "data_range": "x"}
    >>> dict(definitions(attrs | {"memory_missing": ""}))["seed"]
    '3'
    """
    n, block = attrs["n_images"], attrs["images_per_block"]
    memory = attrs["memory_missing"] or (
        "most resident memory during learning and denoising above that before, the result "
        f"included, for blocks of {block} image{'s' if block > 1 else ''}"
    )
    return [
        (
            "SNR",
            "variance of the clean images over the full frame, averaged over the images / "
            "variance of the noise",
        ),
        (
            "noise",
            "white and Gaussian, the same at each SNR but for its scale; the methods are "
            "not told its strength",
        ),
        ("seed", str(attrs["seed"])),
        (
            "MSE",
            f"mean squared difference per pixel to the clean image, mean of {n} images; grey "
            "levels are compared as they are",
        ),
        (
            "PSNR",
            f"10 log10(data range² / MSE) of each image, then the mean; data range: "
            f"{attrs['data_range']}",
        ),
        ("SSIM", "Wang et al. 2004: Gaussian window of 1.5 px, 11 x 11 pixels; same data range"),
        (
            "FRC",
            "Saxton and Baumeister 1982, mean over the images, which fall off to the edges as a "
            "cosine; 0 where a ring has at most 1e-9 of the power of the strongest: the cosine can "
            "bring as much there",
        ),
        (
            "time",
            "CPU seconds of the process to denoise all images by emdask.denoise on the CPU, "
            "one method at a time, divided by their number; after a first call that does not count",
        ),
        ("memory", memory),
        (
            "parameters",
            "defaults unless given; of several values, the one with the highest mean "
            "PSNR at each SNR, which is told the truth",
        ),
        (GAUSSIAN, "width with the lowest MSE, of 29 widths from 0.4 to 12 px"),
    ]
