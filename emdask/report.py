"""The HTML report: one file that needs nothing else, light or dark as the reader's system is."""

from __future__ import annotations

import base64
import os
import platform
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.checks import sentence
from emdask.plots import (
    Limits,
    about_median,
    draw_spectra,
    grey_limits,
    montage,
    png_bytes,
    svg_text,
    typical_limits,
)
from emdask.stack import step_parameters

LIBRARIES = ("emdask", "numpy", "scipy", "numba", "dask", "xarray", "zarr")
# Written first, so that a folder of a run that was interrupted is known for what it is.
MARK = "README.txt"
CROP_PX = 512
OVERVIEW_PX = 768
PARTICLES_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A grey PNG, its name and what it shows."""

    png: bytes
    name: str
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text below a header.

    Parameters
    ----------
    header
        Names of the columns, all empty for a table without a head.
    rows
        Cells, as many a row as names.
    title
        Written above.
    note
        Written below.
    is_figures
        Whether all cells but the first of each row are numbers, to be set below each other.
    bold
        (row, column) of the cells that stand out.
    soft
        Rows that stand back.
    """

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    title: str = ""
    note: str = ""
    is_figures: bool = False
    bold: Collection[tuple[int, int]] = ()
    soft: Collection[int] = ()


@dataclass(frozen=True, kw_only=True)
class PictureTable:
    """Small pictures in rows and columns, which have names."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, Sequence[Picture]]]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report; what is empty is left out.

    Parameters
    ----------
    title, text
        Heading and a paragraph.
    pictures
        Shown beside each other, below each other on a phone.
    table
        Figures.
    tables
        More of them, beside each other.
    picture_table
        Many small pictures.
    drawing
        An SVG element, shown beside the table.
    wide_drawing
        An SVG element as wide as the page.
    command
        A command to copy.
    n_columns
        Pictures beside each other where the window is wide: 2, 3 or 6.
    """

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    table: Table | None = None
    tables: Sequence[Table] = ()
    picture_table: PictureTable | None = None
    drawing: str = ""
    wide_drawing: str = ""
    command: str = ""
    n_columns: int = 2


def picture_images(
    noisy: npt.NDArray[Any],
    denoised: npt.NDArray[Any],
    clean: npt.NDArray[Any] | None = None,
    *,
    blurred: npt.NDArray[Any] | None = None,
    truth: str = "the truth, which the denoiser never saw",
) -> list[Picture]:
    """Picture images before and after, the truth where it is known, and what was taken away.

    Parameters
    ----------
    noisy, denoised, clean : array, shape (n, h, w)
        Of images up to 512 px the first 8 are laid out together, each about its median; of larger
        ones the first is shown whole, made smaller, and its middle pixel for pixel.
    blurred : array, shape (n, h, w)
        Where a CTF was corrected: the denoised images with it, which the noisy ones are to be
        compared with.
    truth
        Caption of the clean ones.

    Returns
    -------
    list of Picture

    Examples
    --------
    >>> noisy = np.random.default_rng(0).normal(size=(3, 16, 16))
    >>> [picture.name for picture in picture_images(noisy, noisy / 2)]
    ['Noisy', 'Denoised', 'Residual']
    """
    pixels = {"Noisy": noisy, "Denoised": denoised}
    if clean is not None:
        pixels["Clean"] = clean
    pixels["Residual"] = noisy - (denoised if blurred is None else blurred)
    taken = "denoised" if blurred is None else "CTF × denoised"
    captions = {
        "Noisy": "as recorded",
        "Denoised": "" if blurred is None else "without the CTF",
        "Clean": truth,
        "Residual": f"noisy − {taken}: should look like noise, without particles",
    }
    if clean is not None:
        captions["Denoised"] = "same grey scale as clean"
    if max(noisy.shape[-2:]) <= CROP_PX:
        pixels = {name: about_median(array[:PARTICLES_SHOWN]) for name, array in pixels.items()}
        scales = _share_scale({name: typical_limits(array) for name, array in pixels.items()})
        return [
            _picture(montage(pixels[name]), name, captions[name], scales[name]) for name in pixels
        ]
    scales = _share_scale({name: grey_limits(array[0]) for name, array in pixels.items()})
    names = ("Noisy", "Denoised") if clean is not None else ("Noisy", "Denoised", "Residual")
    whole = [_picture(_shrink(pixels[name][0]), f"{name}, whole", "", None) for name in names]
    return whole + [
        _picture(_middle(array[0]), f"{name}, middle", captions[name], scales[name])
        for name, array in pixels.items()
    ]


