"""How good picks are: matched with the particles that are known, one to one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from emdask.checks import check_number, require, sentence
from emdask.errors import ParameterError
from emdask.picks import PLACE, check_picks, pair_names

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Shapes = tuple[int, int] | Mapping[str, tuple[int, int]]

NAME = "match_picks"


class PickScore(NamedTuple):
    """Picks at and above one threshold.

    Parameters
    ----------
    threshold
        Least score of the picks that count; -inf for all of them.
    precision
        Share of the picks that are particles; NaN where there is no pick.
    recall
        Share of the particles that were picked; NaN where there is no particle.
    f1
        Harmonic mean of both, 2 n_matched / (n_picks + n_truth): 0 where there are particles and
        no picks, or picks and no particles; NaN where there is neither.
    n_picks, n_truth, n_matched
        Number of picks, of particles, and of pairs of them.
    """

    threshold: float
    precision: float
    recall: float
    f1: float
    n_picks: int
    n_truth: int
    n_matched: int


class PickCurve(NamedTuple):
    """Precision and recall at every score that picks have, falling.

    Parameters
    ----------
    thresholds : float64 array, shape (k,)
        The different scores, highest first.
    precision, recall, f1 : float64 array, shape (k,)
        Of the picks with at least that score.
    """

    thresholds: Floats
    precision: Floats
    recall: Floats
    f1: Floats


@dataclass(frozen=True, kw_only=True)
class PickMatches:
    """Picks, particles, and which pick is which particle; see `match_picks`.

    Parameters
    ----------
    picks
        Table of the picks that were judged, best first: columns ``micrograph``, ``x_px``, ``y_px``,
        ``score``, ``truth``: row of its particle in the table of the truth (-1: none), and
        ``distance_px`` to it (NaN: none). The index is the row in the table that was given.
    truth
        Table of the particles that were judged, with ``pick``: row of the pick that took it in the
        table of the picks (-1: none). The index is the row in the table that was given.
    micrographs
        Names of the micrographs that were judged, picked or not.
    radius_px
        Distance up to which a pick is a particle, px.
    threshold
        Least score of the picks that `precision`, `recall`, `f1` and `per_micrograph` count.
    """

    picks: pd.DataFrame
    truth: pd.DataFrame
    micrographs: tuple[str, ...]
    radius_px: float
    threshold: float

    @property
    def precision(self) -> float:
        """Share of the picks that are particles, over all micrographs."""
        return self.at(self.threshold).precision

    @property
    def recall(self) -> float:
        """Share of the particles that were picked, over all micrographs."""
        return self.at(self.threshold).recall

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, over all micrographs."""
        return self.at(self.threshold).f1

    @property
    def average_precision(self) -> float:
        """Area under the curve of all picks: sum over k of (recall k - recall k-1) precision k."""
        return average_precision(*self._scores_and_hits(), len(self.truth))

    @property
    def curve(self) -> PickCurve:
        """Precision, recall and F1 at every threshold, over all micrographs."""
        return _curve(*self._scores_and_hits(), len(self.truth))

    @property
    def best(self) -> PickScore:
        """Highest F1 that a threshold reaches, in hindsight; the highest of equal thresholds."""
        curve = self.curve
        if len(curve.f1) == 0:
            return self.at(-np.inf)
        return self.at(float(curve.thresholds[np.argmax(curve.f1)]))

    def at(self, threshold: float) -> PickScore:
        """Judge the picks with at least a score; which pick is which particle stays as it is.

        Better picks choose first, so that leaving out the others changes no pair.
        """
        return _judge(*self._scores_and_hits(), len(self.truth), threshold)

    @property
    def per_micrograph(self) -> pd.DataFrame:
        """Table with a row a micrograph: numbers of `PickScore`, and ``average_precision``."""
        scores, hits = self._scores_and_hits()
        rows_of = self.picks.groupby("micrograph", sort=False).indices
        n_truth_of = self.truth["micrograph"].value_counts()
        none = np.empty(0, np.int64)
        rows = []
        for name in self.micrographs:
            own, n_truth = rows_of.get(name, none), int(n_truth_of.get(name, 0))
            score = _judge(scores[own], hits[own], n_truth, self.threshold)
            area = average_precision(scores[own], hits[own], n_truth)
            rows.append((name, *score[1:], area))
        columns = ["micrograph", *PickScore._fields[1:], "average_precision"]
        return pd.DataFrame(rows, columns=columns)

    def _scores_and_hits(self) -> tuple[Floats, npt.NDArray[np.bool_]]:
        return self.picks["score"].to_numpy(), self.picks["truth"].to_numpy() >= 0


