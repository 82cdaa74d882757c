"""Pictures of a volume: sections, projections, Fourier shell correlation, directions of view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from emdask.metrics import frc_resolution
from emdask.plots import INK, grey_limits, line_styles

Array = npt.NDArray[Any]

THRESHOLDS = (0.143, 0.5)
# Average of the cells of the map of views, as far as the number of bands allows.
VIEWS_A_CELL = 10
BANDS = (6, 24)
# Edges of a band are straight where it is drawn in one.
LINES_A_BAND = 12
RESOLUTIONS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
TICK_DISTANCE = 0.06
COLOUR_MAP = "viridis"


def volume_pictures(volume: Any) -> dict[str, Array]:
    """Cut a volume through its centre and look through it, along each of its axes.

    Parameters
    ----------
    volume : array, shape (n, n, n)
        Axes z, y, x.

    Returns
    -------
    dict of str to array, shape (n, n)
        Three sections through voxel ``n // 2`` and three projections, the plain sums. The vertical
        axis of a picture is the first of the two that its name tells.

    Examples
    --------
    >>> pictures = volume_pictures(np.ones((4, 4, 4)))
    >>> list(pictures)[:2], pictures["projection along z"].max().item()
    (['section y, x', 'section z, x'], 4.0)
    """
    volume = np.asarray(volume)
    names = "zyx"
    sections = {
        f"section {', '.join(names.replace(names[axis], ''))}": volume.take(n // 2, axis)
        for axis, n in enumerate(volume.shape)
    }
    projections = {f"projection along {names[axis]}": volume.sum(axis) for axis in range(3)}
    return sections | projections


def draw_volume(volume: Any, *, pixel_size_A: float | None = None, title: str = "") -> Figure:
    """Draw the sections and projections of a volume.

    Parameters
    ----------
    volume : array, shape (n, n, n)
        Axes z, y, x.
    pixel_size_A
        Edge of a voxel in Å; None draws the axes in voxels.
    title
        Written above.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> figure = draw_volume(np.ones((4, 4, 4)), pixel_size_A=2.0)
    >>> figure.axes[0].get_title(), figure.axes[0].get_ylabel()
    ('section y, x', 'y (Å)')
    """
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    figure.suptitle(title)
    names = (("y", "x"), ("z", "x"), ("z", "y"))
    panels = figure.subplots(2, 3).ravel()
    for i, (axes, (name, picture)) in enumerate(
        zip(panels, volume_pictures(volume).items(), strict=True)
    ):
        low, high = grey_limits(picture)
        axes.imshow(
            picture, cmap="gray", vmin=low, vmax=high, extent=_extent(picture.shape, pixel_size_A)
        )
        axes.set_title(name)
        _name_axes(axes, names[i % 3], "px" if pixel_size_A is None else "Å")
    return figure


def _extent(shape: tuple[int, ...], pixel_size_A: float | None) -> tuple[float, ...]:
    """Edges of a picture about voxel n // 2: left, right, bottom, top, y pointing down."""
    (top, bottom), (left, right) = (
        ((-0.5 - n // 2) * (pixel_size_A or 1.0), (n - 0.5 - n // 2) * (pixel_size_A or 1.0))
        for n in shape
    )
    return left, right, bottom, top


def _name_axes(axes: Axes, names: tuple[str, str], unit: str) -> None:
    axes.set_ylabel(f"{names[0]} ({unit})")
    axes.set_xlabel(f"{names[1]} ({unit})")
    axes.tick_params(labelsize="small")


def draw_fsc(
    frequency_per_A: Any,
    curves: Mapping[str, Any],
    thresholds: Mapping[str, float] | None = None,
) -> Figure:
    """Draw Fourier shell correlations, and where each falls below its threshold.

    Parameters
    ----------
    frequency_per_A : array, shape (r,)
        In 1/Å, rising, above 0.
    curves : mapping of str to array, shape (r,)
        Label to correlation; the legend has their order.
    thresholds
        Label to the threshold whose first crossing is marked; none where a label is absent.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> figure = draw_fsc([0.1, 0.3], {"a": [1, 0]}, thresholds={"a": 0.5})
    >>> figure.axes[0].lines[-1].get_xydata().tolist()
    [[0.2, 0.5]]
    """
    frequency = np.asarray(frequency_per_A, np.float64)
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for threshold in THRESHOLDS:
        axes.axhline(threshold, color=INK, lw=0.6, alpha=0.6)
    styles = line_styles(curves)
    for label, values in curves.items():
        axes.plot(frequency, values, label=label, **styles[label])
    for label, threshold in (thresholds or {}).items():
        crossing = float(frc_resolution(frequency, np.asarray(curves[label]), threshold=threshold))
        if frequency[0] < crossing < frequency[-1]:
            dot = {"marker": "o", "ms": 6, "color": styles[label]["color"]}
            axes.plot([crossing], [threshold], **dot)
    _draw_shell_axes(axes, frequency)
    figure.legend(loc="outside lower center", frameon=False, ncols=2, handlelength=4)
    return figure


def _draw_shell_axes(axes: Axes, frequency_per_A: Array) -> None:
    axes.set_ylim(-0.1, 1.03)
    axes.set_xlim(0, frequency_per_A[-1])
    axes.set_yticks([0.0, 0.143, 0.5, 1.0], ["0", "0.143", "0.5", "1"])
    axes.set_ylabel("Fourier shell correlation")
    ticks_A = _resolution_ticks(float(frequency_per_A[-1]))
    axes.set_xticks([1 / tick for tick in ticks_A], [f"{tick:g}" for tick in ticks_A])
    axes.set_xlabel("resolution (Å)")
    axes.grid(alpha=0.25, lw=0.6)


def _resolution_ticks(end_per_A: float) -> list[float]:
    """Round numbers of Å, fine to coarse, that leave each other room on an axis of frequency."""
    distance = TICK_DISTANCE * end_per_A
    decades = range(int(np.floor(np.log10(1 / end_per_A))), 4)
    ticks: list[float] = []
    for tick in (number * 10.0**power for power in decades for number in RESOLUTIONS):
        last = 1 / ticks[-1] if ticks else end_per_A * 1.0001 + distance
        if distance < 1 / tick < last - distance:
            ticks.append(tick)
    return ticks


def count_views(rot_deg: Any, tilt_deg: Any, n_bands: int) -> Array:
    """Count the directions of view in cells of one solid angle.

    Parameters
    ----------
    rot_deg, tilt_deg : array, shape (n,)
        Angles of the views; any multiple of 360 and any sign of the tilt are understood.
    n_bands
        Bands of tilt from 0 to 180, evenly spaced in its cosine.

    Returns
    -------
    float64 array, shape (n_bands, 2 n_bands)
        Views in each cell: tilt rises along the first axis, rot from -180 to 180 along the second.

    Examples
    --------
    >>> count_views([0, 180, 540], [80, -80, 80], 2).tolist()
    [[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    """
    rot, tilt = (np.deg2rad(np.asarray(angle, np.float64)) for angle in (rot_deg, tilt_deg))
    # Through the vector, because rot = 180, tilt = -10 is the direction of rot = 0, tilt = 10.
    x, y, z = np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)
    # Without the rounding, rot = 180 would be now at one end of the arc and now at the other.
    azimuth = np.arctan2(np.round(y, 12) + 0.0, np.round(x, 12) + 0.0)
    limits = [(-1.0, 1.0), (-np.pi, np.pi)]
    counts = np.histogram2d(z, azimuth, bins=(n_bands, 2 * n_bands), range=limits)[0]
    return np.asarray(counts[::-1])


def draw_views(rot_deg: Any, tilt_deg: Any) -> Figure:
    """Draw how often the particle is seen from each direction, on a map of equal areas.

    Parameters
    ----------
    rot_deg, tilt_deg : array, shape (n,)
        Angles of the views in degrees.

    Returns
    -------
    matplotlib.figure.Figure
        Mollweide's projection: tilt 0 on top, rot from left to right. Colours are views in a cell
        / views in a cell if all directions were as likely.

    Examples
    --------
    >>> figure = draw_views([0, 90, 180], [0, 90, 180])
    >>> figure.axes[1].get_ylabel()
    'views / even spread'
    """
    n_bands = int(np.clip(np.sqrt(np.size(rot_deg) / VIEWS_A_CELL / 2), *BANDS))
    counts = count_views(rot_deg, tilt_deg, n_bands)
    figure = Figure(figsize=(7.4, 3.8), layout="constrained")
    axes = figure.add_subplot(projection="mollweide")
    mesh = axes.pcolormesh(
        np.linspace(-np.pi, np.pi, 2 * n_bands + 1),
        np.arcsin(np.linspace(1.0, -1.0, LINES_A_BAND * n_bands + 1)),
        np.repeat(counts / counts.mean(), LINES_A_BAND, axis=0),
        cmap=COLOUR_MAP,
        vmin=0.0,
        rasterized=True,
    )
    _draw_globe_axes(axes)
    figure.colorbar(mesh, ax=axes, shrink=0.75, pad=0.02).set_label("views / even spread")
    return figure


def _draw_globe_axes(axes: Axes) -> None:
    tilt = np.arange(30, 151, 30)
    axes.set_yticks(np.deg2rad(90 - tilt), [f"{angle}°" for angle in tilt])
    # Without numbers: they would stand on the colours.
    axes.set_xticks(np.deg2rad(np.arange(-120, 121, 60)), [])
    axes.tick_params(labelsize="small")
    axes.set_ylabel("tilt")
    axes.set_xlabel("rot, -180° to 180°")
    axes.grid(alpha=0.35, lw=0.5)
