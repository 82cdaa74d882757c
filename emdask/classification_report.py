"""A classification as figures on a terminal, and as a page of pictures, shares and agreement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from scipy.ndimage import gaussian_filter

from emdask.class_agreement import NONE_NAME, UNKNOWN, Agreement, KnownClasses, compare_classes
from emdask.classification_plots import (
    BAR,
    NOBODY,
    class_style,
    draw_confusion,
    draw_embedding,
    draw_histograms,
    draw_proportions,
)
from emdask.embeddings import Sample
from emdask.io.classes_output import NONE_ROW, tabulate_proportions
from emdask.plots import (
    COLOURS,
    MONTAGE_COLUMNS,
    about_median,
    montage,
    png_bytes,
    svg_text,
    typical_limits,
)
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

THUMBNAILS = 12
HIGHEST, LOWEST = ", highest", ", lowest"
# Of more groups than this, as of many classes, those that score highest are shown alone.
MOST_GROUPS, CLASSES_SHOWN = 3, 24
# Images that set the grey scale, and colours of those kept, in no class and screened out.
LIMITS_OF = 100
SHADES = (BAR, COLOURS[4], NOBODY)
LEAST_PICTURE_PX = 128
# Width of the blur of thumbnails, in boxes, and at least in px: noise goes, the particle stays.
BLUR, LEAST_BLUR_PX = 0.02, 0.7
SURE = 0.9
POSTERIOR = "posterior of the class assigned"


@dataclass(frozen=True, kw_only=True, eq=False)
class Classified:
    """Images that were classed, and how.

    Parameters
    ----------
    stack : xarray.DataArray, dims (image, y, x)
        The images; only what is known of them is used.
    table
        What `emdask.classify` returned, computed.
    method
        Its name.
    has_references
        Whether class k is that of reference k; otherwise numbers of classes say nothing.
    seconds
        Wall time.
    known
        Classes that the images are known to have; None where nothing is known.
    """

    stack: xr.DataArray
    table: xr.Dataset
    method: str
    has_references: bool
    seconds: float
    known: KnownClasses | None = None

    @cached_property
    def class_id(self) -> Array:
        """Class of each image, 0 for none."""
        return np.asarray(self.table.class_id.values)

    @cached_property
    def names(self) -> list[str]:
        """Names of the classes found."""
        return [str(number) for number in self.table["class"].values]

    @cached_property
    def n_kept(self) -> int:
        """Images in any class."""
        return int((self.class_id > 0).sum())

    @cached_property
    def proportions(self) -> pd.DataFrame:
        """As of `emdask.io.classes_output.tabulate_proportions`."""
        return tabulate_proportions(self.table)

    @cached_property
    def agreement(self) -> Agreement | None:
        """How the classes agree with the known ones; None where there are none."""
        if self.known is None or not self.known.names:
            return None
        numbers_mean = self.has_references
        k = len(self.names)
        return compare_classes(self.known, self.class_id, k, numbers_mean=numbers_mean)


# --- Figures for terminal and page ----------------------------------------------------------------


def proportion_table(proportions: pd.DataFrame) -> tuple[Header, Rows]:
    """Return header and rows of a table of proportions, in percent.

    Parameters
    ----------
    proportions
        As of `emdask.io.classes_output.tabulate_proportions`; a row for none is left out where no
        image is in it.

    Returns
    -------
    header : tuple of str
    rows : list of tuple of str

    Examples
    --------
    >>> frame = pd.DataFrame({"class": ["1", "none"], "n_images": [9, 1], "proportion": [1, 0.1],
    ...                       "error": [0.02, np.nan], "low": [0.9, np.nan], "high": [1, np.nan]})
    >>> for row in proportion_table(frame)[1]:
    ...     print(row)
    ('1', '9', '100.0 %', '± 2.0 %', '90.0 to 100.0 %')
    ('none', '1', '10.0 % of all', '', '')
    """
    header = ("class", "images", "proportion", "error", "95 % interval")
    rows: Rows = []
    for row in proportions.itertuples(index=False):
        name, count, share, error, low, high = row
        if name == NONE_ROW:
            if count:
                rows.append((name, f"{count:,}", f"{_percent(share)} of all", "", ""))
            continue
        interval = f"{100 * low:.1f} to {_percent(high)}" if np.isfinite(low + high) else "-"
        wrong = f"± {_percent(error)}" if np.isfinite(error) else "-"
        rows.append((str(name), f"{count:,}", _percent(share), wrong, interval))
    return header, rows


def agreement_rows(agreement: Agreement) -> Rows:
    """Return figures of how found and known classes agree, a row each.

    Parameters
    ----------
    agreement
        Counts of both.

    Returns
    -------
    list of tuple of str

    Examples
    --------
    >>> from emdask.class_agreement import build_known
    >>> known = build_known([1, 1, 2, 0], "a.csv")
    >>> for row in agreement_rows(compare_classes(known, [1, 2, 2, 0], 2)):
    ...     print(row)
    ('in the right class', '66.7 % of 3 images')
    ('by always naming the largest', '66.7 %')
    ('adjusted Rand index', '-0.500')
    ('images of known classes kept', '100.0 %')
    ('images of no class left out', '100.0 % of 1')
    """
    rows: Rows = [
        ("in the right class", f"{_percent(agreement.accuracy)} of {_count(agreement.n_judged)}"),
        ("by always naming the largest", _percent(agreement.largest)),
        ("adjusted Rand index", f"{agreement.rand_index:.3f}"),
        ("images of known classes kept", _percent(agreement.kept)),
    ]
    if agreement.n_others:
        left_out = f"{_percent(agreement.left_out)} of {agreement.n_others:,}"
        rows.append(("images of no class left out", left_out))
    return rows


def agreement_text(agreement: Agreement) -> str:
    """Say what the classes were compared with, and which was taken for which.

    Examples
    --------
    >>> from emdask.class_agreement import build_known
    >>> known = build_known(["open", "shut", "shut"], "a.csv")
    >>> agreement_text(compare_classes(known, [1, 2, 2], 2))
    'Known classes: a.csv. open is taken for class 1, shut for 2: the best match.'
    """
    text = f"Known classes: {agreement.whence}."
    if not agreement.is_matched:
        return f"{text} Class k is taken for the one known by the number k."
    pairs = zip(agreement.names, agreement.partner.tolist(), strict=True)
    said = [f"{name} for {agreement.found_names[j]}" for name, j in pairs if j >= 0]
    if not said:
        return text
    first = " is taken for class ".join(said[0].rsplit(" for ", 1))
    return f"{text} {', '.join([first, *said[1:]])}: the best match."


def confusion_table(agreement: Agreement) -> tuple[Header, Rows]:
    """Return header and rows of the counts: known classes down, classes found across.

    Examples
    --------
    >>> from emdask.class_agreement import build_known
    >>> known = build_known([1, 1, 2, 0], "a.csv")
    >>> header, rows = confusion_table(compare_classes(known, [1, 2, 2, 0], 2))
    >>> header
    ('known', '1', '2', 'none')
    >>> rows
    [('1', '1', '1', '0'), ('2', '0', '1', '0'), ('none', '0', '0', '1')]
    """
    counts, names, found = _shown_counts(agreement)
    rows = [
        (name, *(f"{n:,}" for n in line)) for name, line in zip(names, counts.tolist(), strict=True)
    ]
    return ("known", *found), rows


def known_numbers(agreement: Agreement) -> list[int]:
    """Number of the class found that each known class is taken for; others go on counting.

    Examples
    --------
    >>> from emdask.class_agreement import build_known
    >>> known = build_known(["a", "b", "c"], "a.csv")
    >>> known_numbers(compare_classes(known, [2, 1, 1], 2))
    [2, 1, 3]
    """
    numbers = [j + 1 for j in agreement.partner.tolist()]
    more = count(len(agreement.found_names) + 1)
    return [number if number > 0 else next(more) for number in numbers]


def _shown_counts(agreement: Agreement) -> tuple[Array, list[str], list[str]]:
    """Counts without a last row or column of zeros, and names of both; partners on the diagonal."""
    taken = [j for j in agreement.partner.tolist() if j >= 0]
    rest = [j for j in range(len(agreement.found_names)) if j not in taken]
    order = [*taken, *rest] if agreement.is_matched else sorted([*taken, *rest])
    found = [agreement.found_names[j] for j in order]
    counts = agreement.counts[:, [*order, -1]]
    names = [*agreement.names, NONE_NAME]
    found.append(NONE_NAME)
    if not counts[-1].any():
        counts, names = counts[:-1], names[:-1]
    if not counts[:, -1].any():
        counts, found = counts[:, :-1], found[:-1]
    return counts, names, found


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if np.isfinite(share) else "-"


def _count(n: int) -> str:
    return f"{n:,} image" + ("" if n == 1 else "s")


# --- The page -------------------------------------------------------------------------------------


def write_classification(
    path: str | Path,
    classified: Classified,
    *,
    averages: xr.DataArray,
    sample: Sample,
) -> Path:
    """Write the page: proportions, agreement with known classes, averages, images, embedding.

    Parameters
    ----------
    path
        Where to; an existing file is replaced.
    classified
        The classes.
    averages : xarray.DataArray, dims (class, y, x)
        What `emdask.class_averages` returned, computed.
    sample
        Some of the images.

    Returns
    -------
    pathlib.Path
    """
    n, h, w = classified.stack.shape
    size_A = classified.stack.attrs.get("pixel_size_A")
    pixels = f"{w} x {h} pixels" + (f" of {size_A:g} Å" if size_A else "")
    what = "a class for each reference" if classified.has_references else "without references"
    return write_report(
        path,
        title=f"Classes found by {classified.method}",
        text=f"{_count(n)} of {pixels}; {len(classified.names)} classes, {what}.",
        headline=_headline(classified),
        sections=[
            _proportion_section(classified),
            *_known_section(classified),
            _average_section(classified, averages),
            *_sureness_section(classified),
            _images_section(classified, sample),
            _embedding_section(classified, sample),
            _making_section(classified),
        ],
    )


def _headline(classified: Classified) -> list[tuple[str, str]]:
    n, kept = len(classified.class_id), classified.n_kept
    k = len(classified.names)
    headline = [(f"{kept:,}", f"of {_count(n)} in one of {k} classes")]
    shares = classified.proportions.iloc[:-1]
    if kept:
        largest = shares.iloc[int(np.argmax(shares.proportion))]
        error = f" ± {100 * largest.error:.1f}" if np.isfinite(largest.error) else ""
        what = f"in the largest, class {largest['class']}"
        headline.append((f"{100 * largest.proportion:.1f}{error} %", what))
    agreement = classified.agreement
    if agreement is not None:
        what = "of them in the class that is known"
        what += ", matched for the best" if agreement.is_matched else ""
        headline.append((_percent(agreement.accuracy), what))
        if agreement.n_others:
            what = "of the images known to be in no class were left out"
            headline.append((_percent(agreement.left_out), what))
    speed = f"wall time, {n / max(classified.seconds, 1e-9):.3g} images a second"
    return [*headline, (f"{classified.seconds:.3g} s", speed)]


def _proportion_section(classified: Classified) -> Section:
    header, rows = proportion_table(classified.proportions)
    shares = classified.proportions.iloc[:-1]
    known = None if classified.agreement is None else _known_shares(classified.agreement)
    figure = draw_proportions(classified.names, shares.proportion, shares.low, shares.high, known)
    text = "Shares of the images that are in classes, those that make all images together most "
    text += "likely; where classes are hard to tell apart, counts of images differ from them. "
    text += "Errors and intervals are of the bootstrap: how far shares would scatter in other sets "
    text += "of as many images."
    if known is not None:
        text += " Known are the shares of all images whose class is known, kept or not."
    table = Table(header=header, rows=rows, is_figures=True)
    return Section(title="Proportions", text=text, table=table, drawing=svg_text(figure))


def _known_shares(agreement: Agreement) -> Array:
    """Share of the known class that each class found is taken for; NaN where there is none."""
    of_known = agreement.counts[:-1].sum(axis=1)
    shares = np.full(len(agreement.found_names), np.nan)
    for share, j in zip(of_known / max(of_known.sum(), 1), agreement.partner, strict=True):
        if j >= 0:
            shares[j] = share
    return shares


def _known_section(classified: Classified) -> list[Section]:
    agreement = classified.agreement
    if agreement is None:
        return []
    counts, names, found = _shown_counts(agreement)
    text = f"{agreement_text(agreement)} Each row of the picture adds up to 100 %. "
    text += "The adjusted Rand index is 1 where both divide the images alike, and 0 by chance."
    if agreement.is_matched:
        text += " The best match is right more often than chance, the more so with few images."
    return [
        Section(
            title="Classes found and known",
            text=text,
            table=Table(header=("", ""), rows=agreement_rows(agreement)),
            drawing=svg_text(draw_confusion(counts, names, found)),
        )
    ]


def _average_section(classified: Classified, averages: xr.DataArray) -> Section:
    n_in_class = np.bincount(classified.class_id, minlength=len(classified.names) + 1)
    pictures = []
    for average in averages:
        number, n = int(average["class"]), int(average.n_images)
        if n:
            whole = _count(int(n_in_class[number]))
            caption = whole if n == n_in_class[number] else f"{n:,} of {whole}"
            png = png_bytes(_enlarge(average.values))
            pictures.append(Picture(png=png, name=f"Class {number}", caption=caption))
    text = "Means of the images of each class, turned and shifted onto each other, each on a grey "
    text += "scale of its own. An average looks like a particle even where images of noise were "
    text += "aligned to a reference: it is no proof of a class."
    if not pictures:
        text = "No class has an image."
    return Section(title="Class averages", text=text, pictures=pictures, n_columns=6)


def _enlarge(image: Array) -> Array:
    times = max(1, round(LEAST_PICTURE_PX / max(image.shape)))
    return np.asarray(image).repeat(times, axis=0).repeat(times, axis=1)


def _sureness_section(classified: Classified) -> list[Section]:
    """How sure images are of their class; nothing where the method does not tell."""
    kept = classified.class_id > 0
    confidence = classified.table.confidence.values[kept]
    margin = classified.table.margin.values[kept]
    class_id = classified.class_id[kept]
    if not kept.any() or confidence.min() == confidence.max():
        return []
    shown = {POSTERIOR: confidence}
    if np.isfinite(margin).any():
        shown["margin of the log-likelihood"] = margin
    panels = {
        name: {f"class {k}": values[class_id == int(k)] for k in classified.names}
        for name, values in shown.items()
    }
    colours = {f"class {k}": class_style(int(k))["color"] for k in classified.names}
    rows = [
        ("posterior, median", f"{np.median(confidence):.3f}"),
        (f"images with more than {SURE:g}", _percent(float((confidence > SURE).mean()))),
        ("images right, as posteriors have it", _percent(float(confidence.mean()))),
    ]
    if "margin of the log-likelihood" in shown:
        there = margin[np.isfinite(margin)]
        rows.append(("margin, median", f"{np.median(there):.3g}"))
    text = "The posterior is how likely it is that an image belongs to its class, as the noise and "
    text += "the proportions have it; the margin is by how much the log-likelihood of its class is "
    text += "above that of the next, so that 3 is 20 to 1."
    table = Table(header=("", ""), rows=rows)
    drawing = svg_text(draw_histograms(panels, colours, ranges={POSTERIOR: (0.0, 1.0)}))
    return [Section(title="How sure it is", text=text, table=table, wide_drawing=drawing)]


def _images_section(classified: Classified, sample: Sample) -> Section:
    name, score = _score(classified)
    own = score[sample.position]
    images = about_median(sample.images)
    limits = typical_limits(_blur(images[:: max(1, len(images) // LIMITS_OF)]))
    groups = _groups(classified)
    pictures = []
    for what, where in groups.items():
        order = np.flatnonzero(where[sample.position])
        order = order[np.argsort(-own[order], kind="stable")]
        for end, some in _ends(order, own[order], len(groups)).items():
            png = png_bytes(_lay_out(images[some]), limits)
            caption = _range_text(name, own[some])
            pictures.append(Picture(png=png, name=f"{what}{end}", caption=caption))
    text = f"Of the {_count(len(sample.position))} that were looked at, by the {name}; blurred for "
    text += "the eye, on one grey scale."
    if classified.n_kept == len(score):
        n_columns = 2 if any(picture.name.endswith(LOWEST) for picture in pictures) else 3
        title = "Images of the classes"
        return Section(title=title, text=text, pictures=pictures, n_columns=n_columns)
    parts = {what: score[where] for what, where in groups.items() if where.any()}
    rows: Rows = [
        (what, f"{len(part):,}", _median_text(part), _percent(len(part) / len(score)))
        for what, part in parts.items()
    ]
    return Section(
        title="Images kept and left out",
        text=text,
        pictures=pictures,
        table=Table(header=("", "images", "median score", "share"), rows=rows, is_figures=True),
        drawing=svg_text(draw_histograms({name: parts}, dict(zip(groups, SHADES, strict=False)))),
    )


def _groups(classified: Classified) -> dict[str, Array]:
    """Which images are kept or not, and why; by class, where all are."""
    table, is_kept = classified.table, classified.class_id > 0
    if is_kept.all():
        names = classified.names[:CLASSES_SHOWN]
        return {f"Class {name}": classified.class_id == int(name) for name in names}
    is_screened = np.zeros(is_kept.shape, bool)
    if "screen_score" in table:
        is_screened = ~np.isfinite(table.log_likelihood.values).any(axis=1)
    return {
        "Kept": is_kept,
        "In no class": ~is_kept & ~is_screened,
        "Screened out": ~is_kept & is_screened,
    }


def _score(classified: Classified) -> tuple[str, Array]:
    """By which images are sorted: what they were screened by, else how likely a class is."""
    table = classified.table
    if "screen_score" in table:
        return "score of the screening", np.asarray(table.screen_score.values, np.float64)
    if float(table.posterior_none.max()) > 0:
        return "posterior of being in a class", 1 - np.asarray(table.posterior_none, np.float64)
    return "posterior of the class", np.asarray(table.confidence.values, np.float64)


def _ends(order: Array, scores: Array, n_groups: int) -> dict[str, Array]:
    """First and last of images sorted by their scores; the first alone where that is enough."""
    if not len(order):
        return {}
    if n_groups > MOST_GROUPS or scores[0] == scores[-1]:
        return {"": order[:THUMBNAILS]}
    half = min(THUMBNAILS, len(order) // 2)
    return {HIGHEST: order[:half], LOWEST: order[-half:]}


def _lay_out(images: Array) -> Array:
    """Blurred images in full rows, so that all montages have one scale; free places are NaN."""
    n_free = -len(images) % MONTAGE_COLUMNS
    free = np.full((n_free, *images.shape[1:]), np.nan)
    return montage(np.concatenate([_blur(images), free]))


def _blur(images: Array) -> Array:
    width_px = max(LEAST_BLUR_PX, BLUR * max(images.shape[1:]))
    return np.asarray(gaussian_filter(images, (0, width_px, width_px)))


def _range_text(name: str, values: Array) -> str:
    there = values[np.isfinite(values)]
    if not len(there) or there.min() == there.max():
        return ""
    return f"{name} {there.max():.3g} to {there.min():.3g}"


def _median_text(values: Array) -> str:
    there = values[np.isfinite(values)]
    return f"{np.median(there):.3g}" if len(there) else "-"


def _embedding_section(classified: Classified, sample: Sample) -> Section:
    found = {0: NONE_NAME} | {int(name): name for name in classified.names}
    panels: dict[str, tuple[npt.ArrayLike, Mapping[int, str]]] = {
        "classes found": (classified.class_id[sample.position], found)
    }
    if classified.known is not None and classified.agreement is not None:
        known = known_numbers(classified.agreement)
        names = {0: NONE_NAME} | dict(zip(known, classified.known.names, strict=True))
        colour = np.array([0, *known, UNKNOWN])[classified.known.number[sample.position]]
        panels["known classes"] = colour, names
    figure = draw_embedding(sample.points, panels, sample.axis)
    text = (
        f"{_count(len(sample.position))}, spread over the stack, by features that stay what they "
    )
    text += (
        "are when an image is turned or shifted. Images of one view lie near each other; what a "
    )
    text += "few degrees of one domain change hardly shows in such features. "
    if classified.has_references:
        text += "So clouds that lie on each other do not mean that classes are wrong."
    else:
        text += "So classes found without references follow views sooner than conformations."
    drawing = svg_text(figure)
    wide = len(panels) > 1
    return Section(
        title="Where images lie",
        text=text,
        wide_drawing=drawing if wide else "",
        drawing="" if wide else drawing,
    )


def _making_section(classified: Classified) -> Section:
    rows = provenance_rows(classified.table.attrs)
    table = Table(header=("step", "parameters"), rows=rows) if rows else None
    return Section(title="How it was made", table=table, text=environment_text())