def match_picks(
    picks: Any,
    truth: Any,
    *,
    radius_px: float,
    threshold: float | None = None,
    border_px: float = 0,
    shapes: Shapes | None = None,
    micrographs: Iterable[str] | None = None,
) -> PickMatches:
    """Match picks with the particles that are known, one to one, best score first.

    Each pick, in order of falling score, takes the nearest particle of its micrograph within the
    radius that no other has taken. So a particle that is picked twice counts once, and the second
    pick is a false one.

    Parameters
    ----------
    picks : pandas or dask DataFrame
        Columns ``micrograph``, ``x_px``, ``y_px`` and ``score``; without ``score`` all are as good
        as any other. Equal scores choose in the order of the rows.
    truth : pandas or dask DataFrame
        Columns ``micrograph``, ``x_px``, ``y_px``.
    radius_px
        Distance up to which a pick is a particle, px, inclusive: such as 0.2 diameters.
    threshold
        Least score of the picks that precision, recall and F1 count; None counts all. The curve,
        average precision and the best F1 are of all picks.
    border_px
        Picks and particles nearer than this to an edge of the micrograph, as of `emdask.pick`, are
        left out before they are matched; needs ``shapes``.
    shapes
        Height and width of the micrographs, px: (h, w) for all, or one for each name.
    micrographs
        Names of the micrographs to judge; None takes all that either table has. One of which the
        truth has no particle counts as having none: all picks there are false. One without picks
        counts, too: all its particles are missed.

    Returns
    -------
    PickMatches
        Precision, recall, F1 and average precision over all micrographs and of each, the curve, and
        the pairs.

    Raises
    ------
    ParameterError
        If a table lacks a column, holds places or scores that are not finite, or no micrograph of
        the picks is one of the truth.

    Notes
    -----
    Precision is n_matched / n_picks, recall n_matched / n_truth, F1 2 n_matched / (n_picks +
    n_truth). Average precision is the sum, over the different scores from the highest down, of the
    gain in recall times precision at that score, without interpolation. Without picks precision is
    NaN, and recall, F1 and average precision are 0; without particles recall and average precision
    are NaN, and precision and F1 are 0.

    Micrographs are the same if their names are; names that are in one table alone are matched by
    their bare name, without folders and suffix; see `emdask.picks.pair_names`.

    Examples
    --------
    >>> truth = pd.DataFrame({"micrograph": "a.mrc", "x_px": [10, 50], "y_px": [10, 50]})
    >>> picks = pd.DataFrame(
    ...     {"micrograph": "a.mrc", "x_px": [11, 9, 90], "y_px": 10, "score": [0.9, 0.8, 0.7]}
    ... )
    >>> found = match_picks(picks, truth, radius_px=5)
    >>> round(found.precision, 3), found.recall, found.best.threshold
    (0.333, 0.5, 0.9)
    """
    check_number(NAME, "radius_px", radius_px, 0)
    check_number(NAME, "border_px", border_px, 0)
    if threshold is not None:
        check_number(NAME, "threshold", threshold)
    found, known = check_picks(NAME, picks), check_picks(NAME, truth, "truth")
    found["score"] = found.get("score", 1.0)
    known = known[["micrograph", *PLACE]]
    called = found["micrograph"].unique()
    same = dict(zip(called, called, strict=True))
    found["micrograph"] = found["micrograph"].map(
        same | pair_names(called, known["micrograph"].unique())
    )
    names = _find_names(found, known, micrographs)
    found, known = (
        _inside(table[table["micrograph"].isin(names)], border_px, shapes)
        for table in (found, known)
    )
    found = found.sort_values("score", ascending=False, kind="stable")
    truth_of, distance_px = _match(found, known, float(radius_px))
    takers = np.full(len(known), -1, np.int64)
    hits = truth_of >= 0
    takers[truth_of[hits]] = found.index[hits]
    rows = np.append(known.index.to_numpy(), -1)[truth_of]
    return PickMatches(
        picks=found.assign(truth=rows, distance_px=distance_px),
        truth=known.assign(pick=takers),
        micrographs=tuple(names),
        radius_px=float(radius_px),
        threshold=-np.inf if threshold is None else float(threshold),
    )


def average_precision(scores: Floats, hits: npt.NDArray[np.bool_], n_truth: int) -> float:
    """Return the area under the curve of precision over recall, step by step.

    Parameters
    ----------
    scores : float64 array, shape (n,)
        Scores of the picks, falling.
    hits : bool array, shape (n,)
        Whether each is a particle.
    n_truth
        Number of particles.

    Returns
    -------
    float
        Sum over the different scores of the gain in recall times precision; NaN without truth.

    Examples
    --------
    >>> average_precision(np.array([3.0, 2.0, 1.0, 0.0]), np.array([1, 0, 0, 1], bool), 2)
    0.75
    """
    if n_truth == 0:
        return np.nan
    curve = _curve(scores, hits, n_truth)
    return float((np.diff(curve.recall, prepend=0.0) * curve.precision).sum())


def _curve(scores: Floats, hits: npt.NDArray[np.bool_], n_truth: int) -> PickCurve:
    last = np.flatnonzero(np.diff(scores, append=-np.inf))
    n_matched = np.cumsum(hits)[last]
    n_picks = last + 1
    with np.errstate(invalid="ignore"):
        recall = n_matched / np.float64(n_truth)
    f1 = 2 * n_matched / (n_picks + n_truth)
    return PickCurve(scores[last], n_matched / n_picks, recall, f1)


