"""Pictures of picks: where they are, how they scored, and how they compare with known particles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.ndimage import gaussian_filter

from emdask.plots import COLOURS, INK, grey_limits, line_styles

Array = npt.NDArray[Any]
Extent = tuple[float, float, float, float]

PICTURE_PX = 640
# Of the standard deviation of the blur, in diameters: noise goes, the particle stays.
BLUR = 0.06
N_SHADES = 256
# On either side of the median, in standard deviations.
GREY_LEVELS = 3.0
# Of a map that dark and light give their colours to: below are holes and edges.
LOWEST_SCORES = 2.0
# The dark end of the colours would not show on a dark micrograph.
COLOURS_FROM = 0.3
MISSED = "#4dd2ff"
N_BINS = 60
MOST_SCORES = 99.5
OTHERS, SHOWN = "#8f99a3", COLOURS[1]


class Shrunk(NamedTuple):
    """A micrograph made small for a picture, and where its pixels lie in the large one.

    Parameters
    ----------
    image : float32 array, shape (h, w)
        Blurred, at most 640 px.
    extent
        Its left, right, bottom and top edges in pixels of the micrograph.
    """

    image: Array
    extent: Extent


def shrink_micrograph(image: npt.ArrayLike, diameter_px: float) -> Shrunk:
    """Blur a micrograph to a small part of a particle, and average squares of its pixels.

    Parameters
    ----------
    image : array, shape (h, w)
        The micrograph, finite.
    diameter_px
        Of a particle.

    Returns
    -------
    Shrunk

    Examples
    --------
    >>> small = shrink_micrograph(np.ones((1300, 1000)), diameter_px=50)
    >>> small.image.shape, small.extent
    ((433, 333), (-0.5, 998.5, 1298.5, -0.5))
    """
    blurred = gaussian_filter(np.asarray(image, np.float32), BLUR * diameter_px)
    n = -(-max(blurred.shape) // PICTURE_PX)
    h, w = (length // n for length in blurred.shape)
    squares = blurred[: h * n, : w * n].reshape(h, n, w, n)
    return Shrunk(squares.mean(axis=(1, 3)), (-0.5, w * n - 0.5, h * n - 0.5, -0.5))


def usual_limits(image: npt.ArrayLike) -> tuple[float, float]:
    """Return grey levels that show particles, however much of the picture carbon or ice takes.

    Parameters
    ----------
    image : array
        Micrograph.

    Returns
    -------
    tuple of float
        Low and high; never equal.

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(size=9999)
    >>> [round(level) for level in usual_limits([*noise, -1e6])]
    [-3, 3]
    """
    low, middle, high = np.percentile(np.asarray(image), [15.87, 50, 84.13])
    spread = GREY_LEVELS * (high - low) / 2
    return (middle - spread, middle + spread) if spread > 0 else grey_limits(image)


def score_colours(low: float, threshold: float, high: float) -> tuple[Any, Normalize]:
    """Return a colour map that is grey below a threshold and coloured above, and its limits.

    Parameters
    ----------
    low, high
        Scores at its ends.
    threshold
        Between them.

    Returns
    -------
    cmap : matplotlib.colors.Colormap
    norm : matplotlib.colors.Normalize

    Examples
    --------
    >>> cmap, norm = score_colours(0.0, 0.5, 1.0)
    >>> len(set(cmap(norm(0.4))[:3])), len(set(cmap(norm(0.6))[:3]))
    (1, 3)
    """
    high = high if high > threshold else threshold + max(abs(threshold), 1.0)
    n_grey = round(N_SHADES * max(0.0, threshold - low) / (high - min(low, threshold)))
    n_grey = min(n_grey, N_SHADES - 1)
    greys = colormaps["gray"](np.linspace(0.05, 0.75, n_grey))
    bright = colormaps["plasma"](np.linspace(COLOURS_FROM, 1, N_SHADES - n_grey))
    cmap = LinearSegmentedColormap.from_list("scores", [*greys, *bright], N_SHADES)
    return cmap, Normalize(min(low, threshold), high)


def draw_picks(
    micrograph: Shrunk,
    x_px: npt.ArrayLike,
    y_px: npt.ArrayLike,
    score: npt.ArrayLike,
    *,
    diameter_px: float,
    threshold: float,
    scores: npt.ArrayLike | None = None,
    extent: Extent | None = None,
    missed_px: npt.ArrayLike = (),
    highest: float | None = None,
) -> Figure:
    """Draw a micrograph with a circle round each pick, and the map of scores beside it.

    Parameters
    ----------
    micrograph
        The picture.
    x_px, y_px, score : array, shape (n,)
        Centres in pixels of the micrograph, that of the first pixel being 0, and what they scored.
    diameter_px
        Of a particle, and so of the circles.
    threshold
        Least score of a pick.
    scores : array, shape (h, w)
        Map of scores; None where there is none.
    extent
        Left, right, bottom and top edges of the map in pixels of the micrograph.
    missed_px : array, shape (m, 2)
        x and y of known particles that no pick has found.
    highest
        Score of the brightest colour, which higher ones have too; None for the highest score.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> small = shrink_micrograph(np.eye(64), diameter_px=8)
    >>> figure = draw_picks(small, [9, 20], [9, 5], [1, 2], diameter_px=8, threshold=0.5)
    >>> [axes.get_title() for axes in figure.axes]
    ['2 picks', '']
    """
    score = np.asarray(score, np.float64)
    levels = np.empty(0) if scores is None else np.asarray(scores, np.float64)
    levels = levels[np.isfinite(levels)]
    low = float(np.percentile(levels, LOWEST_SCORES)) if levels.size else threshold
    high = float(max([threshold, *score])) if highest is None else highest
    cmap, norm = score_colours(low, threshold, high)
    n_panels = 1 if scores is None else 2
    left, _, bottom, _ = micrograph.extent
    height = 5.2 * (bottom + 0.5) / (micrograph.extent[1] - left)
    figure = Figure(figsize=(5.2 * n_panels + 0.9, height + 0.4), layout="constrained")
    panels = figure.subplots(1, n_panels, squeeze=False, sharex=True, sharey=True)[0]
    black, white = usual_limits(micrograph.image)
    panels[0].imshow(
        micrograph.image,
        cmap="gray",
        vmin=black,
        vmax=white,
        extent=micrograph.extent,
        interpolation="none",
    )
    centres = np.stack([np.asarray(x_px, np.float64), np.asarray(y_px, np.float64)], axis=-1)
    circles = _draw_circles(panels[0], centres, diameter_px, array=score, cmap=cmap, norm=norm)
    missed = np.asarray(missed_px, np.float64).reshape(-1, 2)
    _draw_circles(panels[0], missed, diameter_px, edgecolors=MISSED, linestyles="dashed")
    panels[0].set_title(_count_picks(len(score), len(missed)))
    if scores is not None:
        panels[1].imshow(
            np.asarray(scores), cmap=cmap, norm=norm, extent=extent, interpolation="none"
        )
        panels[1].set_title("scores")
    for axes in panels:
        axes.set_xlim(micrograph.extent[:2])
        axes.set_ylim(micrograph.extent[2:])
        axes.set_axis_off()
    beyond = "max" if (score > norm.vmax).any() else "neither"
    bar = figure.colorbar(circles, ax=panels.tolist(), shrink=0.9, pad=0.02, extend=beyond)
    # On a light line, since colours are dark above the threshold.
    bar.ax.axhline(threshold, color="white", lw=5)
    bar.ax.axhline(threshold, color=INK, lw=2)
    bar.set_label("score; the line is the threshold")
    return figure


def _draw_circles(axes: Axes, centres: Array, diameter_px: float, **style: Any) -> Any:
    size = np.full(len(centres), diameter_px)
    circles = EllipseCollection(
        size,
        size,
        np.zeros(len(centres)),
        units="xy",
        offsets=centres,
        offset_transform=axes.transData,
        facecolors="none",
        linewidths=1.2,
        **style,
    )
    axes.add_collection(circles)
    return circles


def _count_picks(n_picks: int, n_missed: int) -> str:
    text = f"{n_picks:,} pick" + ("" if n_picks == 1 else "s")
    return text + (f", {n_missed:,} known particles missed (dashed)" if n_missed else "")


def draw_scores(scores: Mapping[str, npt.ArrayLike], threshold: float) -> Figure:
    """Draw the histogram of the scores of picks, with the threshold.

    Parameters
    ----------
    scores : mapping of str to array
        Label to scores, drawn upon each other; those of one label are plain picks, and where known
        particles tell right from wrong, two.
    threshold
        Least score of a pick.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> draw_scores({"picks": [1.0, 2.0, 2.0]}, 0.5).axes[0].get_xlabel()
    'score'
    """
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    parts = [np.asarray(values, np.float64) for values in scores.values()]
    everything = np.concatenate([*parts, [threshold]])
    # A lump of ice far above all others would press the rest together.
    highest = float(np.percentile(everything, MOST_SCORES))
    parts = [part.clip(max=max(highest, threshold)) for part in parts]
    bins = np.linspace(threshold, highest if highest > threshold else threshold + 1, N_BINS + 1)
    colours = COLOURS[1 : len(parts) + 1]
    axes.hist(parts, bins=bins.tolist(), stacked=True, color=colours, label=list(scores))
    axes.axvline(threshold, color=OTHERS, lw=1.2, ls="--", label="threshold")
    axes.set_xlabel("score" + (", the last bar: and more" if highest < everything.max() else ""))
    axes.set_ylabel("picks")
    axes.set_xlim(threshold - 0.03 * (bins[-1] - threshold), bins[-1])
    axes.grid(alpha=0.25, lw=0.6)
    axes.legend(frameon=False, fontsize="small")
    return figure


def draw_precision_recall(
    curves: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]],
) -> Figure:
    """Draw precision over recall as the threshold falls to that of the picks, a dot at its end.

    Parameters
    ----------
    curves : mapping of str to pair of array, shape (n,)
        Label to recall and precision, best score first.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> figure = draw_precision_recall({"radius 0.2": ([0.1, 0.5], [1.0, 0.8])})
    >>> figure.axes[0].lines[0].get_xdata().tolist()
    [0.1, 0.5]
    """
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    styles = line_styles(curves)
    for label, (recall, precision) in curves.items():
        recall, precision = np.asarray(recall), np.asarray(precision)
        axes.plot(recall, precision, label=label, **styles[label])
        axes.plot(recall[-1:], precision[-1:], marker="o", ms=6, color=styles[label]["color"])
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall: share of the known particles that were picked")
    axes.set_ylabel("precision: share of the picks that are known")
    axes.grid(alpha=0.25, lw=0.6)
    axes.legend(frameon=False, fontsize="small", loc="lower left")
    return figure


def draw_counts(counts: npt.ArrayLike) -> Figure:
    """Draw how many picks each micrograph has, in the order of the stack.

    Parameters
    ----------
    counts : array, shape (n,)
        Picks of each.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> draw_counts([3, 0, 5]).axes[0].get_ylabel()
    'picks'
    """
    counts = np.asarray(counts)
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    number = np.arange(1, len(counts) + 1)
    axes.plot(number, counts, ls="", marker="o", ms=4, mew=0, color=SHOWN, rasterized=True)
    axes.axhline(float(np.median(counts)), color=OTHERS, lw=1.2, ls="--", label="median")
    axes.set_ylim(0, 1.05 * max(1, counts.max()))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("micrograph")
    axes.set_ylabel("picks")
    axes.grid(alpha=0.25, lw=0.6)
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    return figure
