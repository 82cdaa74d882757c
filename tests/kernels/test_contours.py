"""Outlines of particles: masks, contours and their autocorrelation, against slow references."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu
from skimage.segmentation import random_walker

import emdask
from emdask.errors import ParameterError
from emdask.kernels.contours import (
    contour_autocorrelation,
    contour_features,
    longest_contour,
    mask_particle,
    resample_contour,
)

BOX_PX = 64
PIXEL_SIZE_A = 3.0
BOTH = pytest.mark.parametrize("of", ["points", "steps"])


def particle(seed: int = 0) -> Any:
    return emdask.phantom(20, radius_A=40, width_A=10.0, seed=seed)


def projections(rotation_deg: Any, shift_px: Any = (0.0, 0.0), seed: int = 0) -> Any:
    """Exact projections of a particle in one piece, about 25 px wide."""
    return particle(seed).project(
        rotation_deg,
        shift_A=np.multiply(shift_px, PIXEL_SIZE_A),
        box_px=BOX_PX,
        pixel_size_A=PIXEL_SIZE_A,
    )


def in_plane(n: int, rng: np.random.Generator) -> Any:
    """Angles of n images of the view along z."""
    return np.stack([np.zeros(n), np.zeros(n), rng.uniform(0, 360, n)], axis=1)


def discs(*circles: tuple[float, float, float], shape: tuple[int, int] = (40, 50)) -> Any:
    """1 within any of the circles (y, x, radius), 0 elsewhere; edges a pixel wide."""
    y, x = np.indices(shape)
    inside = [np.clip(0.5 + r - np.hypot(y - cy, x - cx), 0, 1) for cy, cx, r in circles]
    return np.max(inside, axis=0)


def length(contour: Any) -> float:
    return float(np.hypot(*np.diff(contour, axis=0).T).sum())


def slow_autocorrelation(points: Any, of: str) -> list[float]:
    """The definition, term by term."""
    n = len(points)
    centre = sum(points) / n
    if of == "points":
        v = [point - centre for point in points]
    else:
        v = [points[(j + 1) % n] - points[j] for j in range(n)]
    return [sum(float(v[j] @ v[j - k]) for j in range(n)) for k in range(n // 2 + 1)]


# --- Autocorrelation ------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_autocorrelation_is_its_definition(n: int, of: Any, rng: np.random.Generator) -> None:
    stack = rng.normal(size=(2, 3, n, 2)) + 5
    found = contour_autocorrelation(stack, of=of)
    assert found.shape == (2, 3, n // 2 + 1)
    for i in np.ndindex(2, 3):
        assert_allclose(found[i], slow_autocorrelation(stack[i], of), atol=1e-10)


def test_circle_has_a_cosine() -> None:
    angle = 2 * np.pi * np.arange(100) / 100
    circle = 7.0 * np.stack([np.sin(angle), np.cos(angle)], axis=1) + [30, 20]
    wave = np.cos(angle[:51])
    assert_allclose(contour_autocorrelation(circle), 100 * 49 * wave, atol=1e-9)
    step = 14 * np.sin(np.pi / 100)
    assert_allclose(contour_autocorrelation(circle, of="steps"), 100 * step**2 * wave, atol=1e-9)


@BOTH
@pytest.mark.parametrize("normalise", [False, True])
def test_autocorrelation_does_not_see_where_a_contour_is(
    of: Any, normalise: bool, rng: np.random.Generator
) -> None:
    points = rng.normal(size=(30, 2))
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    others = [points + np.array([4, -9]), points @ turn, np.roll(points, 11, axis=0), points[::-1]]
    others += [points * [1, -1], points[:, ::-1]]
    expected = contour_autocorrelation(points, of=of, normalise=normalise)
    for other in others:
        found = contour_autocorrelation(other, of=of, normalise=normalise)
        assert_allclose(found, expected, atol=1e-10)
    sheared = contour_autocorrelation(points @ [[1, 0.5], [0, 1]], of=of, normalise=normalise)
    assert abs(sheared - expected).max() > 0.05


@BOTH
def test_size_counts_unless_normalised(of: Any, rng: np.random.Generator) -> None:
    points = rng.normal(size=(20, 2))
    small, large = (contour_autocorrelation(scale * points, of=of) for scale in (1, 3))
    assert_allclose(large, 9 * small)
    small, large = (
        contour_autocorrelation(scale * points, of=of, normalise=True) for scale in (1, 3)
    )
    assert_allclose(large, small)
    assert small[0] == 1


def test_steps_are_the_second_difference_of_points(rng: np.random.Generator) -> None:
    points = contour_autocorrelation(stack := rng.normal(size=(12, 2)))
    around = np.concatenate([points[1:2], points, points[-2:-1]])
    expected = 2 * points - around[:-2] - around[2:]
    assert_allclose(contour_autocorrelation(stack, of="steps"), expected, atol=1e-12)


def test_one_place_has_no_shape() -> None:
    points = np.full((6, 2), 2.5)
    assert_array_equal(contour_autocorrelation(points), np.zeros(4))
    assert np.isnan(contour_autocorrelation(points, normalise=True)).all()


def test_bad_points_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"points must have the shape .*; got \(4, 3\)"):
        contour_autocorrelation(np.zeros((4, 3)))
    with pytest.raises(ParameterError, match=r"got \(0, 2\)"):
        contour_autocorrelation(np.zeros((0, 2)))
    with pytest.raises(ParameterError, match="of must be one of points, steps; got 'edges'"):
        contour_autocorrelation(np.zeros((4, 2)), of="edges")  # type: ignore[arg-type]


# --- Resampling -----------------------------------------------------------------------------------


def test_points_lie_at_equal_arcs(rng: np.random.Generator) -> None:
    """Against a walk along the corners in steps of a ten-thousandth."""
    corners = rng.normal(size=(9, 2))
    closed = np.concatenate([corners, corners[:1]])
    walk = np.concatenate(
        [a + (b - a) * np.arange(10_000)[:, None] / 10_000 for a, b in pairwise(closed)]
    )
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(walk, axis=0).T))])
    nearest = [walk[abs(arc - length(closed) * k / 13).argmin()] for k in range(13)]
    assert_allclose(resample_contour(corners, 13), nearest, atol=1e-3)


def test_the_first_corner_may_be_repeated(rng: np.random.Generator) -> None:
    corners = rng.normal(size=(8, 2))
    twice = np.concatenate([corners, corners[:1]])
    assert_array_equal(resample_contour(twice), resample_contour(corners))
    halved = np.insert(corners, 3, (corners[2] + corners[3]) / 2, axis=0)
    assert_allclose(resample_contour(halved, 50), resample_contour(corners, 50), atol=1e-12)


def test_a_contour_of_one_corner_stays_there() -> None:
    assert_array_equal(resample_contour([[3, 4]], 5), np.tile([3.0, 4.0], (5, 1)))


def test_bad_contours_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"contour must have the shape \(m, 2\); got \(0, 2\)"):
        resample_contour(np.zeros((0, 2)))
    with pytest.raises(ParameterError, match="n_points must be an integer of at least 3; got 2"):
        resample_contour([[0, 0], [0, 1], [1, 1]], 2)


# --- Masks ----------------------------------------------------------------------------------------


def slow_mask(image: Any) -> Any:
    """Otsu's threshold and the random walker of scikit-image, with all pixels and labels."""
    grey = (image - image.mean()) / image.std()
    threshold = threshold_otsu(grey)
    markers = np.zeros(grey.shape, int)
    markers[grey < threshold - 0.5 * grey[grey < threshold].std()] = 1
    markers[grey > threshold + 0.5 * grey[grey > threshold].std()] = 2
    assert set(np.unique(markers)) == {0, 1, 2}
    return random_walker(grey, markers, beta=10, mode="bf", return_full_prob=True)[1]


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
def test_mask_is_that_of_the_random_walker(noise: float, rng: np.random.Generator) -> None:
    image = projections([[20, 50, 0]])[0, 5:].astype("f8")
    image += noise * image.std() * rng.normal(size=image.shape)
    mask = mask_particle(image)
    assert_allclose(mask, slow_mask(image), atol=1e-9)
    assert ((mask > 0.01) & (mask < 0.99)).mean() > 0.02


