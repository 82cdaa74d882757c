"""Pictures of images and their spectra, on figure objects: no window, no global state."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from emdask.kernels.fourier import radial_power

Array = npt.NDArray[Any]
Limits = tuple[float, float]

PERCENTILES = (0.5, 99.5)
# Colours that keep apart on white and on black, and for the colour-blind (Okabe and Ito 2008).
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00")
INK = "#010203"
SPECTRUM_FLOOR = 1e-4
MONTAGE_COLUMNS = 4
MONTAGE_IMAGES = 16


def grey_limits(image: Any, percentiles: Limits = PERCENTILES) -> Limits:
    """Return the grey levels to be drawn black and white.

    Parameters
    ----------
    image : array
        Pixels.
    percentiles
        Share of the pixels below black and below white.

    Returns
    -------
    tuple of float
        Low and high; never equal.

    Examples
    --------
    >>> grey_limits(np.arange(1001.0))
    (5.0, 995.0)
    """
    low, high = np.percentile(np.asarray(image), percentiles)
    return (float(low), float(high)) if high > low else (float(low) - 1, float(low) + 1)


def typical_limits(images: Any, percentiles: Limits = PERCENTILES) -> Limits:
    """Return grey levels that suit most of many images: the median of each one's `grey_limits`.

    Parameters
    ----------
    images : array, shape (n, h, w)
        Images; a few of wild contrast change nothing.
    percentiles
        Share of an image's pixels below black and below white.

    Returns
    -------
    tuple of float
        Low and high; never equal.

    Examples
    --------
    >>> ramp = np.linspace(0, 1, 2001).reshape(1, 1, -1)
    >>> low, high = typical_limits(ramp * np.array([1, 1, 100]).reshape(3, 1, 1))
    >>> bool(high < 1)
    True
    """
    limits = [grey_limits(image, percentiles) for image in images]
    low, high = np.median(np.array(limits), axis=0)
    return float(low), float(high)


def about_median(images: Any) -> Array:
    """Subtract each image's median, so that images of other brightness can share a grey scale.

    Parameters
    ----------
    images : array, shape (n, h, w)
        Images.

    Returns
    -------
    array, shape (n, h, w)

    Examples
    --------
    >>> about_median(np.full((2, 3, 3), 7.0)).max().item()
    0.0
    """
    images = np.asarray(images)
    return np.asarray(images - np.median(images, axis=(-2, -1), keepdims=True))


def montage(images: Any, n_columns: int = MONTAGE_COLUMNS) -> Array:
    """Lay images out in rows, with a gap of two pixels.

    Parameters
    ----------
    images : array, shape (n, h, w)
        Images.
    n_columns
        Images a row.

    Returns
    -------
    float array
        One image; gaps and free places are NaN.

    Examples
    --------
    >>> montage(np.zeros((3, 4, 4)), n_columns=2).shape
    (10, 10)
    """
    n, h, w = images.shape
    n_columns = min(n, n_columns)
    n_rows = -(-n // n_columns)
    canvas = np.full((n_rows * (h + 2) - 2, n_columns * (w + 2) - 2), np.nan)
    for i, image in enumerate(images):
        row, column = divmod(i, n_columns)
        y, x = row * (h + 2), column * (w + 2)
        canvas[y : y + h, x : x + w] = image
    return canvas


def png_bytes(image: Any, limits: Limits | None = None) -> bytes:
    """Encode one image as a grey PNG, a pixel a pixel; NaN is transparent.

    Parameters
    ----------
    image : array, shape (h, w)
        Pixels.
    limits
        Grey levels to be drawn black and white; None takes `grey_limits`.

    Returns
    -------
    bytes

    Examples
    --------
    >>> png_bytes(np.eye(4))[1:4]
    b'PNG'
    """
    image = np.asarray(image, np.float64)
    there = np.isfinite(image)
    low, high = grey_limits(image[there]) if limits is None else limits
    grey = np.clip((np.where(there, image, low) - low) / (high - low) * 255, 0, 255).round()
    planes = [Image.fromarray(plane.astype(np.uint8)) for plane in (grey, there * 255.0)]
    picture = planes[0] if there.all() else Image.merge("LA", planes)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def draw_spectra(images: Mapping[str, Any], pixel_size_A: float | None = None) -> Figure:
    """Draw the power spectrum of each set of images, averaged over rings and images.

    Parameters
    ----------
    images : mapping of str to array, shape (n, h, w)
        Label to images; far below the median power of the first, nothing is drawn.
    pixel_size_A
        Edge of a pixel in Å; None draws the axis in cycles a pixel.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> figure = draw_spectra({"noise": np.random.default_rng(0).normal(size=(2, 32, 32))})
    >>> figure.axes[0].get_xlabel()
    'frequency (cycles/px)'
    """
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    _draw_spectra(figure.add_subplot(), images, pixel_size_A)
    return figure


def _draw_spectra(axes: Axes, images: Mapping[str, Any], pixel_size_A: float | None) -> None:
    floor = None
    for (label, array), colour in zip(images.items(), COLOURS, strict=False):
        frequency, power = radial_power(np.asarray(array))
        power = power.reshape(-1, power.shape[-1]).mean(axis=0)
        # A clean simulation falls by 14 decades; what lies far below the noise is of no interest.
        floor = SPECTRUM_FLOOR * float(np.median(power)) if floor is None else floor
        axes.semilogy(frequency / (pixel_size_A or 1.0), power, color=colour, lw=1.6, label=label)
    axes.set_xlabel("frequency (1/Å)" if pixel_size_A else "frequency (cycles/px)")
    axes.set_ylabel("power")
    axes.margins(x=0)
    if floor and axes.get_ylim()[0] < floor < axes.get_ylim()[1]:
        axes.set_ylim(bottom=floor)
    axes.grid(alpha=0.25, lw=0.6)
    axes.legend(frameon=False, fontsize="small")


def draw_before_after(
    before: Any, after: Any, *, pixel_size_A: float | None = None, title: str = ""
) -> Figure:
    """Draw images before and after, what was taken away, and the spectra of the three.

    Parameters
    ----------
    before, after : array, shape (n, h, w)
        One micrograph, or particle images; of more than 16 the first are drawn.
    pixel_size_A
        Edge of a pixel in Å, for the axis of the spectra.
    title
        Written above.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> figure = draw_before_after(np.eye(32)[None], np.zeros((1, 32, 32)))
    >>> [axes.get_title() for axes in figure.axes][1:]
    ['after', 'before - after', 'power spectrum']
    """
    before, after = (np.asarray(a, np.float64) for a in (before, after))
    residual = before - after
    figure = Figure(figsize=(11, 11.2), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(2, 2).ravel()
    pictures = {"before": before, "after": after, "before - after": residual}
    for axes, (name, images) in zip(panels, pictures.items(), strict=False):
        shown = about_median(images[:MONTAGE_IMAGES])
        low, high = typical_limits(shown)
        picture = montage(shown)
        axes.imshow(picture, cmap="gray", vmin=low, vmax=high, interpolation="antialiased")
        axes.set_title(name)
        axes.set_axis_off()
    _draw_spectra(panels[3], pictures, pixel_size_A)
    panels[3].set_title("power spectrum")
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, PDF or SVG, as the name's ending says.

    Parameters
    ----------
    figure
        What a function of this module drew.
    path
        Where to; an existing file is replaced.

    Returns
    -------
    pathlib.Path
    """
    figure.savefig(path, dpi=120)
    return Path(path)


def svg_text(figure: Figure) -> str:
    """Return a figure as SVG whose lines and letters take the colour and font of the page.

    Parameters
    ----------
    figure
        What a function of this module drew; its axes, ticks and letters are recoloured.

    Returns
    -------
    str
        The ``<svg>`` element, to be placed in HTML as it is.

    Examples
    --------
    >>> svg_text(draw_spectra({"a": np.eye(16)[None]})).startswith("<svg")
    True
    """
    for axes in figure.axes:
        _ink(axes)
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "emdask"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def _ink(axes: Axes) -> None:
    """Mark what is to take the page's colour with one that nothing else has."""
    axes.tick_params(which="both", color=INK, labelcolor=INK)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set_color(INK)
    for spine in axes.spines.values():
        spine.set_edgecolor(INK)
    legend = axes.get_legend()
    for entry in legend.get_texts() if legend else ():
        entry.set_color(INK)
