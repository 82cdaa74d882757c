"""Pictures of a classification: proportions, how sure it is, where images lie, known classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from emdask.plots import COLOURS, INK, MANY_COLOURS

Array = npt.NDArray[Any]

# Of what is in no class: a grey that is seen on white and on black.
NOBODY = "#8f99a3"
MARKERS = ("o", "s", "^", "D", "v", "P")
BAR = COLOURS[1]
KNOWN_MARK = COLOURS[0]
MOST_BINS, LEAST_BINS = 40, 12
# Percent of the values in a histogram, and room beside them: a few that are far from all others
# would press the rest together.
MOST, ROOM = 99.0, 0.2
# Dots are a bitmap, at this many a 72nd of an inch squared.
SCATTER_DPI = 200
# Up to so many classes have a legend and numbers in cells.
NAMED_AT_MOST = 24
DARK_CELL = 0.55
LEAST_PERCENT = 0.005


def class_style(number: int) -> dict[str, Any]:
    """Return colour and marker of a class: 36 of them differ.

    Parameters
    ----------
    number
        From 1; 0 for none.

    Returns
    -------
    dict of str to str
        ``color`` and ``marker``.

    Examples
    --------
    >>> class_style(1)["color"] == class_style(7)["color"]
    True
    >>> class_style(1)["marker"], class_style(7)["marker"], class_style(0)["color"]
    ('o', 's', '#8f99a3')
    """
    if number == 0:
        return {"color": NOBODY, "marker": "o"}
    n = len(MANY_COLOURS)
    return {
        "color": MANY_COLOURS[(number - 1) % n],
        "marker": MARKERS[(number - 1) // n % len(MARKERS)],
    }


def draw_proportions(
    names: Sequence[str],
    proportion: npt.ArrayLike,
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    known: npt.ArrayLike | None = None,
) -> Figure:
    """Draw the proportion of each class with its interval.

    Parameters
    ----------
    names
        Of the classes.
    proportion, low, high : array, shape (k,)
        Shares of 1; where the bounds are NaN there is no interval.
    known : array, shape (k,)
        True proportions, NaN where there is none; None where nothing is known.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> figure = draw_proportions(["1", "2"], [0.7, 0.3], [0.6, 0.2], [0.8, 0.4])
    >>> [float(bar.get_height()) for bar in figure.axes[0].patches]
    [0.7, 0.3]
    """
    share, low, high = (np.asarray(values, np.float64) for values in (proportion, low, high))
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    place = np.arange(len(share))
    axes.bar(place, share, width=0.62, color=BAR, alpha=0.35, lw=0)
    axes.plot(place, share, ls="", marker="_", ms=14, mew=2, color=BAR, label="found")
    spread = np.nan_to_num(np.stack([share - low, high - share]).clip(min=0))
    bars: dict[str, Any] = {"fmt": "none", "ecolor": INK, "elinewidth": 1.4, "capsize": 4}
    axes.errorbar(place, share, yerr=spread, label="95 % interval", **bars)
    if known is not None:
        marks: dict[str, Any] = {
            "ls": "",
            "marker": "D",
            "ms": 6,
            "mfc": "none",
            "mec": KNOWN_MARK,
            "mew": 1.6,
        }
        axes.plot(place, np.asarray(known, np.float64), label="known", **marks)
    axes.set_xticks(place, names)
    axes.set_xlabel("class")
    axes.set_ylabel("share of the images in classes")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    # With room for the legend above.
    axes.set_ylim(0, 1.22 * float(np.nanmax([*share, *high, 0.05])))
    axes.grid(axis="y", alpha=0.25, lw=0.6)
    axes.legend(frameon=False, fontsize="small", ncols=3, loc="upper right")
    return figure


def draw_histograms(
    panels: Mapping[str, Mapping[str, npt.ArrayLike]],
    colours: Mapping[str, str],
    *,
    note: str = "images",
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Draw stacked histograms beside each other.

    Parameters
    ----------
    panels : mapping of str to mapping of str to array
        Name of an axis to label to values; what is not finite is left out.
    colours
        Label to colour.
    note
        What is counted.
    ranges : mapping of str to tuple of float
        Name of an axis to where it begins and ends; by default that follows from the values.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> values = {"kept": [1.0, 2.0], "dropped": [0.0]}
    >>> figure = draw_histograms({"score": values}, {"kept": "blue", "dropped": "grey"})
    >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
    ('score', 'images')
    """
    n = len(panels)
    figure = Figure(figsize=(5.2 * n, 3.4), layout="constrained")
    for axes, (name, parts) in zip(
        figure.subplots(1, n, squeeze=False)[0], panels.items(), strict=True
    ):
        _draw_histogram(axes, name, parts, colours, (ranges or {}).get(name))
        axes.set_ylabel(note)
    entries = dict(zip(*reversed(figure.axes[0].get_legend_handles_labels()), strict=True))
    if 1 < len(entries) <= NAMED_AT_MOST:
        where = "outside right center" if n > 1 else "best"
        target: Any = figure if n > 1 else figure.axes[0]
        target.legend(entries.values(), entries, loc=where, frameon=False, fontsize="small")
    return figure


def _draw_histogram(
    axes: Axes,
    name: str,
    parts: Mapping[str, npt.ArrayLike],
    colours: Mapping[str, str],
    limits: tuple[float, float] | None,
) -> None:
    values = {label: np.asarray(part, np.float64) for label, part in parts.items()}
    values = {label: part[np.isfinite(part)] for label, part in values.items()}
    everything = np.concatenate(list(values.values()))
    low, high = limits or usual_range(everything)
    shown = [part.clip(low, high) for part in values.values()]
    n_bins = int(np.clip(np.sqrt(2 * everything.size), LEAST_BINS, MOST_BINS))
    bins = np.linspace(low, high, n_bins + 1).tolist()
    colour = [colours[label] for label in values]
    axes.hist(shown, bins=bins, stacked=True, color=colour, label=list(values))
    is_cut = everything.size and (everything.min() < low or everything.max() > high)
    axes.set_xlabel(name + (" (the outermost bars: and beyond)" if is_cut else ""))
    axes.margins(x=0.02)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(alpha=0.25, lw=0.6)