def test_one_undecided_pixel_is_the_mean_of_its_neighbours() -> None:
    """Otsu's threshold is the level of the pixel itself: the highest of the ground."""
    image = np.where(np.arange(8) < 4, 2.0, 12.0) - 2.0 * (np.indices((8, 8)).sum(axis=0) % 2)
    expected = image > 6
    image[3, 3] = 5.0
    neighbours = image[[2, 4, 3, 3], [3, 3, 2, 4]]
    weights = np.exp(-np.square((neighbours - 5) / image.std()))
    mask = mask_particle(image)
    assert mask[3, 3] == pytest.approx(weights[neighbours > 6].sum() / weights.sum(), rel=1e-6)
    assert 0.01 < mask[3, 3] < 0.3
    assert_array_equal(np.delete(mask, 27), np.delete(expected, 27))


def test_a_pixel_too_far_from_its_neighbours_belongs_to_them() -> None:
    """Undecided, at Otsu's threshold; its weights alone would be 0 to rounding."""
    image = np.zeros((128, 128))
    image[30, 40], image[90, 70] = 40.0, 100.0
    assert np.exp(-np.square(40 / image.std())) == 0
    assert_array_equal(np.argwhere(mask_particle(image) > 1e-9), [[90, 70]])


def test_two_levels_are_told_apart() -> None:
    inside = discs((20, 22, 9)) > 0.5
    assert_array_equal(mask_particle(np.where(inside, 5.0, 4.0)), inside)
    assert_array_equal(mask_particle(inside), inside)


