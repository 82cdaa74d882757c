"""Pictures of images and their spectra, on figure objects: no window, no global state."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from PIL import Image

from emdask.kernels.fourier import radial_power

Array = npt.NDArray[Any]
Limits = tuple[float, float]

PERCENTILES = (0.5, 99.5)
# Colours that keep apart on white and on black, and for the colour-blind (Okabe and Ito 2008).
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00")
MANY_COLOURS = (*COLOURS, "#56b4e9")
DASHES = ("-", "--", ":", "-.")
INK = "#010203"
# A curve far below the others would press them together; it is cut off.
LOWEST_GAIN_DB = -4.0
# Beyond the last ring in which a curve is this high, there is only chance.
LOWEST_FRC = 0.25
FRC_MARGIN = 1.25
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
    pictures = {"before": before, "after": after, "before - after": before - after}
    return draw_images(pictures, pixel_size_A=pixel_size_A, title=title)


def draw_images(
    pictures: Mapping[str, Any], *, pixel_size_A: float | None = None, title: str = ""
) -> Figure:
    """Draw two or three sets of images beside each other, and their spectra.

    Parameters
    ----------
    pictures : mapping of str to array, shape (n, h, w)
        Name to images, of which the first 16 are drawn, each about its median.
    pixel_size_A
        Edge of a pixel in Å, for the axis of the spectra.
    title
        Written above.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> figure = draw_images({"images": np.eye(32)[None], "without noise": np.eye(32)[None]})
    >>> [axes.get_title() for axes in figure.axes]
    ['images', 'without noise', 'power spectrum']
    """
    n_columns = 2 if len(pictures) == 3 else len(pictures) + 1
    figure = Figure(figsize=(5.5 * n_columns, 11.2 if n_columns == 2 else 6), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(-(-(len(pictures) + 1) // n_columns), n_columns).ravel()
    for axes, (name, images) in zip(panels, pictures.items(), strict=False):
        shown = about_median(images[:MONTAGE_IMAGES])
        low, high = typical_limits(shown)
        picture = montage(shown)
        axes.imshow(picture, cmap="gray", vmin=low, vmax=high, interpolation="antialiased")
        axes.set_title(name)
        axes.set_axis_off()
    _draw_spectra(panels[-1], pictures, pixel_size_A)
    panels[-1].set_title("power spectrum")
    return figure


def draw_comparison(
    snr: Sequence[float], psnr_dB: Mapping[str, Any], reference: str, controls: Collection[str]
) -> Figure:
    """Draw PSNR against SNR, and how far it lies above that of a reference.

    Parameters
    ----------
    snr
        Signal-to-noise ratios.
    psnr_dB : mapping of str to array, shape (len(snr),)
        Label to PSNR; the legend has their order.
    reference
        Label of what the others are measured against.
    controls
        Labels of what is drawn in the colour of the text.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> figure = draw_comparison([0.1, 1], {"a": [20, 30], "b": [22, 31]}, "a", ["a"])
    >>> figure.axes[1].lines[1].get_ydata().tolist()
    [2.0, 1.0]
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    order = np.argsort(snr)
    x = np.asarray(snr)[order]
    curves = {name: np.asarray(values, float)[order] for name, values in psnr_dB.items()}
    styles = line_styles(curves, controls)
    gains = {name: values - curves[reference] for name, values in curves.items()}
    for name in curves:
        left.plot(x, curves[name], label=name, marker="o", ms=3, **styles[name])
        right.plot(x, gains[name], marker="o", ms=3, **styles[name])
    for axes, label in ((left, "PSNR (dB)"), (right, f"PSNR above {reference} (dB)")):
        _draw_snr_axis(axes, x)
        axes.set_ylabel(label)
    if right.get_ylim()[0] < LOWEST_GAIN_DB:
        right.set_ylim(bottom=LOWEST_GAIN_DB)
    _draw_legend(figure)
    return figure


def _draw_legend(figure: Figure) -> None:
    # As long as three dashes: where the marker lies in the only gap, a dashed line looks solid.
    figure.legend(loc="outside right center", frameon=False, fontsize="small", handlelength=4)


def _draw_snr_axis(axes: Axes, snr: Array) -> None:
    axes.set_xscale("log")
    axes.set_xticks(snr, [f"{value:g}" for value in snr])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("SNR")
    axes.grid(alpha=0.25, lw=0.6)


def draw_frc(
    frequency: Any,
    curves: Mapping[str, Any],
    *,
    controls: Collection[str] = (),
    pixel_size_A: float | None = None,
) -> Figure:
    """Draw Fourier ring correlations.

    Parameters
    ----------
    frequency : array, shape (r,)
        In cycles a pixel.
    curves : mapping of str to array, shape (r,)
        Label to correlation; the legend has their order.
    controls
        Labels of what is drawn in the colour of the text.
    pixel_size_A
        Edge of a pixel in Å; None draws the axis in cycles a pixel.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> figure = draw_frc([0.1, 0.2], {"a": [1.0, 0.5]}, pixel_size_A=2.0)
    >>> figure.axes[0].lines[0].get_xdata().tolist()
    [0.05, 0.1]
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.add_subplot()
    styles = line_styles(curves, controls)
    for name, values in curves.items():
        axes.plot(np.asarray(frequency) / (pixel_size_A or 1.0), values, label=name, **styles[name])
    axes.axhline(0.5, color=INK, lw=0.6, alpha=0.6)
    axes.set_ylim(-0.1, 1.02)
    axes.set_xlim(0, _end_of_signal(np.asarray(frequency), curves) / (pixel_size_A or 1.0))
    axes.set_xlabel("frequency (1/Å)" if pixel_size_A else "frequency (cycles/px)")
    axes.set_ylabel("Fourier ring correlation")
    axes.grid(alpha=0.25, lw=0.6)
    _draw_legend(figure)
    return figure


def _end_of_signal(frequency: Array, curves: Mapping[str, Any]) -> float:
    """Frequency up to which something correlates, with a margin."""
    highest = np.max([np.asarray(values) for values in curves.values()], axis=0)
    last = frequency[np.flatnonzero(highest > LOWEST_FRC)[-1:]]
    return float(min(frequency[-1], *(FRC_MARGIN * last), frequency[-1]))


def line_styles(names: Iterable[str], controls: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Give each name a line that can be told from the others: 24 colours and dashes.

    Parameters
    ----------
    names
        In the order in which colours go round.
    controls
        Those that have the colour of the text.

    Returns
    -------
    dict of str to dict
        Keywords of matplotlib's ``plot``.

    Examples
    --------
    >>> line_styles(["a", "b", "c"], ["b"])["c"]["color"] == MANY_COLOURS[1]
    True
    """
    names = list(names)
    others = [name for name in names if name not in controls]
    own = [name for name in names if name in controls]
    n = len(MANY_COLOURS)
    styles = {
        name: {"color": MANY_COLOURS[i % n], "ls": DASHES[i // n % len(DASHES)], "lw": 1.5}
        for i, name in enumerate(others)
    }
    return styles | {
        name: {"color": INK, "ls": DASHES[i % len(DASHES)], "lw": 2.0} for i, name in enumerate(own)
    }


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
    for legend in figure.legends:
        _ink_legend(legend)
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
    _ink_legend(axes.get_legend())


def _ink_legend(legend: Legend | None) -> None:
    for entry in legend.get_texts() if legend else ():
        entry.set_color(INK)
