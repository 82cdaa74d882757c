"""Picks as a page: micrographs with their picks, the scores, and the particles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from emdask.extractors import extract
from emdask.pick_metrics import PickMatches, match_picks
from emdask.pick_plots import (
    Extent,
    draw_counts,
    draw_picks,
    draw_precision_recall,
    draw_scores,
    shrink_micrograph,
)
from emdask.pickers import Search, score_image
from emdask.picks import NAMES, bare_name
from emdask.plots import about_median, montage, png_bytes, svg_text, typical_limits
from emdask.report import (
    Picture,
    Section,
    Table,
    environment_text,
    provenance_rows,
    write_report,
)

Array = npt.NDArray[Any]
Header = tuple[str, ...]
Rows = list[tuple[str, ...]]

MICROGRAPHS_SHOWN = 3
ROWS_SHOWN = 20
THUMBNAILS = 12
THUMBNAIL_PX = 96
LEAST_AVERAGED = 9
# Of all scores, percent.
BRIGHTEST = 98.0
# Edge of the box of a thumbnail, and distances within which a pick is a known particle, in
# diameters.
BOX = 1.6
RADII = (0.2, 0.5)
# Of the table of known particles, on the terminal and the page.
CAPTION = (
    "AP, the average precision, and best F1, that of the best threshold in hindsight, are of the "
    "picks above the threshold alone: with a lower one they may be higher."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Picked:
    """Picks, and how they were made.

    Parameters
    ----------
    micrographs : xarray.DataArray, dims (image, y, x)
        What was picked from, with the coordinate ``micrograph``.
    picks
        What `emdask.pick` found, computed; its names are those of the micrographs.
    search
        How they were looked for.
    parameters
        Those of the method that were given.
    device
        "cpu" or "cuda": where the micrographs that are shown are scored.
    seconds
        Wall time.
    truth
        Table of known particles; None where nothing is known. Micrographs that its attribute
        ``micrographs`` leaves out are not judged.
    """

    micrographs: xr.DataArray
    picks: pd.DataFrame
    search: Search
    parameters: Mapping[str, Any]
    device: str
    seconds: float
    truth: pd.DataFrame | None = None

    @cached_property
    def names(self) -> list[str]:
        """Names of all micrographs, in the order of the stack."""
        return [str(name) for name in self.micrographs.micrograph.values]

    @cached_property
    def rows(self) -> Mapping[str, Array]:
        """Rows of the picks of each micrograph that has any."""
        found: Any = self.picks.groupby("micrograph", sort=False).indices
        return dict(found)

    @cached_property
    def counts(self) -> Array:
        """Picks of each micrograph, in the order of the stack."""
        return np.array([len(self.rows.get(name, ())) for name in self.names], np.int64)

    @cached_property
    def matches(self) -> Mapping[float, PickMatches]:
        """Picks matched with known particles, by the radius in diameters."""
        if self.truth is None:
            return {}
        return {
            radius: match_picks(
                self.picks,
                self.truth,
                radius_px=radius * self.search.diameter_px,
                micrographs=self.truth.attrs[NAMES],
            )
            for radius in RADII
        }


def summary_rows(picked: Picked) -> Rows:
    """Return figures of the picks, a row each: for the terminal and the page.

    Parameters
    ----------
    picked
        The picks.

    Returns
    -------
    list of tuple of str
    """
    counts = picked.counts
    rows: Rows = [
        ("micrographs", f"{len(counts):,}"),
        ("particles", f"{len(picked.picks):,}"),
        ("a micrograph, median", f"{np.median(counts):g}"),
        ("a micrograph, fewest to most", f"{counts.min():,} to {counts.max():,}"),
        ("threshold of the score", f"{picked.search.threshold:g}"),
    ]
    if len(picked.picks):
        low, middle, high = np.percentile(picked.picks.score, [0, 50, 100])
        rows.append(("scores, median and range", f"{middle:.3g}, {low:.3g} to {high:.3g}"))
    return rows


def match_table(matches: Mapping[float, PickMatches]) -> tuple[Header, Rows]:
    """Return header and rows of a table of how picks and known particles agree.

    Parameters
    ----------
    matches
        Radius in diameters to what `emdask.metrics.match_picks` found.

    Returns
    -------
    header : tuple of str
    rows : list of tuple of str

    Examples
    --------
    >>> match_table({})[0][:3]
    ('within', 'precision', 'recall')
    """
    header = ("within", "precision", "recall", "F1", "AP", "best F1", "at score")
    rows: Rows = []
    for radius, found in matches.items():
        best = found.best
        figures = (found.precision, found.recall, found.f1, found.average_precision, best.f1)
        row = [_figure(value) for value in figures]
        score = f"{best.threshold:.3g}" if best.n_picks else "-"
        rows.append((f"{radius:g} d", *row, score))
    return header, rows


def _figure(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def choose_micrographs(counts: npt.ArrayLike, n_shown: int = MICROGRAPHS_SHOWN) -> list[int]:
    """Choose micrographs to be shown: the one with most picks, the fewest, and those between.

    Parameters
    ----------
    counts : array, shape (n,)
        Picks of each.
    n_shown
        Most to be chosen.

    Returns
    -------
    list of int
        Positions, most picks first.

    Examples
    --------
    >>> choose_micrographs([5, 1, 9, 7])
    [2, 0, 1]
    """
    order = np.argsort(-np.asarray(counts), kind="stable")
    places = np.linspace(0, len(order) - 1, min(n_shown, len(order))).round().astype(int)
    return [int(order[place]) for place in places]


def write_picks_page(path: str | Path, picked: Picked) -> Path:
    """Write the page.

    Parameters
    ----------
    path
        Where to; an existing file is replaced.
    picked
        The picks; the micrographs that are shown are read and scored once more.

    Returns
    -------
    pathlib.Path
    """
    shown = choose_micrographs(picked.counts)
    n, h, w = picked.micrographs.shape
    size_A = picked.micrographs.attrs.get("pixel_size_A")
    pixels = f"{w} x {h} pixels" + (f" of {size_A:g} Å" if size_A else "")
    return write_report(
        path,
        title=f"Particles picked by {picked.search.name}",
        text=f"{n:,} micrograph{'' if n == 1 else 's'} of {pixels}; a particle has a diameter of "
        f"{picked.search.diameter_px:.4g} px.",
        headline=_headline(picked),
        sections=[
            *_known_section(picked),
            *(_micrograph_section(picked, index) for index in shown),
            _scores_section(picked),
            *_particles_section(picked, shown),
            _counts_section(picked),
            _making_section(picked),
        ],
    )


def _headline(picked: Picked) -> list[tuple[str, str]]:
    n = len(picked.names)
    n_empty = int((picked.counts == 0).sum())
    headline = [
        (f"{len(picked.picks):,}", "particles"),
        (f"{np.median(picked.counts):g}", "a micrograph, median"),
    ]
    if n_empty:
        headline.append((f"{n_empty:,}", f"of {n:,} micrographs without a particle"))
    if picked.matches:
        headline.append((_figure(picked.matches[RADII[0]].f1), f"F1 within {RADII[0]} diameters"))
    speed = f"wall time, {n / max(picked.seconds, 1e-9):.3g} micrographs a second"
    return [*headline, (f"{picked.seconds:.3g} s", speed)]


def _known_section(picked: Picked) -> list[Section]:
    if not picked.matches:
        return []
    header, rows = match_table(picked.matches)
    curves = {
        f"within {radius:g} diameters": (found.curve.recall, found.curve.precision)
        for radius, found in picked.matches.items()
    }
    text = "A pick is right if it lies as near, in diameters d, to a known particle that no better "
    text += f"pick has taken. {CAPTION} Where not all particles are known, precision is a lower "
    text += "bound. The curves end at the threshold; pick with a lower one to see how they go on."
    table = Table(header=header, rows=rows, is_figures=True)
    figure = draw_precision_recall(curves)
    title = "Picks and known particles"
    return [Section(title=title, text=text, table=table, drawing=svg_text(figure))]


def _micrograph_section(picked: Picked, index: int) -> Section:
    name = picked.names[index]
    image = read_micrograph(picked.micrographs, index)
    own = picked.picks.iloc[picked.rows.get(name, [])]
    scores, extent = _map_scores(picked, image)
    figure = draw_picks(
        shrink_micrograph(image.values[0], picked.search.diameter_px),
        own.x_px,
        own.y_px,
        own.score,
        diameter_px=picked.search.diameter_px,
        threshold=picked.search.threshold,
        scores=scores,
        extent=extent,
        missed_px=_missed(picked, name),
        highest=_bright(picked),
    )
    text = f"{name}: {_rank_text(picked.counts, index)}. The micrograph is blurred for the eye; "
    text += "scores are as the method gives them: lumps too large for a particle are still there."
    return Section(title=bare_name(name), text=text, wide_drawing=svg_text(figure))


def _rank_text(counts: Array, index: int) -> str:
    """Say how many picks a micrograph has beside others.

    Examples
    --------
    >>> _rank_text(np.array([4, 9, 1]), 1)
    '9 picks, the most'
    """
    count = int(counts[index])
    text = f"{count:,} pick{'' if count == 1 else 's'}"
    if len(counts) == 1 or counts.min() == counts.max():
        return text
    if count == counts.max():
        return f"{text}, the most"
    return f"{text}, the fewest" if count == counts.min() else f"{text}, in between"


def _bright(picked: Picked) -> float:
    """Score of the brightest colour in all pictures; lumps of ice may be far above it."""
    scores = picked.picks.score.to_numpy()
    return float(np.percentile(scores, BRIGHTEST)) if len(scores) else picked.search.threshold


def read_micrograph(stack: xr.DataArray, index: int) -> xr.DataArray:
    """Read one micrograph; pixels that are not finite become its median.

    Parameters
    ----------
    stack : xarray.DataArray, dims (image, y, x)
        Micrographs.
    index
        Position.

    Returns
    -------
    xarray.DataArray, dims (image, y, x)
        In memory, float32.

    Examples
    --------
    >>> stack = xr.DataArray([[[1, np.inf], [2, 3]]], dims=("image", "y", "x"))
    >>> read_micrograph(stack, 0).values.tolist()
    [[[1.0, 2.0], [2.0, 3.0]]]
    """
    image = stack[index : index + 1].astype(np.float32).compute()
    there = np.isfinite(image.values)
    if not there.all():
        image = image.where(there, float(np.median(image.values[there])) if there.any() else 0.0)
    return image


def _map_scores(picked: Picked, image: xr.DataArray) -> tuple[Array, Extent]:
    """Score a micrograph, and tell the edges of the map in its pixels."""
    found, scale = score_image(image.values[0], picked.search, picked.device)
    h, w = found.scores.shape
    first, half = found.offset_px, found.step_px / 2
    left, top = scale.to_original(first - half, first - half)
    right, bottom = scale.to_original(
        first + w * found.step_px - half, first + h * found.step_px - half
    )
    return np.asarray(found.scores), (left, right, bottom, top)


def _missed(picked: Picked, name: str) -> Array:
    """x and y of known particles of a micrograph that no pick is near."""
    if not picked.matches:
        return np.empty((0, 2))
    truth = picked.matches[RADII[-1]].truth
    missed = truth[(truth.micrograph == name) & (truth.pick < 0)]
    return np.asarray(missed[["x_px", "y_px"]].to_numpy())


def _scores_section(picked: Picked) -> Section:
    score = picked.picks.score.to_numpy()
    parts = {"picks": score}
    if picked.matches:
        judged = picked.matches[RADII[0]].picks
        right = judged.truth.to_numpy() >= 0
        parts = {
            "known particles": judged.score.to_numpy()[right],
            "others": judged.score.to_numpy()[~right],
        }
    return Section(
        title="Scores",
        text="Two heaps with a valley between are particles and noise: a threshold in the valley "
        "tells them apart.",
        table=Table(header=("", ""), rows=summary_rows(picked)),
        drawing=svg_text(draw_scores(parts, picked.search.threshold)),
    )


def _particles_section(picked: Picked, shown: Sequence[int]) -> list[Section]:
    names = [picked.names[index] for index in shown]
    inside = _whole_boxes(picked, picked.picks[picked.picks.micrograph.isin(names)])
    if not len(inside):
        return []
    inside = inside.sort_values("score", ascending=False, kind="stable")
    images = extract_boxes(picked, inside, shown)
    limits = typical_limits(images)
    groups = _caption_groups(inside.score.to_numpy())
    pictures = [
        Picture(png=png_bytes(montage(images[rows]), limits), name=name, caption=caption)
        for name, (rows, caption) in groups.items()
    ]
    thirds = np.array_split(images, 3) if len(images) >= LEAST_AVERAGED else []
    for name, third in zip(("best", "middle", "worst"), thirds, strict=False):
        png = png_bytes(_enlarge(third.mean(axis=0)))
        caption = f"{len(third):,} particles, not aligned"
        pictures.append(Picture(png=png, name=f"Mean of the {name} third", caption=caption))
    text = f"Of the {len(images):,} picks in the micrographs above whose boxes lie within them. "
    text += (
        "Ice and dirt show among the best, where they score high. Means tell how well picks are "
    )
    text += (
        "centred, but not that they are particles: what is picked from noise has a light mean, too."
    )
    return [Section(title="The particles", text=text, pictures=pictures, n_columns=3)]


def _box_px(picked: Picked) -> int:
    """Side of a thumbnail's box, which `extract` wants to be an even multiple of the binning."""
    step = 2 * _bin(picked)
    return step * max(2, math.ceil(BOX * picked.search.diameter_px / step))