def _share_scale(scales: dict[str, Limits]) -> dict[str, Limits]:
    """Give the clean images the grey scale of the denoised, to be compared by eye."""
    return scales | ({"Clean": scales["Denoised"]} if "Clean" in scales else {})


def _picture(image: npt.NDArray[Any], name: str, caption: str, limits: Limits | None) -> Picture:
    return Picture(png=png_bytes(image, limits), name=name, caption=caption)


def _shrink(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Average squares of pixels until the image is at most 768 px."""
    n = -(-max(image.shape) // OVERVIEW_PX)
    h, w = (length // n * n for length in image.shape)
    return np.asarray(image[:h, :w].reshape(h // n, n, w // n, n).mean(axis=(1, 3)))


def _middle(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    y, x = (max(0, (length - CROP_PX) // 2) for length in image.shape)
    return image[y : y + CROP_PX, x : x + CROP_PX]


def draw_power(
    noisy: npt.NDArray[Any],
    denoised: npt.NDArray[Any],
    clean: npt.NDArray[Any] | None = None,
    pixel_size_A: float | None = None,
    *,
    blurred: npt.NDArray[Any] | None = None,
) -> str:
    """Draw the power spectra of the images as SVG.

    Parameters
    ----------
    noisy, denoised, clean, blurred : array, shape (n, h, w)
        As of `picture_images`; the residual is drawn beside them.
    pixel_size_A
        Edge of a pixel in Å, for the axis.

    Returns
    -------
    str
        An SVG element.

    Examples
    --------
    >>> noisy = np.random.default_rng(0).normal(size=(3, 16, 16))
    >>> draw_power(noisy, noisy / 2)[:4]
    '<svg'
    """
    residual = noisy - (denoised if blurred is None else blurred)
    images = {"noisy": noisy, "denoised": denoised, "residual": residual}
    if clean is not None:
        images["clean"] = clean
    return svg_text(draw_spectra(images, pixel_size_A))


def environment_rows() -> list[tuple[str, str]]:
    """Return what the computation ran on: versions, system, cores.

    Examples
    --------
    >>> environment_rows()[0][0]
    'emdask'
    """
    rows = [(name, version(name)) for name in LIBRARIES]
    rows.append(("Python", platform.python_version()))
    rows.append(("system", f"{platform.system()} {platform.machine()}"))
    return [*rows, ("cores", str(os.cpu_count()))]


def environment_text() -> str:
    """Return `environment_rows` as a sentence.

    Examples
    --------
    >>> environment_text().startswith("Made with emdask ")
    True
    """
    return f"Made with {', '.join(f'{name} {value}' for name, value in environment_rows())}."


def provenance_rows(attrs: dict[str, Any]) -> list[tuple[str, str]]:
    """Return each step that a stack went through and its parameters; None is left to the method.

    Examples
    --------
    >>> provenance_rows({"provenance": [{"step": "bm3d", "parameters": {"sigma": 1.0}}]})
    [('bm3d', 'sigma = 1')]
    """
    rows = []
    for step in attrs.get("provenance", ()):
        pairs = (f"{name} = {text}" for name, text in step_parameters(step).items())
        rows.append((step["step"], ", ".join(pairs)))
    return rows


def claim_folder(out: Path, maker: str, mark_text: str) -> None:
    """Make a folder for a report, or take one that an earlier run has made.

    Parameters
    ----------
    out
        The folder.
    maker
        What makes it, as "demo".
    mark_text
        Content of its README.txt, by which it is known.

    Raises
    ------
    FileExistsError
        If it is a file, or holds something that none of these runs made.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     claim_folder(Path(folder, "new"), "demo", "Made by a demo.")
    ...     Path(folder, "new", MARK).read_text(encoding="utf-8")
    'Made by a demo.'
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(sentence(str(out), "is a file", remedy="Name a folder with --out."))
    mark = out / MARK
    is_ours = mark.is_file() and mark.read_text(encoding="utf-8") == mark_text
    if out.is_dir() and any(out.iterdir()) and not is_ours:
        rule = f"the folder holds files that no {maker} made"
        raise FileExistsError(sentence(str(out), rule, remedy="Name another with --out."))
    out.mkdir(parents=True, exist_ok=True)
    mark.write_text(mark_text, encoding="utf-8")


def write_report(
    path: str | Path,
    *,
    title: str,
    text: str,
    headline: Sequence[tuple[str, str]],
    sections: Sequence[Section],
) -> Path:
    """Write the report.

    Parameters
    ----------
    path
        Where to; an existing file is replaced.
    title, text
        Heading and first paragraph.
    headline
        (value, meaning) of the few figures to be read first.
    sections
        The rest, in order.

    Returns
    -------
    pathlib.Path

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = f"{folder}/report.html"
    ...     path = write_report(page, title="a < b", text="", headline=[], sections=[])
    ...     "<h1>a &lt; b</h1>" in path.read_text(encoding="utf-8")
    True
    """
    items = "".join(
        f"<li><b>{escape(value)}</b><span>{escape(meaning)}</span></li>"
        for value, meaning in headline
    )
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{files("emdask").joinpath("report.css").read_text(encoding="utf-8")}</style>
</head>
<body><main>
<h1>{escape(title)}</h1>
<p class="soft">{escape(text)}</p>
<ul class="headline">{items}</ul>
{"".join(_section(section) for section in sections)}
<footer>Made by emdask {version("emdask")}. This page needs no other file.</footer>
</main></body>
</html>
"""
    path = Path(path)
    path.write_text(page, encoding="utf-8")
    return path


def _section(section: Section) -> str:
    text = f"<p>{escape(section.text)}</p>" if section.text else ""
    pictures = "".join(_figure(picture) for picture in section.pictures)
    table = "" if section.table is None else _table(section.table)
    drawing = f'<div class="drawing">{section.drawing}</div>' if section.drawing else ""
    wide = f'<div class="scroll wide">{section.wide_drawing}</div>' if section.wide_drawing else ""
    command = f"<pre>{escape(section.command)}</pre>" if section.command else ""
    small = "" if section.picture_table is None else _picture_table(section.picture_table)
    tables = "".join(f"<div>{_table(table)}</div>" for table in section.tables)
    return f"""<section>
<h2>{escape(section.title)}</h2>
{text}{command}
<div class="panels columns-{section.n_columns}">{pictures}</div>
<div class="beside">{table}{drawing}</div>
{wide}{small}
<div class="beside">{tables}</div>
</section>
"""


def _figure(picture: Picture) -> str:
    name, caption = _breakable(picture.name), escape(picture.caption)
    return f"<figure>{_image(picture)}<figcaption><b>{name}</b> {caption}</figcaption></figure>\n"


def _breakable(name: str) -> str:
    """A long name, as "bm3d:sigma=1,n_scales=2", may be broken between its parts."""
    return re.sub("([:,|_])", r"\1<wbr>", escape(name))


def _image(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    return f'<img alt="{escape(picture.name)}" src="data:image/png;base64,{data}">'


def _table(table: Table) -> str:
    title = f"<h3>{escape(table.title)}</h3>" if table.title else ""
    note = f'<p class="soft note">{escape(table.note)}</p>' if table.note else ""
    header = "".join(f"<th>{escape(cell)}</th>" for cell in table.header if any(table.header))
    header = f"<tr>{header}</tr>\n" if header else ""
    rows = "".join(_row(table, i) for i in range(len(table.rows)))
    kind = ' class="figures"' if table.is_figures else ""
    return f'{title}<div class="scroll"><table{kind}>{header}{rows}</table></div>{note}'


def _row(table: Table, i: int) -> str:
    name, *rest = table.rows[i]
    cells = f"<td>{_breakable(name) if table.is_figures else escape(name)}</td>" + "".join(
        f"<td><b>{escape(cell)}</b></td>" if (i, j) in table.bold else f"<td>{escape(cell)}</td>"
        for j, cell in enumerate(rest, start=1)
    )
    return f'<tr class="soft">{cells}</tr>\n' if i in table.soft else f"<tr>{cells}</tr>\n"


def _picture_table(table: PictureTable) -> str:
    header = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "".join(
        f"<tr><th>{_breakable(name)}</th>"
        + "".join(f"<td>{_image(picture)}</td>" for picture in pictures)
        + "</tr>\n"
        for name, pictures in table.rows
    )
    return f'<div class="scroll"><table class="pictures"><tr>{header}</tr>\n{rows}</table></div>'
