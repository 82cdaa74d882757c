"""A reconstruction as figures on a terminal, and as a page of pictures, curves and views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.metrics import frc_resolution
from emdask.plots import png_bytes, svg_text
from emdask.report import (
    Picture,
    Section,
    Table,
    environment_text,
    provenance_rows,
    write_report,
)
from emdask.volume_plots import THRESHOLDS, draw_fsc, draw_views, volume_pictures

Array = npt.NDArray[Any]

HALVES, TRUTH = THRESHOLDS


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """One Fourier shell correlation.

    Parameters
    ----------
    name
        What is correlated, as "half maps".
    frequency_per_A : float64 array, shape (r,)
        In 1/Å.
    correlation : float64 array, shape (r,)
        In [-1, 1].
    threshold
        At which the resolution is read: 0.143 between half maps, 0.5 against a reference.
    """

    name: str
    frequency_per_A: Array
    correlation: Array
    threshold: float = HALVES

    def resolution(self, threshold: float | None = None) -> str:
        """Say the resolution at a threshold; None takes its own.

        Examples
        --------
        >>> frequency = np.array([0.1, 0.2])
        >>> curve = Curve(name="a", frequency_per_A=frequency, correlation=np.array([1.0, 0.2]))
        >>> curve.resolution(0.6), curve.resolution(), curve.resolution(2.0)
        ('6.67 Å', '5.00 Å or finer', 'none')
        """
        level = self.threshold if threshold is None else threshold
        crossing = float(frc_resolution(self.frequency_per_A, self.correlation, threshold=level))
        if crossing == 0:
            return "none"
        ever = bool((self.correlation < level).any())
        return f"{1 / crossing:.2f} Å" + ("" if ever else " or finer")


def resolution_table(curves: Sequence[Curve]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return header and rows of a table: a row a curve, a column a threshold.

    Parameters
    ----------
    curves
        Correlations.

    Returns
    -------
    header : tuple of str
    rows : list of tuple of str

    Examples
    --------
    >>> resolution_table([])[0]
    ('Fourier shell correlation', 'at 0.143', 'at 0.5')
    """
    header = ("Fourier shell correlation", *(f"at {level:g}" for level in THRESHOLDS))
    rows = [(curve.name, *(curve.resolution(level) for level in THRESHOLDS)) for curve in curves]
    return header, rows


def write_reconstruction(
    path: str | Path,
    *,
    found: xr.Dataset,
    stack: xr.DataArray,
    curves: Sequence[Curve],
    seconds: float,
    symmetry: str,
    mask: str = "",
) -> Path:
    """Write the page: pictures of the map, curves, views, and how it was made.

    Parameters
    ----------
    path
        Where to; an existing file is replaced.
    found
        What `emdask.reconstruct` returned, computed.
    stack
        The images; only what is known of them is read.
    curves
        Correlations of the half maps, and with a reference; the last one of each threshold is in
        the headline.
    seconds
        Wall time.
    symmetry
        Point group.
    mask
        Which mask the correlations were taken under, in words.

    Returns
    -------
    pathlib.Path
    """
    n_images, n = len(stack), found.volume.shape[0]
    pixel_size_A = found.volume.attrs["pixel_size_A"]
    return write_report(
        path,
        title="Reconstruction",
        text=f"{n_images:,} images with known poses; a map of {n} x {n} x {n} voxels of "
        f"{pixel_size_A:g} Å.",
        headline=_headline(curves, n_images, seconds),
        sections=[
            _map_section(found.volume),
            *([_fsc_section(curves, mask)] if curves else []),
            _views_section(stack, symmetry),
            Section(
                title="How it was made",
                table=Table(header=("step", "parameters"), rows=provenance_rows(found.attrs)),
                text=environment_text(),
            ),
        ],
    )


def _headline(curves: Sequence[Curve], n_images: int, seconds: float) -> list[tuple[str, str]]:
    last = {curve.threshold: curve for curve in curves}
    resolutions = [
        (curve.resolution(), f"resolution: {curve.name}, FSC {level:g}")
        for level, curve in last.items()
    ]
    speed = f"wall time, {n_images / max(seconds, 1e-9):.3g} images a second"
    return [*resolutions, (f"{seconds:.3g} s", speed)]


def _map_section(volume: xr.DataArray) -> Section:
    edge_A = volume.shape[0] * volume.attrs["pixel_size_A"]
    pictures = [
        Picture(png=png_bytes(picture), name=name)
        for name, picture in volume_pictures(volume.values).items()
    ]
    return Section(
        title="The map",
        text=f"{edge_A:.4g} Å on edge, each picture on a grey scale of its own. Sections go "
        "through the centre; the first axis of a section points down, the second to the right.",
        pictures=pictures,
        n_columns=3,
    )


def _fsc_section(curves: Sequence[Curve], mask: str) -> Section:
    frequency = curves[0].frequency_per_A
    labels = {
        f"{curve.name}: {curve.resolution()} at {curve.threshold:g}": curve for curve in curves
    }
    figure = draw_fsc(
        frequency,
        {label: curve.correlation for label, curve in labels.items()},
        {label: curve.threshold for label, curve in labels.items()},
    )
    header, rows = resolution_table(curves)
    what = "How well the Fourier terms of two volumes agree, shell by shell. Half maps share no "
    what += "image: where they agree by 0.143, the map of all images agrees with the truth by 0.5."
    return Section(
        title="Fourier shell correlation",
        text=f"{what} {mask}".rstrip(),
        table=Table(header=header, rows=rows, is_figures=True),
        wide_drawing=svg_text(figure),
    )


def _views_section(stack: xr.DataArray, symmetry: str) -> Section:
    views = draw_views(stack.rot_deg.values, stack.tilt_deg.values)
    rows = [("images", f"{len(stack):,}"), ("symmetry", symmetry)]
    ranges = (
        ("tilt", "tilt_deg", "°", 1.0),
        ("shift x", "shift_x_A", " Å", 1.0),
        ("shift y", "shift_y_A", " Å", 1.0),
        ("defocus", "defocus_u_A", " µm", 1e-4),
    )
    rows += [
        (label, _range_text(stack.coords[name].values * scale, unit))
        for label, name, unit, scale in ranges
        if name in stack.coords
    ]
    return Section(
        title="Directions of view",
        text="On a map of equal areas, as the angles are given, without the symmetry. Where all "
        "views lie within one region, the map is smeared along it.",
        table=Table(header=("", ""), rows=rows),
        drawing=svg_text(views),
    )


def _range_text(values: Array, unit: str) -> str:
    low, high = float(np.min(values)) + 0.0, float(np.max(values)) + 0.0
    return f"{low:.3g}{unit}" if low == high else f"{low:.3g} to {high:.3g}{unit}"
