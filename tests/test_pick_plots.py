"""Pictures of picks show the places, scores and thresholds that they are given."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_rgba

from emdask.pick_plots import (
    MISSED,
    PICTURE_PX,
    draw_counts,
    draw_picks,
    draw_precision_recall,
    draw_scores,
    score_colours,
    shrink_micrograph,
)
from emdask.plots import svg_text


def circles_of(axes) -> list[EllipseCollection]:
    return [c for c in axes.collections if isinstance(c, EllipseCollection)]


def test_places_stay_where_they_are_in_a_smaller_picture():
    image = np.zeros((1500, 2000), np.float32)
    y, x = 997, 1204
    image[y, x] = 1.0
    small, (left, right, bottom, top) = shrink_micrograph(image, 40)
    assert max(small.shape) <= PICTURE_PX
    row, column = np.unravel_index(small.argmax(), small.shape)
    step = (right - left) / small.shape[1]
    assert step == (bottom - top) / small.shape[0] == 4.0
    # Of the pixel's centre, to half of one.
    assert abs(left + (column + 0.5) * step - x) <= step / 2
    assert abs(top + (row + 0.5) * step - y) <= step / 2


def test_small_micrographs_keep_their_pixels(rng):
    image = rng.normal(size=(50, 70)).astype(np.float32)
    small = shrink_micrograph(image, 1e-3)
    np.testing.assert_array_equal(small.image, image)
    assert small.extent == (-0.5, 69.5, 49.5, -0.5)


@pytest.mark.parametrize(
    ("low", "threshold", "high"), [(-3.0, 2.0, 9.0), (0.0, 0.9, 1.0), (5.0, 3.0, 8.0), (1, 4, 4)]
)
def test_colours_begin_at_the_threshold(low, threshold, high):
    cmap, norm = score_colours(low, threshold, high)
    step = 3 * (norm.vmax - norm.vmin) / cmap.N
    for score in np.linspace(norm.vmin, norm.vmax, 200):
        red, green, blue, _ = cmap(norm(score))
        if score < threshold - step:
            assert red == green == blue
        if score > threshold + step:
            assert max(red, green, blue) - min(red, green, blue) > 0.2


def test_circles_are_round_the_picks_and_coloured_by_score(rng):
    small = shrink_micrograph(rng.normal(size=(60, 80)), 10)
    x, y, score = np.array([5.0, 70.0]), np.array([8.0, 50.0]), np.array([3.0, 7.0])
    scores = rng.normal(size=(15, 20))
    figure = draw_picks(
        small,
        x,
        y,
        score,
        diameter_px=10,
        threshold=2.0,
        scores=scores,
        extent=(-0.5, 79.5, 59.5, -0.5),
        missed_px=[[30, 31], [40, 41], [1, 2]],
    )
    picture, map_axes, bar = figure.axes
    found, missed = circles_of(picture)
    np.testing.assert_array_equal(found.get_offsets(), np.stack([x, y], axis=1))
    np.testing.assert_array_equal(found.get_array(), score)
    np.testing.assert_allclose(found.get_widths(), 10)
    np.testing.assert_array_equal(missed.get_offsets(), [[30, 31], [40, 41], [1, 2]])
    np.testing.assert_allclose(missed.get_edgecolor(), [to_rgba(MISSED)])
    assert picture.get_title() == "2 picks, 3 known particles missed (dashed)"
    np.testing.assert_array_equal(map_axes.images[0].get_array(), scores)
    # One scale for both, with the threshold marked.
    assert map_axes.images[0].norm is found.norm
    assert found.norm.vmax == 7.0
    assert 2.0 in {float(line.get_ydata()[0]) for line in bar.lines}
    # The first row is on top.
    assert picture.get_ylim() == (59.5, -0.5)
    assert svg_text(figure).startswith("<svg")


@pytest.mark.parametrize("threshold", [-1.0, 3.0])
def test_a_micrograph_without_picks_or_map_is_drawn(threshold):
    small = shrink_micrograph(np.zeros((30, 40)), 5)
    plain = draw_picks(small, [], [], [], diameter_px=5, threshold=threshold)
    assert [axes.get_title() for axes in plain.axes] == ["0 picks", ""]
    dropped = np.full((3, 4), -np.inf)
    extent = (-0.5, 39.5, 29.5, -0.5)
    words = {"diameter_px": 5, "threshold": threshold, "extent": extent}
    figure = draw_picks(small, [], [], [], scores=dropped, **words)
    for drawn in (plain, figure):
        assert svg_text(drawn).startswith("<svg")


def test_histogram_counts_all_scores_and_marks_the_threshold(rng):
    right, wrong = rng.normal(8, 1, 300).clip(4), rng.exponential(1, 200) + 4
    axes = draw_scores({"known particles": right, "others": wrong}, 4.0).axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == 500
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert set(labels) == {"threshold", "known particles", "others"}
    marks = [line for line in axes.lines if line.get_label() == "threshold"]
    assert list(marks[0].get_xdata()) == [4.0, 4.0]


def test_histogram_of_nothing_or_of_one_score_is_drawn():
    for scores in ([], [3.0], [3.0, 3.0]):
        axes = draw_scores({"picks": scores}, 3.0).axes[0]
        assert sum(bar.get_height() for bar in axes.patches) == len(scores)


def test_precision_recall_ends_with_a_dot_at_the_threshold():
    curve = np.array([0.1, 0.4, 0.7]), np.array([1.0, 0.9, 0.6])
    empty = np.empty(0), np.empty(0)
    axes = draw_precision_recall({"near": curve, "far": empty}).axes[0]
    near, dot = axes.lines[:2]
    np.testing.assert_array_equal(near.get_xydata(), np.stack(curve, axis=1))
    np.testing.assert_array_equal(dot.get_xydata(), [[0.7, 0.6]])
    assert (axes.get_ylim()[0], axes.get_xlim()[0]) == (0, 0)


def test_counts_are_in_the_order_of_the_stack():
    axes = draw_counts([3, 0, 8, 4]).axes[0]
    dots, median = axes.lines
    np.testing.assert_array_equal(dots.get_xydata(), [[1, 3], [2, 0], [3, 8], [4, 4]])
    assert median.get_ydata()[0] == 3.5