def _bin(picked: Picked) -> int:
    return max(1, math.ceil(BOX * picked.search.diameter_px / THUMBNAIL_PX))


def _whole_boxes(picked: Picked, picks: pd.DataFrame) -> pd.DataFrame:
    """Leave out picks whose box would stick out."""
    half = _box_px(picked) / 2 + 1
    _, h, w = picked.micrographs.shape
    x, y = picks.x_px, picks.y_px
    return picks[(x >= half) & (x <= w - 1 - half) & (y >= half) & (y <= h - 1 - half)]


def extract_boxes(picked: Picked, picks: pd.DataFrame, shown: Sequence[int]) -> Array:
    """Extract particles for thumbnails, in the order of the picks.

    Parameters
    ----------
    picked
        The picks.
    picks
        Those that are wanted.
    shown
        Positions of the micrographs that have them.

    Returns
    -------
    float32 array, shape (n, box, box)
        Light particles, each about its median.
    """
    box_px = _box_px(picked)
    # In the order of the stack, in which they come back.
    order = picks.micrograph.map({name: i for i, name in enumerate(picked.names)}).to_numpy()
    order = np.argsort(order, kind="stable")
    stack = picked.micrographs.isel(image=sorted(shown))
    found = extract(
        stack,
        picks.iloc[order],
        box_px,
        bin=_bin(picked),
        invert=picked.search.contrast == "dark",
        bad_pixels="replace",
    ).values
    images = np.empty_like(found)
    images[order] = found
    return about_median(images)


