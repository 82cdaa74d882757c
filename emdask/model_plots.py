"""Pictures of what a method has learnt: eigenimages, eigenvalues, atoms, spectra, losses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from emdask.plots import COLOURS, Limits, grey_limits, line_styles, montage

Array = npt.NDArray[np.floating]

EIGENIMAGES_SHOWN = 17
PANELS_A_ROW = 6
# The last is a grey that is seen on white and on black.
EDGE, ABOVE, BELOW = COLOURS[0], COLOURS[1], "#808080"
# Far below the noise there is only rounding, which would press the others together.
LEAST_EIGENVALUE = 1e-2
# Patches are so few pixels that a browser would smooth what is in them away.
SHEET_PX = 480


def relative_eigenvalues(model: xr.Dataset) -> tuple[Array, Array, Array]:
    """Return the eigenvalues that a model was made of, before shrinkage, and where noise ends.

    Parameters
    ----------
    model
        With ``spectrum (order_k, radial)`` and ``noise_edge (order_k)``; NaN fills rows up.

    Returns
    -------
    order : float64 array, shape (n,)
        Angular order of each eigenvalue.
    value : float64 array, shape (n,)
        Eigenvalue / variance of the noise.
    edge : float64 array, shape (n,)
        Of the eigenvalue's order: what noise alone reaches, / variance of the noise.

    Examples
    --------
    >>> model = xr.Dataset(
    ...     {"spectrum": (("order_k", "radial"), [[8.0, 2.0], [6.0, np.nan]]),
    ...      "noise_edge": ("order_k", [4.0, 3.0])}, {"order_k": [0, 1]}, {"noise_variance": 2.0})
    >>> [part.tolist() for part in relative_eigenvalues(model)]
    [[0.0, 0.0, 1.0], [4.0, 1.0, 3.0], [2.0, 2.0, 1.5]]
    """
    noise_variance = float(model.attrs["noise_variance"])
    spectrum = model["spectrum"].values / noise_variance
    there = np.isfinite(spectrum)
    orders = np.broadcast_to(model["order_k"].values[:, None], spectrum.shape)
    edges = np.broadcast_to(model["noise_edge"].values[:, None] / noise_variance, spectrum.shape)
    return orders[there].astype(np.float64), spectrum[there], edges[there]


def draw_eigenvalues(model: xr.Dataset) -> Figure:
    """Draw the eigenvalues of a model by angular order and by rank, with the edge of the noise.

    Parameters
    ----------
    model
        As of `relative_eigenvalues`.

    Returns
    -------
    matplotlib.figure.Figure
        Eigenvalues / variance of the noise over the order, and eigenvalues / edge of their order
        over the rank; those above the edge have another colour.

    Examples
    --------
    >>> model = xr.Dataset(
    ...     {"spectrum": (("order_k", "radial"), [[8.0, 2.0]]), "noise_edge": ("order_k", [4.0])},
    ...     {"order_k": [0]}, {"noise_variance": 2.0})
    >>> [axes.get_xlabel() for axes in draw_eigenvalues(model).axes]
    ['angular order k', 'rank']
    """
    order, value, edge = relative_eigenvalues(model)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    # As a bitmap: there may be thousands.
    noise = {"label": "within the noise", "color": BELOW, "alpha": 0.6, "rasterized": True}
    _draw_dots(left, order[value <= edge], value[value <= edge], **noise)
    _draw_dots(left, order[value > edge], value[value > edge], label="above it", color=ABOVE)
    edges = model["noise_edge"].values / float(model.attrs["noise_variance"])
    left.plot(model["order_k"].values, edges, color=EDGE, lw=1.6, label="noise edge")
    left.set_xlabel("angular order k")
    left.set_ylabel("eigenvalue / noise variance")
    share = np.sort(value / edge)[::-1]
    rank = np.arange(1, len(share) + 1)
    right.plot(rank[share <= 1], share[share <= 1], color=BELOW, lw=2)
    right.plot(rank[share > 1], share[share > 1], color=ABOVE, lw=2, marker="o", ms=3, mew=0)
    right.axhline(1.0, color=EDGE, lw=1.6)
    right.set_xscale("log")
    right.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,.0f}"))
    right.set_xlabel("rank")
    right.set_ylabel("eigenvalue / noise edge of its order")
    left.legend(frameon=False, fontsize="small", loc="upper right")
    for axes, values in ((left, value), (right, share)):
        _draw_log_axis(axes, values)
    return figure


def _draw_dots(axes: Axes, x: Array, y: Array, **style: Any) -> None:
    axes.plot(x, y, ls="", marker="o", ms=3, mew=0, **style)


def _draw_log_axis(axes: Axes, values: Array) -> None:
    lowest = float(values[values > 0].min(initial=1.0))
    axes.set_yscale("log")
    axes.set_ylim(bottom=max(LEAST_EIGENVALUE, lowest / 1.5))
    _name_decades(axes)
    axes.grid(alpha=0.25, lw=0.6)


def _name_decades(axes: Axes) -> None:
    """Write 0.1 and 10 instead of powers, and what lies between where there is no more."""
    low, high = axes.get_ylim()
    plain = FuncFormatter(lambda value, place: f"{value:g}")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain if high < 10 * low else NullFormatter())


def eigenimage_limits(image: npt.ArrayLike) -> Limits:
    """Return the grey levels of an eigenimage: its sign means nothing, so 0 is grey.

    Examples
    --------
    >>> eigenimage_limits([[0.0, -4.0], [2.0, -4.0]])
    (-4.0, 4.0)
    """
    high = float(np.percentile(np.abs(image), 99.5))
    return (-high, high) if high > 0 else (-1.0, 1.0)


def draw_eigenimages(model: xr.Dataset, *, n_images: int = EIGENIMAGES_SHOWN) -> Figure:
    """Draw the mean of a model and its leading eigenimages, in what images differ most.

    Parameters
    ----------
    model
        With ``mean (y, x)``, ``eigenimages (component, y, x)``, and their ``eigenvalue`` and
        ``order``, leading ones first.
    n_images
        Most eigenimages that are drawn.

    Returns
    -------
    matplotlib.figure.Figure
        Above each eigenimage its angular order k, and its eigenvalue / variance of the noise.

    Examples
    --------
    >>> images = {"mean": (("y", "x"), np.eye(8))}
    >>> images["eigenimages"] = (("component", "y", "x"), [np.eye(8)])
    >>> numbers = {"eigenvalue": ("component", [6.0]), "order": ("component", [2])}
    >>> model = xr.Dataset(images | numbers, attrs={"noise_variance": 2.0})
    >>> [axes.get_title() for axes in draw_eigenimages(model).axes]
    ['mean', 'k = 2, 3']
    """
    pictures = [("mean", model["mean"].values, grey_limits(model["mean"].values))]
    values = model["eigenvalue"].values / float(model.attrs["noise_variance"])
    for image, value, order in zip(
        model["eigenimages"].values[:n_images], values, model["order"].values, strict=False
    ):
        pictures.append((f"k = {order}, {value:.3g}", image, eigenimage_limits(image)))
    n_rows = -(-len(pictures) // PANELS_A_ROW)
    n_columns = min(len(pictures), PANELS_A_ROW)
    figure = Figure(figsize=(1.9 * n_columns, 2.15 * n_rows + 0.3), layout="constrained")
    figure.suptitle("angular order k, eigenvalue / noise variance", fontsize="medium")
    for i, (title, image, (low, high)) in enumerate(pictures, start=1):
        axes = figure.add_subplot(n_rows, n_columns, i)
        axes.imshow(image, cmap="gray", vmin=low, vmax=high)
        axes.set_title(title, fontsize="small")
        axes.set_axis_off()
    return figure


def draw_training(curve: pd.DataFrame) -> Figure:
    """Draw the losses of a training over its epochs.

    Parameters
    ----------
    curve
        Columns ``epoch``, ``training_loss``, ``validation_loss``; the latter may be NaN.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> curve = pd.DataFrame({"epoch": [1], "training_loss": [2.0], "validation_loss": [1.0]})
    >>> draw_training(curve).axes[0].get_xlabel()
    'epoch'
    """
    figure = Figure(figsize=(11, 4.0), layout="constrained")
    axes = figure.subplots()
    style: dict[str, Any] = {"lw": 2, "marker": "o", "ms": 4, "mew": 0}
    axes.plot(curve["epoch"], curve["training_loss"], color=BELOW, label="learnt from", **style)
    if curve["validation_loss"].notna().any():
        style |= {"color": ABOVE, "label": "held out"}
        axes.plot(curve["epoch"], curve["validation_loss"], **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.legend(frameon=False, fontsize="small", loc="upper right")
    return figure


def atom_sheets(model: xr.Dataset) -> dict[str, Array]:
    """Lay out the atoms of each dictionary of a model, every one stretched to its own contrast.

    Parameters
    ----------
    model
        With ``atoms (scale, atom, pixel)`` of square patches row by row, the finest scale first;
        what is 0 was not learnt and is left out.

    Returns
    -------
    dict of str to float64 array, shape (h, w)
        Name of the scale to a picture from -1 to 1, some pixels to a pixel of a patch; gaps are
        NaN. Scales without atoms are left out.

    Examples
    --------
    >>> model = xr.Dataset({"atoms": (("scale", "atom", "pixel"), np.eye(16)[None, :5])})
    >>> [(name, np.nanmax(sheet).item()) for name, sheet in atom_sheets(model).items()]
    [('scale 1: 5 atoms of 4 × 4 px', 1.0)]
    """
    sheets = {}
    for scale, atoms in enumerate(model["atoms"].values.astype(np.float64), start=1):
        learnt = atoms[np.any(atoms != 0, axis=1)]
        if len(learnt):
            edge = math.isqrt(learnt.shape[1])
            patches = learnt.reshape(-1, edge, edge)
            patches /= np.abs(patches).max(axis=(1, 2), keepdims=True)
            sheet = montage(patches, n_columns=math.ceil(math.sqrt(len(patches))))
            times = max(1, SHEET_PX // max(sheet.shape))
            name = f"scale {scale}: {len(patches)} atoms of {edge} × {edge} px"
            sheets[name] = sheet.repeat(times, axis=0).repeat(times, axis=1)
    return sheets


def power_spectra(model: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return what a model holds along its ``frequency``, by its long name or else its own.

    Examples
    --------
    >>> model = xr.Dataset({"noise_power": ("frequency", [2.0, 1.0])}, {"frequency": [0.1, 0.2]})
    >>> list(power_spectra(model))
    ['noise power']
    """
    if "frequency" not in model.coords:
        return {}
    return {
        str(variable.attrs.get("long_name", name)).replace("_", " "): variable
        for name, variable in model.data_vars.items()
        if variable.dims == model["frequency"].dims
    }


def draw_power_spectra(model: xr.Dataset) -> Figure:
    """Draw the power spectra that a model holds.

    Parameters
    ----------
    model
        With the coordinate ``frequency``, cycles a pixel, and variables along its dimension.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> model = xr.Dataset({"noise_power": ("frequency", [2.0, 1.0])}, {"frequency": [0.1, 0.2]})
    >>> draw_power_spectra(model).axes[0].lines[0].get_label()
    'noise power'
    """
    curves = power_spectra(model)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.add_subplot()
    styles = line_styles(curves)
    for label, power in curves.items():
        shown = power.where(power > 0).values
        axes.semilogy(model["frequency"].values, shown, label=label, **styles[label])
    axes.set_xlabel("frequency (cycles/px)")
    units = {str(power.attrs.get("units", "")) for power in curves.values()} - {""}
    axes.set_ylabel(f"power ({', '.join(sorted(units))})" if units else "power")
    _name_decades(axes)
    axes.margins(x=0)
    axes.grid(alpha=0.25, lw=0.6)
    axes.legend(frameon=False, fontsize="small")
    return figure