def usual_range(values: npt.ArrayLike) -> tuple[float, float]:
    """Return what values lie between, but for a few that are far from all others.

    Parameters
    ----------
    values : array, shape (n,)
        Finite numbers.

    Returns
    -------
    tuple of float
        Low and high; never equal.

    Examples
    --------
    >>> usual_range([0.0, 1.0, 2.0])
    (0.0, 2.0)
    >>> usual_range([*range(101), 1e6])[1] < 150
    True
    """
    values = np.asarray(values, np.float64)
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, [100 - MOST, MOST])
    room = ROOM * (high - low)
    low, high = max(values.min(), low - room), min(values.max(), high + room)
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1)


def draw_embedding(
    points: npt.ArrayLike, panels: Mapping[str, tuple[npt.ArrayLike, Mapping[int, str]]], axis: str
) -> Figure:
    """Draw images as dots in a plane, coloured by class; once for each way to class them.

    Parameters
    ----------
    points : array, shape (n, 2)
        Where each image lies.
    panels : mapping of str to (array of shape (n,), mapping of int to str)
        Title to the number of each image's class, which gives the colour, and the names of these
        numbers; images of other numbers are not drawn.
    axis
        Name of the axes, to which 1 and 2 are added.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> panels = {"found": ([1, 2, 0], {0: "none", 1: "open", 2: "shut"})}
    >>> figure = draw_embedding(np.eye(3)[:, :2], panels, "component")
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['none', 'open', 'shut']
    """
    points = np.asarray(points, np.float64)
    n = len(panels)
    figure = Figure(figsize=(5.5 * n, 4.6), layout="constrained", dpi=SCATTER_DPI)
    subplots = figure.subplots(1, n, squeeze=False, sharex=True, sharey=True)[0]
    size = float(np.clip(12000 / max(len(points), 1), 8, 26))
    for axes, (title, (number, names)) in zip(subplots, panels.items(), strict=True):
        _draw_dots(axes, points, np.asarray(number), names, size)
        axes.set_title(title)
        axes.set_xlabel(f"{axis} 1")
        axes.grid(alpha=0.25, lw=0.6)
    subplots[0].set_ylabel(f"{axis} 2")
    return figure


def _draw_dots(
    axes: Axes, points: Array, number: Array, names: Mapping[int, str], size: float
) -> None:
    order = np.random.default_rng(0).permutation(len(points))
    points, number = points[order], number[order]
    style = {k: class_style(k) for k in names}
    # Those of none first, so that they do not cover the others; these in no order at all.
    for is_none in (True, False):
        for marker in dict.fromkeys(own["marker"] for own in style.values()):
            own = [k for k in names if style[k]["marker"] == marker and (k == 0) == is_none]
            there = np.isin(number, own)
            look: dict[str, Any] = {"marker": marker, "lw": 0, "rasterized": True, "s": size}
            look["c"] = [style[k]["color"] for k in number[there].tolist()]
            axes.scatter(points[there, 0], points[there, 1], alpha=0.7 - 0.3 * is_none, **look)
    if len(names) <= NAMED_AT_MOST:
        shown = [k for k in names if (number == k).any()]
        handles = [Line2D([], [], ls="", ms=5, mew=0, label=names[k], **style[k]) for k in shown]
        axes.legend(handles=handles, frameon=False, fontsize="small", loc="best")


def draw_confusion(counts: npt.ArrayLike, rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Draw how the images of each known class were divided among those found.

    Parameters
    ----------
    counts : int array, shape (r, c)
        Images of a known class, a row each, in a class that was found.
    rows, columns
        Names.

    Returns
    -------
    matplotlib.figure.Figure
        Each cell has its share of the row and, where there are few classes, the count.

    Examples
    --------
    >>> figure = draw_confusion([[3, 1], [0, 4]], ["1", "2"], ["1", "2"])
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['75 %\\n3', '25 %\\n1', '0', '100 %\\n4']
    """
    counts = np.asarray(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    edge = float(np.clip(4.6 / max(counts.shape), 0.22, 0.8))
    size = (1.2 + edge * counts.shape[1], 0.9 + edge * counts.shape[0])
    figure = Figure(figsize=(max(size[0], 5.2), max(size[1], 2.2)), layout="constrained")
    axes = figure.add_subplot()
    for (row, column), share in np.ndenumerate(shares):
        face = to_rgba(BAR, 0.06 + 0.94 * float(share))
        axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fc=face, ec="none"))
        if len(columns) <= NAMED_AT_MOST:
            count = int(counts[row, column])
            text = f"{_round_percent(float(share))}\n{count:,}" if count else "0"
            ink = "white" if share > DARK_CELL else INK
            points = 9 if edge > 0.6 else 6
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=points)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.set_xlabel("class found")
    axes.set_ylabel("known class")
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _round_percent(share: float) -> str:
    """Write a share that is above 0 as a whole number of percent, never as 0 or wrongly as 100.

    Examples
    --------
    >>> [_round_percent(share) for share in (0.001, 0.42, 0.999, 1.0)]
    ['<1 %', '42 %', '>99 %', '100 %']
    """
    if share < LEAST_PERCENT:
        return "<1 %"
    return ">99 %" if 1 - LEAST_PERCENT < share < 1 else f"{100 * share:.0f} %"