@pytest.mark.parametrize("value", [0.0, -3.25, 1e8])
def test_constant_images_have_no_particle(value: float) -> None:
    image = np.full((9, 8), value)
    assert_array_equal(mask_particle(image), np.zeros((9, 8)))
    rounded = image.astype("f4") * (1 + 1e-7 * (np.indices(image.shape).sum(0) % 2)).astype("f4")
    assert_array_equal(mask_particle(rounded), np.zeros((9, 8)))


# --- Contours -------------------------------------------------------------------------------------


def test_the_longest_contour_is_around_the_largest_disc() -> None:
    contour = longest_contour(discs((10, 12, 5), (25, 33, 11), (33, 8, 3)))
    assert contour is not None
    assert_array_equal(contour[0], contour[-1])
    assert_allclose(np.hypot(*(contour - [25, 33]).T), 11, atol=0.15)
    assert length(contour) == pytest.approx(2 * np.pi * 11, rel=0.01)


def test_the_longest_is_the_outer_one() -> None:
    ring = discs((20, 25, 12)) - discs((20, 25, 6))
    contour = longest_contour(ring)
    assert contour is not None
    assert_allclose(np.hypot(*(contour - [20, 25]).T), 12, atol=0.15)


def test_the_longest_is_not_that_of_most_corners() -> None:
    """Diagonals cross more edges between pixels than their length tells."""
    y, x = np.indices((40, 60))
    square = np.maximum(abs(y - 20), abs(x - 15)) <= 8
    diamond = abs(y - 20) + abs(x - 45) <= 10
    lone = [longest_contour(mask.astype("f8")) for mask in (square, diamond)]
    assert lone[0] is not None
    assert lone[1] is not None
    assert len(lone[0]) < len(lone[1])
    assert length(lone[0]) > length(lone[1])
    assert_array_equal(longest_contour((square | diamond).astype("f8")), lone[0])


