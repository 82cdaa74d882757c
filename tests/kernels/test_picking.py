"""Steps from score maps to picks, against loops over all cells and all pairs."""

import numpy as np
import pytest

from emdask.kernels.picking import clean_scores, filter_peaks, sort_picks


def random_map(rng: np.random.Generator, shape: tuple[int, int], levels: int | None) -> np.ndarray:
    """A map of noise; with few levels neighbours are often equal."""
    scores = rng.normal(size=shape)
    return (scores if levels is None else np.floor(levels * scores) / levels).astype(np.float32)


def peaks_by_loops(scores: np.ndarray, threshold: float, width: int) -> list[tuple[int, int]]:
    """Cells of a threshold and more that none in their window exceeds."""
    reach = width // 2
    h, w = scores.shape
    found = []
    for i in range(h):
        for j in range(w):
            window = scores[
                max(i - reach, 0) : i + reach + 1, max(j - reach, 0) : min(j + reach + 1, w)
            ]
            if scores[i, j] >= threshold and scores[i, j] == np.nanmax(window):
                found.append((i, j))
    return found


def suppress_all_pairs(
    points: list[tuple[float, float, float]], distance: float
) -> list[tuple[float, float, float]]:
    """Greedy suppression over all pairs of (score, y, x)."""
    kept: list[tuple[float, float, float]] = []
    for score, y, x in sorted(points, key=lambda p: (-p[0], p[1], p[2])):
        if all(np.hypot(y - other[1], x - other[2]) >= distance for other in kept):
            kept.append((score, y, x))
    return kept


def blobs(
    shape: tuple[int, int], centres: list[tuple[float, float]], width: float, height: float = 1.0
) -> np.ndarray:
    y, x = np.indices(shape)
    terms = [np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2)) for cy, cx in centres]
    return (height * np.sum(terms, 0)).astype(np.float32)


@pytest.mark.parametrize(("diameter", "width"), [(2.0, 3), (7.0, 5), (12.5, 9), (30.0, 19)])
def test_peaks_are_the_highest_of_their_window(
    rng: np.random.Generator, diameter: float, width: int
) -> None:
    scores = random_map(rng, (37, 53), None)
    x, y, score = filter_peaks(scores, 0.4, diameter, distance=0.0)
    cells = {(round(b), round(a)) for a, b in zip(x, y, strict=True)}
    assert cells == set(peaks_by_loops(scores, 0.4, width))
    assert (np.diff(score) <= 0).all()


@pytest.mark.parametrize("distance", [1.0, 4.0, 9.5, 1000.0])
def test_greedy_suppression_is_that_over_all_pairs(
    rng: np.random.Generator, distance: float
) -> None:
    scores = random_map(rng, (60, 45), None)
    x, y, score = filter_peaks(scores, -1.0, 2.0, distance=0.0)
    expected = suppress_all_pairs(list(zip(score, y, x, strict=True)), distance)
    x, y, score = filter_peaks(scores, -1.0, 2.0, distance)
    np.testing.assert_array_equal(np.column_stack([score, y, x]), expected)


def test_equal_scores_are_taken_row_by_row() -> None:
    scores = np.zeros((20, 20), np.float32)
    for y, x in [(3, 12), (3, 4), (9, 4), (16, 16)]:
        scores[y, x] = 1
    x, y, _ = filter_peaks(scores, 0.5, 4.0, distance=7.0)
    assert list(zip(y, x, strict=True)) == [(3, 4), (3, 12), (16, 16)]
    x, y, _ = filter_peaks(scores, 0.5, 4.0, distance=6.0)  # just as far as that: kept
    assert list(zip(y, x, strict=True)) == [(3, 4), (3, 12), (9, 4), (16, 16)]


def test_ties_in_maps_of_few_levels_keep_their_distance(rng: np.random.Generator) -> None:
    scores = random_map(rng, (50, 50), 1)
    x, y, _ = filter_peaks(scores, 0.5, 6.0, distance=5.0)
    assert len(x) > 5
    apart = np.hypot(x[:, None] - x, y[:, None] - y) + 100 * np.eye(len(x))
    assert apart.min() >= 5.0


