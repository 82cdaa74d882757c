"""Matching picks with particles: hand examples, brute force, empty tables, ties."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from emdask.errors import ParameterError
from emdask.metrics import match_picks
from emdask.pick_metrics import PickMatches


def table(rows: list[tuple[Any, ...]], *, scored: bool = True) -> pd.DataFrame:
    columns = ["micrograph", "x_px", "y_px", "score"]
    return pd.DataFrame(rows, columns=columns if scored else columns[:3])


TRUTH = table([("a", 10, 10), ("a", 50, 50), ("b", 20, 20), ("c", 5, 5)], scored=False)
PICKS = table(
    [
        ("a", 12, 10, 0.9),  # takes (10, 10)
        ("a", 10, 10, 0.8),  # its particle is taken
        ("b", 20, 24, 0.7),  # takes (20, 20)
        ("a", 56, 50, 0.6),  # too far
        ("a", 50, 50, 0.5),  # takes (50, 50)
        ("d", 5, 5, 0.4),  # a micrograph without particles
    ]
)


def slow_match(picks: pd.DataFrame, truth: pd.DataFrame, radius_px: float) -> list[int]:
    """Row of each pick's particle, picks in order of falling score, ties by row."""
    points = [*picks.itertuples(index=False)]
    known = [*truth.itertuples(index=False)]
    free = set(range(len(known)))
    pairs = [-1] * len(points)
    for i in sorted(range(len(points)), key=lambda row: -points[row].score):
        pick = points[i]
        near = [
            (math.hypot(pick.x_px - known[k].x_px, pick.y_px - known[k].y_px), k)
            for k in free
            if pick.micrograph == known[k].micrograph
        ]
        if near and min(near)[0] <= radius_px:
            pairs[i] = min(near)[1]
            free.discard(pairs[i])
    return pairs


def slow_average_precision(picks: pd.DataFrame, pairs: list[int], n_truth: int) -> float:
    area, before, scores = 0.0, 0.0, picks.score.tolist()
    for score in sorted(set(scores), reverse=True):
        hits = [pair >= 0 for pair, own in zip(pairs, scores, strict=True) if own >= score]
        recall = sum(hits) / n_truth
        area += (recall - before) * sum(hits) / len(hits)
        before = recall
    return area


def pairs_of(matches: PickMatches) -> list[int]:
    return matches.picks.sort_index()["truth"].tolist()


def test_example_by_hand() -> None:
    matches = match_picks(PICKS, TRUTH, radius_px=5)
    assert pairs_of(matches) == [0, -1, 2, -1, 1, -1]
    assert matches.precision == 3 / 6
    assert matches.recall == 3 / 4
    assert matches.f1 == 2 * 3 / (6 + 4)
    assert matches.average_precision == pytest.approx((1 + 2 / 3 + 3 / 5) / 4)
    assert matches.best == matches.at(0.5)
    assert matches.best.f1 == pytest.approx(2 * 3 / (5 + 4))
    assert matches.truth["pick"].tolist() == [0, 4, 2, -1]
    assert matches.picks["distance_px"].sort_index().tolist()[:3:2] == [2.0, 4.0]


def test_curve_has_every_threshold() -> None:
    curve = match_picks(PICKS, TRUTH, radius_px=5).curve
    assert curve.thresholds.tolist() == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    assert_allclose(curve.precision, [1, 1 / 2, 2 / 3, 2 / 4, 3 / 5, 3 / 6])
    assert_allclose(curve.recall, np.array([1, 1, 2, 2, 3, 3]) / 4)
    assert_allclose(curve.f1, 2 * np.array([1, 1, 2, 2, 3, 3]) / (np.arange(1, 7) + 4))


def test_micrographs_one_by_one() -> None:
    each = match_picks(PICKS, TRUTH, radius_px=5).per_micrograph.set_index("micrograph")
    assert each.index.tolist() == ["a", "b", "c", "d"]
    assert each.n_picks.tolist() == [4, 1, 0, 1]
    assert each.n_truth.tolist() == [2, 1, 1, 0]
    assert each.n_matched.tolist() == [2, 1, 0, 0]
    assert_allclose(each.precision, [0.5, 1, np.nan, 0])
    assert_allclose(each.recall, [1, 1, 0, np.nan])
    assert_allclose(each.f1, [2 / 3, 1, 0, 0])
    assert_allclose(each.average_precision, [(1 + 2 / 4) / 2, 1, 0, np.nan])


def test_threshold_counts_the_better_picks_alone() -> None:
    matches = match_picks(PICKS, TRUTH, radius_px=5, threshold=0.65)
    assert (matches.precision, matches.recall) == (2 / 3, 2 / 4)
    assert matches.at(0.65) == match_picks(PICKS[:3], TRUTH, radius_px=5).at(0.65)
    assert matches.per_micrograph.n_picks.tolist() == [2, 1, 0, 0]
    everything = match_picks(PICKS, TRUTH, radius_px=5)
    assert matches.average_precision == everything.average_precision


@pytest.mark.parametrize("seed", range(8))
def test_brute_force(seed: int) -> None:
    """Crowded points of few scores, so that ties and quarrels abound."""
    rng = np.random.default_rng(seed)

    def draw(n: int) -> pd.DataFrame:
        places = rng.integers(0, 40, (n, 2)) / 2
        names = rng.choice(["a", "b", "c"], n)
        columns = {"micrograph": names, "x_px": places[:, 0], "y_px": places[:, 1]}
        return pd.DataFrame(columns).assign(score=rng.integers(0, 12, n) / 4)

    picks, truth = draw(60), draw(40)
    matches = match_picks(picks, truth, radius_px=3)
    slow = slow_match(picks, truth, 3)
    assert pairs_of(matches) == slow
    assert matches.average_precision == pytest.approx(slow_average_precision(picks, slow, 40))
    for threshold in sorted(set(picks.score)):
        kept = picks[picks.score >= threshold].reset_index(drop=True)
        n_matched = sum(pair >= 0 for pair in slow_match(kept, truth, 3))
        assert matches.at(threshold).n_matched == n_matched
    assert matches.best.f1 == max(matches.at(score).f1 for score in picks.score)
    areas = [
        match_picks(picks, truth, radius_px=3, micrographs=[name]).average_precision
        for name in matches.micrographs
    ]
    assert_allclose(matches.per_micrograph.average_precision, areas)