def test_contours_follow_the_level() -> None:
    y, x = np.indices((40, 40))
    cone = np.clip(1 - np.hypot(y - 20, x - 20) / 16, 0, 1)
    for level, radius_px in ((0.25, 12), (0.5, 8)):
        contour = longest_contour(cone, level)
        assert contour is not None
        assert_allclose(np.hypot(*(contour - 20).T), radius_px, atol=0.1)


def test_contours_that_the_border_cuts_are_none() -> None:
    assert longest_contour(np.zeros((8, 8))) is None
    assert longest_contour(np.ones((8, 8))) is None
    assert longest_contour(discs((20, 3, 9))) is None
    assert longest_contour(discs((20, 3, 9), (20, 30, 2))) is None
    beside = longest_contour(discs((0, 3, 4), (20, 30, 9)))
    assert beside is not None
    assert_allclose(beside.mean(axis=0), [20, 30], atol=0.2)


# --- Features -------------------------------------------------------------------------------------


@BOTH
def test_features_are_those_of_the_outline(of: Any) -> None:
    """Of a disc: the radius, or the length of a step."""
    (feature,) = contour_features(discs((22, 25, 13))[None], of=of)
    (other,) = contour_features(discs((19.3, 24.6, 13))[None], of=of)
    wave = np.cos(2 * np.pi * np.arange(51) / 100)
    first = 100 * (13**2 if of == "points" else (2 * np.pi * 13 / 100) ** 2)
    assert feature.dtype == np.float32
    assert feature.shape == (51,)
    assert_allclose(feature, first * wave, atol=0.04 * first)
    assert_allclose(other, first * wave, atol=0.08 * first)


@BOTH
@pytest.mark.parametrize("normalise", [False, True])
def test_grey_level_and_offset_do_not_matter(
    of: Any, normalise: bool, rng: np.random.Generator
) -> None:
    image = projections([[0, 30, 0]])
    image = image + 0.1 * image.std() * gaussian_filter(rng.normal(size=image.shape), (0, 2, 2))
    expected = contour_features(image, of=of, normalise=normalise)
    assert np.isfinite(expected).all()
    for other in (8 * image, 1e-20 * image.astype("f8"), 731.7 * image.astype("f8") + 4000):
        found = contour_features(other, of=of, normalise=normalise)
        assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_features_do_not_see_shift_turn_and_mirror(rng: np.random.Generator) -> None:
    """They change by 3 % at most, and by less than half of what lies between two particles."""
    kept = contour_features(projections([[0, 0, 0]]))
    far = contour_features(projections([[0, 0, 0]], seed=1))
    turned = projections(in_plane(12, rng), rng.uniform(-4, 4, (12, 2)))
    same = contour_features(np.concatenate([turned, turned[:, ::-1], turned.swapaxes(1, 2)]))
    change = np.linalg.norm(same - kept, axis=1).max()
    assert change < 0.03 * np.linalg.norm(kept)
    assert change < 0.5 * np.linalg.norm(far - kept)


def test_whole_shifts_and_quarter_turns_change_nearly_nothing() -> None:
    image = projections([[0, 0, 33]])
    (feature,) = contour_features(image)
    moved = [np.roll(image, (5, -7), (1, 2)), np.rot90(image, axes=(1, 2)), image[:, :, ::-1]]
    assert_allclose(contour_features(np.concatenate(moved)), [feature] * 3, atol=2e-3 * feature[0])


@BOTH
def test_a_particle_twice_as_large(of: Any) -> None:
    small, large = (
        particle().project([[0, 0, 0]], box_px=box_px, pixel_size_A=size_A)
        for box_px, size_A in ((64, 3.0), (128, 1.5))
    )
    small_feature, large_feature = (contour_features(image, of=of) for image in (small, large))
    assert_allclose(large_feature, 4 * small_feature, atol=0.08 * large_feature.max())
    shapes = [contour_features(image, of=of, normalise=True) for image in (small, large)]
    assert_allclose(shapes[0], shapes[1], atol=0.05)
    assert_array_equal(shapes[0][:, 0], 1)