def test_a_plateau_is_one_peak_in_its_middle() -> None:
    scores = np.zeros((30, 30), np.float32)
    scores[4:7, 10:15] = 1
    scores[20:22, 20:22] = 2
    x, y, score = filter_peaks(scores, 0.5, 8.0, distance=4.0)
    assert (list(x), list(y), list(score)) == ([20.5, 12.0], [20.5, 5.0], [2.0, 1.0])


def test_what_is_flat_beyond_a_diameter_is_no_peak() -> None:
    scores = np.zeros((30, 30), np.float32)
    scores[4:7, 3:27] = 1
    scores[20, 20] = 1
    x, y, _ = filter_peaks(scores, 0.5, 8.0, distance=4.0)
    assert (list(x), list(y)) == ([20.0], [20.0])


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan, -np.inf, np.inf])
@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (20, 30), (0, 5)])
def test_constant_maps_have_no_peaks(value: float, shape: tuple[int, int]) -> None:
    scores = np.full(shape, value, np.float32)
    for part in (scores, clean_scores(scores, 0.5, 5.0)):
        assert [len(column) for column in filter_peaks(part, 0.5, 5.0, 5.0)] == [0, 0, 0]


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_flat_maps_as_high_as_the_threshold_have_no_peaks(value: float) -> None:
    scores = np.full((20, 30), value, np.float32)
    scores[4, 4] = -np.inf
    scores[9, 9] = value - 1
    assert len(filter_peaks(scores, value, 5.0, 5.0)[0]) == 0


def test_the_threshold_itself_is_high_enough() -> None:
    scores = np.zeros((20, 20), np.float32)
    scores[5, 5], scores[14, 14] = 0.5, np.nextafter(np.float32(0.5), np.float32(0))
    x, y, score = filter_peaks(scores, 0.5, 5.0, 5.0)
    assert (list(x), list(y), list(score)) == ([5.0], [5.0], [0.5])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (7, 9)])