def group_scores(n: int, n_shown: int = THUMBNAILS) -> dict[str, slice]:
    """Choose thumbnails of particles sorted by score, best first.

    Parameters
    ----------
    n
        Particles.
    n_shown
        Of each group.

    Returns
    -------
    dict of str to slice

    Examples
    --------
    >>> group_scores(100, 4)
    {'Best': slice(0, 4, None), 'Median': slice(48, 52, None), 'Worst': slice(96, 100, None)}
    """
    if n <= n_shown:
        return {"All": slice(0, n)}
    start = (n - n_shown) // 2
    return {
        "Best": slice(0, n_shown),
        "Median": slice(start, start + n_shown),
        "Worst": slice(n - n_shown, n),
    }


def _caption_groups(scores: Array) -> dict[str, tuple[slice, str]]:
    """Groups of thumbnails, and what their particles scored."""
    return {
        name: (rows, f"scores {scores[rows][-1]:.3g} to {scores[rows][0]:.3g}")
        for name, rows in group_scores(len(scores)).items()
    }


def _enlarge(image: Array) -> Array:
    times = max(1, 2 * THUMBNAIL_PX // max(image.shape))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def _counts_section(picked: Picked) -> Section:
    order = np.argsort(picked.counts, kind="stable")
    rows_of = picked.rows
    note = ""
    if len(order) > ROWS_SHOWN:
        order = np.concatenate([order[: ROWS_SHOWN // 2], order[-ROWS_SHOWN // 2 :]])
        note = f"The {ROWS_SHOWN // 2} with the fewest and the {ROWS_SHOWN // 2} with the most."
    known = picked.matches[RADII[0]].per_micrograph if picked.matches else None
    known = None if known is None else known.set_index("micrograph")
    header: Header = ("micrograph", "picks", "median score")
    header += () if known is None else ("precision", "recall", "F1")
    rows: Rows = []
    for index in order:
        name = picked.names[index]
        scores = picked.picks.score.to_numpy()[rows_of.get(name, [])]
        median = f"{np.median(scores):.3g}" if len(scores) else "-"
        judged = () if known is None else _judged(known, name)
        rows.append((bare_name(name), f"{len(scores):,}", median, *judged))
    table = Table(header=header, rows=rows, note=note, is_figures=True)
    drawing = svg_text(draw_counts(picked.counts)) if len(order) > 1 else ""
    return Section(title="Picks of each micrograph", table=table, drawing=drawing)


def _judged(known: pd.DataFrame, name: str) -> tuple[str, str, str]:
    if name not in known.index:
        return "-", "-", "-"
    figures: Any = known.loc[name]
    return _figure(figures.precision), _figure(figures.recall), _figure(figures.f1)


def _making_section(picked: Picked) -> Section:
    known = {
        "diameter_px": f"{picked.search.diameter_px:.6g}",
        "threshold": f"{picked.search.threshold:g}",
        "spacing": f"{picked.search.spacing:g}",
        "border_px": f"{picked.search.border_px:g}",
        "contrast": picked.search.contrast,
        **picked.parameters,
    }
    pairs = {"method": picked.search.name, **known}
    own = ("pick", ", ".join(f"{name} = {value}" for name, value in pairs.items()))
    rows = [*provenance_rows(picked.micrographs.attrs), own]
    table = Table(header=("step", "parameters"), rows=rows)
    return Section(title="How it was made", table=table, text=environment_text())
