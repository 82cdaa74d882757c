"""What a method has learnt, as rows on a terminal and as a page: a model shows what it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from emdask.model_plots import (
    EIGENIMAGES_SHOWN,
    atom_sheets,
    draw_eigenvalues,
    draw_power_spectra,
    eigenimage_limits,
    power_spectra,
    relative_eigenvalues,
)
from emdask.plots import png_bytes, svg_text
from emdask.report import Picture, Section, Table, environment_text, write_report

Dims = Mapping[str, tuple[str, ...]]
Rows = list[tuple[str, ...]]

EIGENIMAGES: Dims = {
    "mean": ("y", "x"),
    "eigenimages": ("component", "y", "x"),
    "eigenvalue": ("component",),
    "order": ("component",),
}
EIGENVALUES: Dims = {"spectrum": ("order_k", "radial"), "noise_edge": ("order_k",)}
ATOMS: Dims = {"atoms": ("scale", "atom", "pixel")}


def holds(model: xr.Dataset, variables: Dims) -> bool:
    """Whether a model has these variables, of these dims.

    Examples
    --------
    >>> model = xr.Dataset({"atoms": (("scale", "atom", "pixel"), np.eye(16)[None])})
    >>> holds(model, ATOMS), holds(model, EIGENIMAGES)
    (True, False)
    """
    return all(name in model and model[name].dims == dims for name, dims in variables.items())


def holds_variances(model: xr.Dataset, variables: Dims) -> bool:
    """Whether a model has these variables, and a noise whose variance is their unit.

    Examples
    --------
    >>> parts = {"spectrum": (("order_k", "radial"), [[8.0]]), "noise_edge": ("order_k", [4.0])}
    >>> models = [xr.Dataset(parts, attrs={"noise_variance": value}) for value in (2.0, 0.0)]
    >>> [holds_variances(model, EIGENVALUES) for model in models]
    [True, False]
    """
    return holds(model, variables) and float(model.attrs.get("noise_variance", 0)) > 0


# --- Rows -----------------------------------------------------------------------------------------


def variable_rows(model: xr.Dataset) -> tuple[tuple[str, ...], Rows]:
    """Return header and rows of a table of what a model holds.

    Parameters
    ----------
    model
        What a method has learnt; variables may have the attributes ``units`` and ``long_name``.

    Returns
    -------
    header : tuple of str
    rows : list of tuple of str

    Examples
    --------
    >>> mean = xr.DataArray([[0.0, 2.0]], dims=("y", "x"), attrs={"long_name": "mean image"})
    >>> variable_rows(xr.Dataset({"mean": mean}))[1]
    [('mean', 'y 1, x 2', '0 to 2', 'mean image')]
    """
    header = ("variable", "dims", "values", "meaning")
    rows: Rows = [
        (
            str(name),
            ", ".join(f"{dim} {length:,}" for dim, length in variable.sizes.items()),
            f"{_range_text(variable)} {_unit_text(variable)}".rstrip(),
            str(variable.attrs.get("long_name", "")),
        )
        for name, variable in sorted({**model.data_vars, **model.coords}.items())
    ]
    return header, rows


def _range_text(variable: xr.DataArray) -> str:
    if variable.dtype.kind not in "iuf":
        return ""
    known = variable.values[np.isfinite(variable.values)]
    if not known.size:
        return "none"
    low, high = (_number_text(value) for value in (known.min().item(), known.max().item()))
    return low if low == high else f"{low} to {high}"


def _unit_text(variable: xr.DataArray) -> str:
    """Unit to be written behind numbers; that of plain ones is 1."""
    unit = str(variable.attrs.get("units", ""))
    return "" if unit == "1" else unit


def _number_text(value: float) -> str:
    # Without the sign of -0.
    return f"{value:,}" if isinstance(value, int) else f"{value + 0.0:.4g}"


def eigenimage_rows(model: xr.Dataset, n_images: int) -> tuple[tuple[str, ...], Rows]:
    """Return header and rows of a table of the leading eigenimages of a model.

    Parameters
    ----------
    model
        With `EIGENIMAGES` in units of its noise: `holds_variances`.
    n_images
        Most rows.

    Returns
    -------
    header : tuple of str
    rows : list of tuple of str
        Rank, angular order, and eigenvalue in units of the noise's variance.

    Examples
    --------
    >>> parts = {"eigenvalue": ("component", [6.0]), "order": ("component", [2])}
    >>> eigenimage_rows(xr.Dataset(parts, attrs={"noise_variance": 2.0}), 5)[1]
    [('1', '2', '3')]
    """
    header = ("eigenimage", "angular order k", "eigenvalue / noise variance")
    values = model["eigenvalue"].values[:n_images] / float(model.attrs["noise_variance"])
    pairs = zip(model["order"].values, values, strict=False)
    return header, [(str(i), str(k), f"{v:.3g}") for i, (k, v) in enumerate(pairs, start=1)]


def edge_text(model: xr.Dataset) -> str:
    """Say how many eigenvalues of a model are above what noise alone would reach.

    Examples
    --------
    >>> model = xr.Dataset(
    ...     {"spectrum": (("order_k", "radial"), [[8.0, 2.0]]), "noise_edge": ("order_k", [4.0])},
    ...     {"order_k": [0]}, {"noise_variance": 2.0})
    >>> edge_text(model)
    '1 of 2 eigenvalues is above the edge of the noise'
    """
    _, value, edge = relative_eigenvalues(model)
    n_above = int((value > edge).sum())
    verb = "is" if n_above == 1 else "are"
    return f"{n_above:,} of {len(value):,} eigenvalues {verb} above the edge of the noise"


# --- Pages ----------------------------------------------------------------------------------------


def model_sections(model: xr.Dataset) -> list[Section]:
    """Return the parts of a report that show a model: those for which it has what is drawn.

    Parameters
    ----------
    model
        What a method has learnt. Shown are eigenimages, of ``mean (y, x)``, ``eigenimages
        (component, y, x)``, ``eigenvalue`` and ``order (component)``; eigenvalues, of ``spectrum
        (order_k, radial)`` and ``noise_edge (order_k)``, all variances being divided by its
        attribute ``noise_variance``; dictionaries, of ``atoms (scale, atom, pixel)``; and power
        spectra, of what lies along the dimension of its coordinate ``frequency``.

    Returns
    -------
    list of Section

    Examples
    --------
    >>> model = xr.Dataset({"atoms": (("scale", "atom", "pixel"), np.eye(16)[None])})
    >>> [section.title for section in model_sections(model)]
    ['What was learnt: atoms']
    """
    return [section(model) for is_there, section in VIEWS if is_there(model)]


def write_model(path: str | Path, model: xr.Dataset, *, title: str, about: Rows) -> Path:
    """Write a page that shows a model.

    Parameters
    ----------
    path
        Where to; an existing file is replaced.
    model
        What a method has learnt.
    title
        Heading.
    about
        Name, value and meaning of what holds for the model as a whole.

    Returns
    -------
    pathlib.Path

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_model(f"{folder}/model.html", xr.Dataset(), title="Model", about=[])
    ...     "<h1>Model</h1>" in path.read_text(encoding="utf-8")
    True
    """
    header, rows = variable_rows(model)
    sections = [
        *model_sections(model),
        Section(title="What it holds", table=Table(header=header, rows=rows)),
        Section(
            title="How it was learnt",
            table=Table(header=("", "", ""), rows=about),
            text=environment_text(),
        ),
    ]
    return write_report(path, title=title, text="", headline=[], sections=sections)


def _eigenimage_section(model: xr.Dataset) -> Section:
    images = model["eigenimages"].values[:EIGENIMAGES_SHOWN]
    _, rows = eigenimage_rows(model, EIGENIMAGES_SHOWN)
    pictures = [Picture(png=png_bytes(model["mean"].values), name="mean")]
    pictures += [
        Picture(
            png=png_bytes(image, eigenimage_limits(image)),
            name=f"{value} × noise",
            caption=f"k = {order}",
        )
        for image, (_, order, value) in zip(images, rows, strict=True)
    ]
    return Section(
        title="What was learnt: mean and eigenimages",
        text="Without noise, an image is taken to be the mean and some of each eigenimage. Below "
        "the leading ones is how much of them varies among the images, as a variance in units of "
        "that of the noise, and their angular order k: turned by 360°/k they are the same. One of "
        "k > 0 stands for two, itself and turned by 90°/k.",
        pictures=pictures,
        n_columns=6,
    )


def _eigenvalue_section(model: xr.Dataset) -> Section:
    return Section(
        title="What was learnt: eigenvalues",
        text=f"{edge_text(model)}: where the largest would be of noise alone, but for chance. It "
        "falls towards 1 as there are more images. Drawn before the noise is taken out; "
        "shrinkage by bayes does not use the edge.",
        wide_drawing=svg_text(draw_eigenvalues(model)),
    )


def _atom_section(model: xr.Dataset) -> Section:
    pictures = [
        Picture(png=png_bytes(sheet, (-1.0, 1.0)), name=name)
        for name, sheet in atom_sheets(model).items()
    ]
    return Section(
        title="What was learnt: atoms",
        text="Patches without noise are taken to be sums of few of these, each drawn with a "
        "contrast of its own. Scale 1 is the image as it is, and every further one has half the "
        "resolution.",
        pictures=pictures,
        n_columns=3,
    )


def _power_section(model: xr.Dataset) -> Section:
    return Section(
        title="What was learnt: power spectra", drawing=svg_text(draw_power_spectra(model))
    )


# What is to be there, and what shows it.
VIEWS: Sequence[tuple[Callable[[xr.Dataset], bool], Callable[[xr.Dataset], Section]]] = (
    (lambda model: holds_variances(model, EIGENIMAGES), _eigenimage_section),
    (lambda model: holds_variances(model, EIGENVALUES), _eigenvalue_section),
    (lambda model: holds(model, ATOMS), _atom_section),
    (lambda model: bool(power_spectra(model)), _power_section),
)