def test_cells_alone_among_what_is_not_scored_give_no_warning(shape: tuple[int, int]) -> None:
    scores = np.full(shape, -np.inf, np.float32)
    scores[shape[0] // 2, shape[1] // 2] = 2
    x, y, score = filter_peaks(scores, 1.0, 5.0, 5.0)
    assert (list(x), list(y), list(score)) == ([shape[1] // 2], [shape[0] // 2], [2.0])
    row = np.linspace(0, 1, scores.size, dtype=np.float32).reshape(shape)
    assert np.isfinite(filter_peaks(row, 0.5, 5.0, 5.0)).all()


def test_peaks_are_found_between_cells() -> None:
    centres = [(10.3, 12.2), (30.75, 40.5), (12.0, 45.9)]
    x, y, _ = filter_peaks(blobs((48, 64), centres, 4.0), 0.2, 10.0, 10.0)
    found = sorted(zip(y, x, strict=True))
    np.testing.assert_allclose(found, sorted(centres), atol=0.03)


def test_peaks_at_the_border_are_found_and_not_moved_across_it() -> None:
    centres = [(0.0, 0.0), (39.0, 20.4), (20.0, 49.0), (-3.0, 30.0)]
    x, y, score = filter_peaks(blobs((40, 50), centres, 3.0), 0.2, 8.0, 8.0)
    found = sorted(zip(y, x, strict=True))
    np.testing.assert_allclose(found, [(0, 0), (0, 30), (20, 49), (39, 20.4)], atol=0.05)
    assert (np.diff(score) <= 0).all()


def test_what_is_not_finite_is_not_scored() -> None:
    scores = blobs((40, 40), [(10, 10), (30, 30)], 3.0)
    scores[30, 30] = np.nan
    scores[10, 14] = np.inf
    scores[10, 5] = -np.inf
    x, y, score = filter_peaks(scores, 0.9, 8.0, 8.0)
    assert np.isfinite(np.concatenate([x, y, score])).all()
    assert (x[0], y[0]) == (10, 10)
    assert len(x) == 2
    assert np.hypot(x[1] - 30, y[1] - 30) < 2
    cleaned = clean_scores(scores, 0.9, 8.0)
    assert cleaned[30, 30] == cleaned[10, 14] == -np.inf
    ordinary = np.isfinite(scores)
    np.testing.assert_array_equal(cleaned[ordinary], scores[ordinary])


def test_the_map_itself_is_left_as_it_was(rng: np.random.Generator) -> None:
    scores = random_map(rng, (30, 40), None) + 2
    before = scores.copy()
    clean_scores(scores, 0.0, 4.0)
    filter_peaks(scores, 0.0, 4.0, 4.0)
    np.testing.assert_array_equal(scores, before)


def thick_by_loops(scores: np.ndarray, threshold: float, diameter: float) -> np.ndarray:
    """What is near a cell around which a disc of 1.5 diameters lies above the threshold."""
    cells = np.argwhere(np.ones(scores.shape))
    low = np.argwhere(~(scores > threshold))
    thick = [c for c in cells if np.hypot(*(low - c).T).min() > 0.75 * diameter]
    near = [any(np.hypot(*(c - t)) <= 1.25 * diameter for t in thick) for c in cells]
    return np.array(near).reshape(scores.shape)


def test_regions_are_dropped_where_a_large_disc_fits(rng: np.random.Generator) -> None:
    scores = blobs((40, 48), [(12, 14), (14, 20), (30, 40)], 5.0) + blobs((40, 48), [(30, 10)], 2.0)
    scores += np.float32(0.05) * random_map(rng, scores.shape, None)
    dropped = np.isneginf(clean_scores(scores, 0.3, 6.0))
    np.testing.assert_array_equal(dropped, thick_by_loops(scores, 0.3, 6.0))
    assert 0 < dropped.mean() < 1


def test_particles_that_touch_survive_in_any_number() -> None:
    d = 10.0
    rows = [(9 + 8.7 * i, 8 + d * j + 5 * (i % 2)) for i in range(9) for j in range(9)]
    scores = np.max([blobs((96, 108), [row], 0.3 * d) for row in rows], axis=0)
    threshold = 0.2
    touching = scores[20:60, 20:60] > threshold
    assert touching.mean() > 0.9  # one region, holes alone between three neighbours
    cleaned = clean_scores(scores, threshold, d)
    np.testing.assert_array_equal(cleaned, scores)
    x, _, _ = filter_peaks(cleaned, threshold, d, 0.7 * d)
    assert len(x) == len(rows)


def test_a_lump_is_dropped_and_the_particles_around_it_stay() -> None:
    d = 8.0
    particles = [(40 + 24 * np.sin(a), 40 + 24 * np.cos(a)) for a in np.arange(0, 6.2, 0.9)]
    scores = blobs((80, 80), particles, 2.0)
    y, x = np.indices(scores.shape)
    scores[np.hypot(y - 40, x - 40) < 16] = 3
    cleaned = clean_scores(scores, 0.4, d)
    found = filter_peaks(cleaned, 0.4, d, d)
    assert len(found[0]) == len(particles)
    assert np.hypot(found[0] - 40, found[1] - 40).min() > 22


def test_carbon_at_the_border_is_dropped_to_the_border() -> None:
    scores = blobs((60, 60), [(30, 45)], 2.0)
    scores[:, :10] = 1
    cleaned = clean_scores(scores, 0.5, 8.0)
    assert np.isneginf(cleaned[:, :10]).all()
    assert cleaned[30, 45] == scores[30, 45]


def test_a_map_that_is_all_above_the_threshold_is_all_dropped() -> None:
    assert np.isneginf(clean_scores(np.ones((50, 50), np.float32), 0.5, 8.0)).all()


def test_picks_are_sorted_by_score_and_equal_ones_by_place(rng: np.random.Generator) -> None:
    x, y, score = rng.integers(0, 4, (3, 200)).astype(float)
    rows = sorted(zip(score, y, x, strict=True), key=lambda p: (-p[0], p[1], p[2]))
    x, y, score = sort_picks(x, y, score)
    assert list(zip(score, y, x, strict=True)) == rows


def test_no_picks_are_sorted_too() -> None:
    none = np.zeros(0)
    assert [len(column) for column in sort_picks(none, none, none)] == [0, 0, 0]