def test_order_of_rows_does_not_matter_where_scores_differ() -> None:
    shuffled = PICKS.sample(frac=1, random_state=3)
    matches = match_picks(shuffled, TRUTH, radius_px=5)
    straight = match_picks(PICKS, TRUTH, radius_px=5)
    assert matches.picks["truth"].tolist() == straight.picks["truth"].tolist()
    assert shuffled.iloc[matches.picks.index[0]].score == 0.9


def test_radius_is_inclusive() -> None:
    truth = table([("a", 3.3, 0)], scored=False)
    assert match_picks(table([("a", 3, 0.4, 1)]), truth, radius_px=0.5).recall == 1
    assert match_picks(table([("a", 3, 0.4, 1)]), truth, radius_px=0.4999).recall == 0
    assert match_picks(table([("a", 3.3, 0, 1)]), truth, radius_px=0).recall == 1


def test_picks_without_scores_are_all_alike() -> None:
    matches = match_picks(PICKS.drop(columns="score"), TRUTH, radius_px=5)
    assert matches.average_precision == matches.precision * matches.recall
    assert len(matches.curve.thresholds) == 1


@pytest.mark.parametrize(("with_picks", "with_truth"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_empty_tables(with_picks: int, with_truth: int) -> None:
    picks = table([("a", 1, 1, 0.5)] * with_picks)
    truth = table([("a", 1, 1)] * with_truth, scored=False)
    matches = match_picks(picks, truth, radius_px=2)
    one = {(1, 1): 1.0, (0, 1): 0.0, (1, 0): 0.0, (0, 0): np.nan}[with_picks, with_truth]
    assert_allclose(matches.f1, one)
    assert_allclose(matches.best.f1, one)
    assert_allclose(matches.precision, with_truth if with_picks else np.nan)
    assert_allclose(matches.recall, with_picks if with_truth else np.nan)
    assert_allclose(matches.average_precision, with_picks if with_truth else np.nan)
    assert len(matches.per_micrograph) == max(with_picks, with_truth)
    assert len(matches.curve.thresholds) == with_picks


def test_some_micrographs() -> None:
    matches = match_picks(PICKS, TRUTH, radius_px=5, micrographs=["b", "c"])
    assert matches.micrographs == ("b", "c")
    assert (matches.precision, matches.recall) == (1, 0.5)
    nothing = match_picks(PICKS[:0], TRUTH, radius_px=5, micrographs=["c", "e"])
    assert nothing.per_micrograph.n_truth.tolist() == [1, 0]


def test_border_is_left_out_of_both() -> None:
    # The frame ends half a pixel beyond the outermost pixels' centres, as for pick().
    matches = match_picks(PICKS, TRUTH, radius_px=5, border_px=10.5, shapes=(61, 62))
    assert matches.truth.index.tolist() == [0, 1, 2]  # (10, 10) is 10.5 px from the frame
    assert matches.picks.index.tolist() == [0, 1, 2, 4]  # (56, 50) is 4 px from the last
    edge = match_picks(PICKS, TRUTH, radius_px=5, border_px=10.6, shapes=(61, 62))
    assert edge.truth.index.tolist() == [2]
    by_name = {"a": (61, 62), "b": (61, 62), "c": (8, 8), "d": (12, 12)}
    same = match_picks(PICKS, TRUTH, radius_px=5, border_px=10, shapes=by_name)
    assert same.truth.index.tolist() == [0, 1, 2]


def test_names_of_other_folders_and_suffixes() -> None:
    truth = TRUTH.assign(micrograph="MotionCorr/job002/" + TRUTH.micrograph + ".mrc")
    matches = match_picks(PICKS, truth, radius_px=5)
    assert matches.f1 == match_picks(PICKS, TRUTH, radius_px=5).f1
    assert matches.micrographs[0] == "MotionCorr/job002/a.mrc"


def test_dask_tables() -> None:
    dd = pytest.importorskip("dask.dataframe")
    lazy = match_picks(
        dd.from_pandas(PICKS, npartitions=2), dd.from_pandas(TRUTH, npartitions=1), radius_px=5
    )
    assert lazy.at(0.5) == match_picks(PICKS, TRUTH, radius_px=5).at(0.5)


@pytest.mark.parametrize(
    ("picks", "options", "message"),
    [
        (PICKS.drop(columns="y_px"), {}, "picks must be a table .*It lacks y_px"),
        ([1, 2], {}, "picks must be a table .*got 'list'"),
        (PICKS.assign(score=np.nan), {}, "picks must have finite .* row 0 has not"),
        (PICKS, {"radius_px": -1}, "radius_px must be a number of at least 0; got -1"),
        (PICKS, {"border_px": 3}, "border_px needs shapes"),
        (PICKS, {"border_px": 3, "shapes": {"a": (9, 9)}}, "shapes must have all micrographs"),
        (PICKS.assign(micrograph="z"), {}, "no micrograph of the picks, as z, is one of the truth"),
    ],
)
def test_bad_input(picks: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        match_picks(picks, TRUTH, **{"radius_px": 5, **options})
