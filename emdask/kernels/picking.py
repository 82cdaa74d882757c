"""The steps from a score map to picks that all pickers share: clean, filter, sort; plain arrays.

Maps are small, a cell for some pixels of the micrograph, so this is NumPy and SciPy on the host.
What is not finite counts as not scored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

__all__ = ["ScoreMap", "clean_scores", "filter_peaks", "sort_picks"]

Array = npt.NDArray[Any]
Picks = tuple[Array, Array, Array]

# In diameters: a region in which a disc of this radius fits is no particle, nor particles that
# touch; and what lies this close to one is dropped with it.
THICK = 0.75
MARGIN = 0.5
# Side of the window in which a peak is the highest, in diameters.
WINDOW = 0.6


class ScoreMap(NamedTuple):
    """How much each place of a standardised micrograph looks like the middle of a particle.

    Parameters
    ----------
    scores : float32 array, shape (h, w)
        The higher, the more.
    step_px
        Pixels of the standardised image from one cell to the next.
    offset_px
        Where the first cell is: cell [i, j] scores x = offset_px + j step_px and
        y = offset_px + i step_px.
    """

    scores: Any
    step_px: float
    offset_px: float


def clean_scores(scores: Array, threshold: float, diameter: float) -> Array:
    """Drop what scores high but is far larger than a particle: ice, carbon, aggregates.

    Parameters
    ----------
    scores : array, shape (h, w)
        Score map.
    threshold
        Regions are where scores lie above it. It should be the one that suits the method, also
        where picks of lower scores are wanted: below it, noise connects everything.
    diameter
        Of a particle, in cells.

    Returns
    -------
    float32 array, shape (h, w)
        The scores, -inf where they are dropped or not finite.

    Notes
    -----
    What counts is how thick a region is, not its area: particles that stand close share a region
    of any area, but scores fall off between them, so that no disc much larger than a particle
    fits in. Where a disc of 1.5 diameters does, it is dropped, and what lies within half a
    diameter around it. So particles that touch ice or carbon remain, from there on. Regions go on
    beyond the border of the map. Long and narrow ones, as the very edge of a carbon film may
    give, are not told from rows of particles.

    Examples
    --------
    >>> scores = np.zeros((40, 80), np.float32)
    >>> scores[8:32, 8:32] = scores[18:22, 60:64] = 1  # a lump and a particle
    >>> cleaned = clean_scores(scores, 0.5, diameter=8.0)
    >>> cleaned[20, 20], cleaned[20, 62]
    (np.float32(-inf), np.float32(1.0))
    """
    kept = np.where(np.isfinite(scores), scores, -np.inf).astype(np.float32)
    region = kept > threshold
    if region.all():
        return np.full_like(kept, -np.inf)
    thick = ndimage.distance_transform_edt(region) > THICK * diameter
    if thick.any():
        beyond = ndimage.distance_transform_edt(~thick)
        kept[beyond <= (THICK + MARGIN) * diameter] = -np.inf
    return kept


def filter_peaks(scores: Array, threshold: float, diameter: float, distance: float) -> Picks:
    """Find the peaks of a score map.

    Parameters
    ----------
    scores : array, shape (h, w)
        Score map.
    threshold
        Peaks are as high as this or higher.
    diameter
        Of a particle, in cells: a peak is the highest in a square window of 0.6 diameters.
    distance
        In cells: of two peaks nearer than this the higher one is taken (greedy suppression, from
        the highest on).

    Returns
    -------
    x, y : float64 array, shape (n,)
        In cells, the first at 0; to a fraction of a cell, by a parabola through the peak and its
        neighbours along each axis.
    score : float64 array, shape (n,)
        That of the peak's cell. Highest first.

    Notes
    -----
    Cells of equal scores side by side are one peak, at their mean, and none where they reach
    further than a diameter: that is flat. Peaks of equal scores are taken row by row.

    Examples
    --------
    >>> scores = np.zeros((9, 12), np.float32)
    >>> scores[4, 2:5] = 1, 3, 2
    >>> x, y, score = filter_peaks(scores, 0.5, diameter=4.0, distance=4.0)
    >>> x.round(2), y, score
    (array([3.17]), array([4.]), array([3.]))
    """
    finite = np.where(np.isfinite(scores), scores, -np.inf).astype(np.float64)
    width = 2 * max(1, round(WINDOW * diameter / 2)) + 1
    highest = ndimage.maximum_filter(finite, width, mode="constant", cval=-np.inf)
    is_peak = (finite == highest) & (finite >= threshold) & np.isfinite(finite)
    x, y, score = sort_picks(*_locate(finite, is_peak, diameter))
    kept = _suppress(x, y, distance)
    return x[kept], y[kept], score[kept]


def sort_picks(x: Array, y: Array, score: Array) -> Picks:
    """Sort picks, the highest score first; equal ones row by row, so by y and then by x.

    Examples
    --------
    >>> x, y, score = sort_picks(np.arange(3.0), np.zeros(3), np.array([1.0, 5.0, 1.0]))
    >>> x, score
    (array([1., 0., 2.]), array([5., 1., 1.]))
    """
    order = np.lexsort((x, y, -np.asarray(score)))
    return x[order], y[order], score[order]


def _locate(scores: Array, is_peak: Array, diameter: float) -> Picks:
    """Return x, y and score of each group of neighbouring cells that are peaks."""
    groups, n_groups = ndimage.label(is_peak, np.ones((3, 3)))
    empty = np.zeros(0)
    if n_groups == 0 or scores.max() == scores.min():
        return empty, empty, empty
    numbers = np.arange(1, n_groups + 1)
    reach = [max(part.stop - part.start for part in box) for box in ndimage.find_objects(groups)]
    numbers = numbers[np.array(reach) <= max(diameter, 1)]
    if not len(numbers):
        return empty, empty, empty
    y, x = np.array(ndimage.center_of_mass(is_peak, groups, numbers)).T
    single = np.bincount(groups.ravel(), minlength=n_groups + 1)[numbers] == 1
    rows, columns = y[single].astype(int), x[single].astype(int)
    y[single] += _refine(np.pad(scores, ((1, 1), (0, 0)), constant_values=-np.inf), rows, columns)
    across = np.pad(scores, ((0, 0), (1, 1)), constant_values=-np.inf).T
    x[single] += _refine(across, columns, rows)
    return x, y, np.asarray(ndimage.maximum(scores, groups, numbers), np.float64)


def _refine(padded: Array, rows: Array, columns: Array) -> Array:
    """Return how far beyond its cell, along rows, a parabola's top is; 0 beside what has no score.

    ``padded`` has one more row on either side.
    """
    before, middle, after = (padded[rows + i, columns] for i in range(3))
    usable = np.isfinite(before) & np.isfinite(after)
    before, after = (np.where(usable, beside, middle) for beside in (before, after))
    bend = 2 * middle - before - after
    return np.asarray((after - before) / (2 * np.where(bend > 0, bend, 1.0)))


def _suppress(x: Array, y: Array, distance: float) -> Array:
    """Return which of the points, best first, have no better one nearer than the distance."""
    kept = np.ones(len(x), bool)
    if len(x) < 2 or distance <= 0:
        return kept
    points = np.column_stack([x, y])
    tree = cKDTree(points)
    for i, point in enumerate(points):
        if kept[i]:
            kept[tree.query_ball_point(point, np.nextafter(distance, 0))] = False
            kept[i] = True
    return kept