def _judge(
    scores: Floats, hits: npt.NDArray[np.bool_], n_truth: int, threshold: float
) -> PickScore:
    chosen = scores >= threshold
    n_picks, n_matched = int(chosen.sum()), int(hits[chosen].sum())
    return PickScore(
        threshold=float(threshold),
        precision=n_matched / n_picks if n_picks else np.nan,
        recall=n_matched / n_truth if n_truth else np.nan,
        f1=2 * n_matched / (n_picks + n_truth) if n_picks + n_truth else np.nan,
        n_picks=n_picks,
        n_truth=n_truth,
        n_matched=n_matched,
    )


def _match(picks: pd.DataFrame, truth: pd.DataFrame, radius_px: float) -> tuple[Integers, Floats]:
    """Row of each pick's particle, -1 for none, and the distance; picks are best first."""
    truth_of = np.full(len(picks), -1, np.int64)
    distance_px = np.full(len(picks), np.nan)
    rows_of = truth.groupby("micrograph", sort=False).indices
    picked, known = (table[[*PLACE]].to_numpy() for table in (picks, truth))
    for name, own in picks.groupby("micrograph", sort=False).indices.items():
        if name in rows_of:
            there = rows_of[name]
            taken, distance_px[own] = _take_nearest(picked[own], known[there], radius_px)
            truth_of[own] = np.append(there, -1)[taken]
    return truth_of, distance_px


def _take_nearest(picked: Floats, known: Floats, radius_px: float) -> tuple[Integers, Floats]:
    """Let each of the points (n, 2), in their order, take the nearest that is free; -1 for none."""
    from scipy.spatial import KDTree

    # A little more than the radius, lest the tree's rounding decide what is on it.
    near = KDTree(known).query_ball_point(picked, radius_px * (1 + 1e-9) + 1e-9)
    picks = np.repeat(np.arange(len(picked)), [len(candidates) for candidates in near])
    truths = np.fromiter(chain.from_iterable(near), np.int64, len(picks))
    distances = np.hypot(*(known[truths] - picked[picks]).T)
    order = np.lexsort((truths, distances, picks))
    order = order[distances[order] <= radius_px]
    taken: dict[int, int] = {}
    pairs: dict[int, int] = {}
    for pair, i, k in zip(
        order.tolist(), picks[order].tolist(), truths[order].tolist(), strict=True
    ):
        if i not in pairs and k not in taken:
            pairs[i], taken[k] = pair, i
    truth_of, distance_px = np.full(len(picked), -1, np.int64), np.full(len(picked), np.nan)
    own = list(pairs.values())
    truth_of[picks[own]], distance_px[picks[own]] = truths[own], distances[own]
    return truth_of, distance_px


def _find_names(
    picks: pd.DataFrame, truth: pd.DataFrame, micrographs: Iterable[str] | None
) -> list[str]:
    """Names of the micrographs to judge: those asked for, or all, the truth's first."""
    known = dict.fromkeys([*truth["micrograph"], *picks["micrograph"]])
    if micrographs is None:
        shared = set(truth["micrograph"]) & set(picks["micrograph"])
        if len(picks) and len(truth) and not shared:
            rule = f"no micrograph of the picks, as {picks['micrograph'][0]}, is one of the truth"
            remedy = "Name them alike in both tables."
            raise ParameterError(sentence(NAME, rule, truth["micrograph"][0], remedy))
        return list(known)
    wanted = list(dict.fromkeys(map(str, micrographs)))
    pairs = pair_names(wanted, known)
    return [pairs.get(name, name) for name in wanted]


def _inside(table: pd.DataFrame, border_px: float, shapes: Shapes | None) -> pd.DataFrame:
    """Rows that are at least ``border_px`` from the edges of the micrograph."""
    if border_px == 0:
        return table
    rule = "border_px needs shapes, the height and width of the micrographs"
    require(shapes is not None, NAME, rule, remedy="Pass shapes=(h, w).")
    names = table["micrograph"].unique()
    if isinstance(shapes, Mapping):
        pairs = pair_names(names, shapes)
        missing = [name for name in names if name not in pairs]
        require(not missing, NAME, "shapes must have all micrographs", missing[:1])
        size_of = {name: shapes[pairs[name]] for name in names}
    else:
        size_of = dict.fromkeys(names, shapes or (0, 0))
    far = np.ones(len(table), bool)
    for axis, label in enumerate(("y_px", "x_px")):
        lengths = table["micrograph"].map({name: size_of[name][axis] for name in names})
        # The micrograph ends half a pixel beyond the centres of its outermost pixels.
        from_first = table[label].to_numpy() + 0.5
        to_last = lengths.to_numpy(np.float64) - from_first
        far &= np.minimum(from_first, to_last) >= border_px
    inside: pd.DataFrame = table[far]
    return inside