def test_nearest_reference_tells_conformations(rng: np.random.Generator) -> None:
    """Four states of a particle, one arm of which turns by 20 degrees from each to the next."""
    y, x = np.indices((BOX_PX, BOX_PX)) - BOX_PX // 2

    def draw(state: int, psi_deg: float, shift_px: Any) -> Any:
        image = np.zeros((BOX_PX, BOX_PX))
        for angle_deg, reach_px in (
            (180, 9),
            (180, 0),
            (90 - 20 * state, 9),
            (90 - 20 * state, 16),
        ):
            angle = np.radians(angle_deg + psi_deg)
            cy, cx = reach_px * np.sin(angle), reach_px * np.cos(angle)
            image += np.exp(-(np.hypot(y - cy - shift_px[0], x - cx - shift_px[1]) ** 2) / 32)
        return image

    references = contour_features(np.stack([draw(state, 0, (0, 0)) for state in range(4)]))
    states = np.repeat(np.arange(4), 8)
    images = np.stack([draw(state, rng.uniform(0, 360), rng.uniform(-4, 4, 2)) for state in states])
    distances = np.linalg.norm(contour_features(images)[:, None] - references, axis=-1)
    assert_array_equal(distances.argmin(axis=1), states)


def test_images_without_contour_have_no_numbers() -> None:
    particle = projections([[0, 0, 0]])[0]
    cut, broken, endless = np.roll(particle, 28, axis=1), particle.copy(), particle.copy()
    broken[3, 4] = np.nan
    endless[3, 4] = np.inf
    gradient = np.broadcast_to(np.arange(float(BOX_PX)), particle.shape)
    images = np.stack([particle, np.zeros_like(particle), cut, broken, endless, gradient, particle])
    features = contour_features(images)
    assert np.isnan(features).all(axis=1).tolist() == [False, True, True, True, True, True, False]
    assert np.isfinite(features[[0, -1]]).all()
    assert_array_equal(features[0], features[-1])
    assert_array_equal(contour_features(images, normalise=True)[1:6], np.full((5, 51), np.nan))


@pytest.mark.parametrize("shape", [(2, 2), (3, 2), (7, 5), (32, 32)])
def test_noise_does_not_raise(shape: tuple[int, int], rng: np.random.Generator) -> None:
    features = contour_features(rng.normal(size=(40, *shape)))
    whole = np.isfinite(features).all(axis=1)
    assert (whole | np.isnan(features).all(axis=1)).all()
    assert (features[whole, 0] > 0).all()
    assert not whole.any() if shape[1] == 2 else whole.any()


def test_features_do_not_depend_on_the_type_or_on_images_beside(rng: np.random.Generator) -> None:
    images = np.rint(50 * projections(in_plane(3, rng)) / projections([[0, 0, 0]]).max())
    expected = contour_features(images.astype("f4"))
    for dtype in ("i1", "u2", "f2", "f8"):
        assert_array_equal(contour_features(images.astype(dtype)), expected)
    assert_array_equal(contour_features(images[1:2]), expected[1:2])
    assert contour_features(images[:0]).shape == (0, 51)


def test_bad_stacks_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"images must be a stack .*; got \(8, 8\)"):
        contour_features(np.zeros((8, 8)))
    with pytest.raises(ParameterError, match=r"of at least 2 x 2 px; got \(3, 8, 1\)"):
        contour_features(np.zeros((3, 8, 1)))
    with pytest.raises(ParameterError, match="of must be one of points, steps"):
        contour_features(np.zeros((0, 8, 8)), of="corners")  # type: ignore[arg-type]
