"""Classes without references: against truths that are known and definitions in a few lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
from threadpoolctl import threadpool_info, threadpool_limits

from emdask.backend import on_device
from emdask.errors import ParameterError
from emdask.kernels.clusters import (
    Components,
    GaussianClasses,
    KmeansClasses,
    add_sums,
    assign_gmm,
    assign_kmeans,
    find_components,
    fit_gmm,
    fit_kmeans,
    log_densities,
    project,
    sum_features,
)
from emdask.kernels.mixtures import estimate_proportions

CENTRES = np.array([[0.0, 0.0, 0.0], [6.0, 0.0, 1.0], [0.0, 7.0, -2.0], [5.0, 6.0, 9.0]])
SIZES = np.array([120, 80, 60, 40])
FITS: list[Any] = [(fit_kmeans, assign_kmeans), (fit_gmm, assign_gmm)]
either = pytest.mark.parametrize(("fit", "assign"), FITS, ids=["kmeans", "gmm"])


def draw_blobs(rng: np.random.Generator, width: float = 0.5) -> tuple[Any, Any]:
    """Points of four round classes in any order, and their classes, the largest being 0."""
    labels = rng.permutation(np.repeat(np.arange(4), SIZES))
    return CENTRES[labels] + width * rng.normal(size=(len(labels), 3)), labels


# --- Components -----------------------------------------------------------------------------------


def test_components_are_those_of_the_singular_values(rng: np.random.Generator) -> None:
    features = rng.normal(size=(50, 6)) * [5, 4, 3, 2, 1, 0.5] @ rng.normal(size=(6, 6)) + 100
    mean, axes, variances = find_components(sum_features(features), 4)
    _, scales, rows = np.linalg.svd(features - features.mean(axis=0))
    np.testing.assert_allclose(mean, features.mean(axis=0))
    np.testing.assert_allclose(variances, scales[:4] ** 2 / 49, rtol=1e-8)
    np.testing.assert_allclose(np.abs(np.sum(axes * rows[:4], axis=1)), 1, rtol=1e-8)
    np.testing.assert_allclose(axes @ axes.T, np.eye(4), atol=1e-12)


def test_the_largest_number_of_an_axis_is_positive(rng: np.random.Generator) -> None:
    features = rng.normal(size=(30, 5))
    for signed in (features, -features):
        axes = find_components(sum_features(signed), 5).axes
        assert (axes.max(axis=1) > -axes.min(axis=1)).all()


def test_sums_add_up(rng: np.random.Generator) -> None:
    features = rng.normal(size=(20, 3))
    whole = sum_features(features)
    both = add_sums(sum_features(features[:7]), sum_features(features[7:]))
    assert both.n == whole.n == 20
    np.testing.assert_allclose(both.total, features.sum(axis=0))
    np.testing.assert_allclose(both.outer, sum(np.outer(row, row) for row in features))
    nothing = sum_features(features[:0])
    for a, b in zip(add_sums(nothing, whole), whole, strict=True):
        np.testing.assert_array_equal(a, b)


def test_sums_of_half_the_digits_are_in_double(rng: np.random.Generator) -> None:
    features = (rng.normal(size=(1000, 3)) + 1e4).astype(np.float32)
    covariance = np.cov(features.astype(np.float64), rowvar=False)
    components = find_components(sum_features(features), 3)
    assert components.variances.sum() == pytest.approx(np.trace(covariance), rel=1e-6)


def test_points_along_a_line_have_one_component() -> None:
    line = np.array([1, 2]) + np.outer(np.arange(5.0), [3.0, 4.0])
    components = find_components(sum_features(line), 2)
    np.testing.assert_allclose(components.axes[0], [0.6, 0.8])
    np.testing.assert_allclose(components.variances, [62.5, 0], atol=1e-12)
    np.testing.assert_allclose(project(line, components)[:, 0], 5 * np.arange(-2, 3), atol=1e-5)


def test_variances_are_not_negative_by_rounding(rng: np.random.Generator) -> None:
    for _ in range(5):
        flat = 100 + np.outer(rng.normal(size=30), rng.normal(size=8))
        variances = find_components(sum_features(flat), 8).variances
        assert variances.min() >= 0
        assert (np.diff(variances) <= 0).all()


def test_projections_are_of_each_vector_alone(device: str, rng: np.random.Generator) -> None:
    features = rng.normal(size=(40, 9)) * np.arange(1, 10) + 50
    components = find_components(sum_features(features), 3)

    def find_and_project(there: Any) -> Any:
        own = find_components(sum_features(there), 3)
        for a, b in zip(own, components, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8)
        return project(there, components)

    found = on_device(find_and_project, features, device=device)
    expected = (features - components.mean) @ components.axes.T
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    for part in (slice(0, 1), slice(3, 17)):
        alone = on_device(project, features[part], components, device=device)
        np.testing.assert_array_equal(alone, found[part])


def test_what_has_no_components_is_refused(rng: np.random.Generator) -> None:
    sums = sum_features(rng.normal(size=(4, 6)))
    assert len(find_components(sums, 3).axes) == 3
    with pytest.raises(ParameterError, match=r"n_components must be an integer in \[1, 3\]"):
        find_components(sums, 4)
    with pytest.raises(ParameterError, match="n_components must be an integer"):
        find_components(sum_features(np.ones((1, 2))), 1)
    with pytest.raises(ParameterError, match="features must be finite numbers; got '1 of 2 rows"):
        sum_features([[1.0, 2.0], [np.nan, np.inf]])
    with pytest.raises(ParameterError, match=r"features must be a table of shape \(n, 2\)"):
        project(np.ones((3, 4)), Components(np.zeros(2), np.eye(2), np.ones(2)))


# --- Classes --------------------------------------------------------------------------------------


@either
def test_separate_classes_are_found_the_largest_first(
    fit: Any, assign: Any, rng: np.random.Generator
) -> None:
    points, truth = draw_blobs(rng)
    classes = fit(points, 4, 0)
    labels, memberships = assign(points, classes)
    np.testing.assert_array_equal(labels, truth)
    np.testing.assert_allclose(classes.centres, CENTRES, atol=0.25)
    np.testing.assert_allclose(classes.weights, SIZES / SIZES.sum(), atol=1e-6)
    np.testing.assert_array_equal(memberships.argmax(axis=1), labels)
    np.testing.assert_allclose(memberships.sum(axis=1), 1)
    assert labels.dtype == np.int64


@either
def test_classes_do_not_depend_on_luck(fit: Any, assign: Any, rng: np.random.Generator) -> None:
    points, _ = draw_blobs(rng)
    once = fit(points, 4, 7)
    for a, b in zip(fit(points, 4, 7), once, strict=True):
        np.testing.assert_array_equal(a, b)
    for other in (fit(points, 4, 8), fit(points[::-1], 4, 7)):
        for a, b in zip(other, once, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@either
def test_the_seed_is_used(fit: Any, assign: Any, rng: np.random.Generator) -> None:
    cloud = rng.normal(size=(300, 4))
    found = [fit(cloud, 9, seed).centres for seed in range(3)]
    assert any(not np.allclose(other, found[0], atol=1e-3) for other in found[1:])


@either
@pytest.mark.parametrize("shift", [0.0, 1e6])
@pytest.mark.parametrize("scale", [1e-5, 1e5])
def test_units_do_not_matter(
    fit: Any, assign: Any, shift: float, scale: float, rng: np.random.Generator
) -> None:
    points, truth = draw_blobs(rng)
    moved = scale * (points + shift)
    labels, memberships = assign(moved, fit(moved, 4, 0))
    np.testing.assert_array_equal(labels, truth)
    plain = assign(points, fit(points, 4, 0))[1]
    np.testing.assert_allclose(memberships, plain, atol=1e-4)


@either
def test_equal_classes_are_in_order_of_coordinates(fit: Any, assign: Any) -> None:
    points = np.repeat([[5.0, 1.0], [-5.0, 2.0], [5.0, -9.0]], 4, axis=0)
    points += np.tile([[0.1, 0], [-0.1, 0], [0, 0.1], [0, -0.1]], (3, 1))
    classes = fit(points, 3, 0)
    np.testing.assert_allclose(classes.centres, [[-5, 2], [5, -9], [5, 1]], atol=1e-6)


@either
def test_fits_have_one_thread(
    fit: Any, assign: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sklearn.cluster
    import sklearn.mixture

    seen: list[int] = []

    def watch(kind: type) -> None:
        original: Callable[..., Any] = kind.fit  # type: ignore[attr-defined]

        def fit_and_look(self: Any, *args: Any) -> Any:
            seen.extend(pool["num_threads"] for pool in threadpool_info())
            return original(self, *args)

        monkeypatch.setattr(kind, "fit", fit_and_look)

    points, _ = draw_blobs(rng)
    with threadpool_limits(limits=2):
        expected = fit(points, 4, 0)
        watch(sklearn.cluster.KMeans)
        watch(sklearn.mixture.GaussianMixture)
        found = fit(points, 4, 0)
    assert seen
    assert set(seen) == {1}
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_mixture_has_shapes_and_k_means_has_not(rng: np.random.Generator) -> None:
    # Two long classes side by side: k-means cuts both in half.
    truth = np.repeat([0, 1], [400, 200])
    points = rng.normal(size=(600, 2)) * [10, 0.5] + np.array([[0.0, 0.0], [0.0, 4.0]])[truth]
    classes = fit_gmm(points, 2, 0)
    assert (assign_gmm(points, classes)[0] == truth).mean() > 0.99
    np.testing.assert_allclose(classes.weights, [2 / 3, 1 / 3], atol=0.01)
    for covariance in classes.covariances:
        np.testing.assert_allclose(np.diag(covariance), [100, 0.25], rtol=0.25)
    assert (assign_kmeans(points, fit_kmeans(points, 2, 0))[0] == truth).mean() < 0.7


def test_mixtures_that_overlap_have_converged(rng: np.random.Generator) -> None:
    truth = rng.choice(3, 2000, p=[0.6, 0.3, 0.1])
    points = rng.normal(size=(2000, 4)) + 2.5 * np.eye(4)[truth]
    classes = fit_gmm(points, 3, 0)
    shares = estimate_proportions(log_densities(points, classes))
    np.testing.assert_allclose(classes.weights, shares, atol=1e-3)
    np.testing.assert_allclose(classes.weights, [0.6, 0.3, 0.1], atol=0.04)


def test_the_width_of_k_means_is_that_of_its_classes(rng: np.random.Generator) -> None:
    points, truth = draw_blobs(rng)
    classes = fit_kmeans(points, 4, 0)
    assert classes.variance == pytest.approx(((points - classes.centres[truth]) ** 2).mean())
    exact = fit_kmeans(CENTRES, 4, 0)
    assert 0 < exact.variance < 1e-4
    np.testing.assert_allclose(assign_kmeans(exact.centres, exact)[1], np.eye(4), atol=1e-12)


# --- Assignment -----------------------------------------------------------------------------------


def random_gaussians(rng: np.random.Generator) -> GaussianClasses:
    roots = rng.normal(size=(3, 4, 4)) + 2 * np.eye(4)
    covariances = roots @ roots.transpose(0, 2, 1)
    return GaussianClasses(rng.normal(size=(3, 4)), covariances, np.array([0.5, 0.3, 0.2]))


def test_densities_are_those_of_gaussians(device: str, rng: np.random.Generator) -> None:
    classes = random_gaussians(rng)
    points = 3 * rng.normal(size=(30, 4))
    gaussians = [scipy.stats.multivariate_normal(*pair) for pair in zip(*classes[:2], strict=True)]
    expected = np.stack([gaussian.logpdf(points) for gaussian in gaussians], axis=1)
    found = on_device(log_densities, points, classes, device=device)
    np.testing.assert_allclose(found, expected, rtol=1e-9)

    def memberships(there: Any) -> Any:
        return assign_gmm(there, classes)[1]

    joint = np.exp(expected) * classes.weights
    expected = joint / joint.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(on_device(memberships, points, device=device), expected, rtol=1e-8)


def test_mixtures_are_scikit_learns(rng: np.random.Generator) -> None:
    from sklearn.mixture import GaussianMixture

    points, _ = draw_blobs(rng, width=2.5)
    classes = fit_gmm(points, 3, 0)
    peer = GaussianMixture(3)
    peer.weights_, peer.means_ = classes.weights, classes.centres
    peer.covariances_ = classes.covariances
    peer.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(classes.covariances))
    labels, memberships = assign_gmm(points, classes)
    np.testing.assert_allclose(memberships, peer.predict_proba(points), atol=1e-9)
    np.testing.assert_array_equal(labels, peer.predict(points))


def test_nearest_centres_and_their_memberships(device: str, rng: np.random.Generator) -> None:
    classes = KmeansClasses(rng.normal(size=(5, 3)), np.full(5, 0.2), 0.3)
    points = rng.normal(size=(40, 3))
    squares = ((points[:, None] - classes.centres) ** 2).sum(axis=2)
    expected = np.exp(-squares / 0.6) / np.exp(-squares / 0.6).sum(axis=1, keepdims=True)

    def both(there: Any) -> Any:
        labels, memberships = assign_kmeans(there, classes)
        return memberships + 10 * labels[:, None]

    labels = squares.argmin(axis=1)[:, None]
    np.testing.assert_allclose(on_device(both, points, device=device), expected + 10 * labels)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_point_is_assigned_by_itself(dtype: Any, rng: np.random.Generator) -> None:
    points = (3 * rng.normal(size=(50, 4))).astype(dtype)
    gaussians = random_gaussians(rng)
    means = KmeansClasses(gaussians.centres, gaussians.weights, 1.0)
    for assign, classes in ((assign_gmm, gaussians), (assign_kmeans, means)):
        _, whole = assign(points, classes)  # type: ignore[operator]
        for part in (slice(7, 8), slice(3, 30), slice(0, 0)):
            labels, memberships = assign(points[part], classes)  # type: ignore[operator]
            np.testing.assert_array_equal(memberships, whole[part])
            np.testing.assert_array_equal(labels, whole[part].argmax(axis=1))


@either
def test_far_points_are_assigned(fit: Any, assign: Any, rng: np.random.Generator) -> None:
    points, _ = draw_blobs(rng)
    labels, memberships = assign(np.array([[1e6, 1e3, 0.0]]), fit(points, 4, 0))
    assert memberships[0, labels[0]] == pytest.approx(1)
    assert np.isfinite(memberships).all()


# --- Wrong input ----------------------------------------------------------------------------------


@either
def test_wrong_input_is_refused(fit: Any, assign: Any) -> None:
    points = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    assert len(fit(points, 2, 0).centres) == 2
    for n_classes in (3, 4):
        with pytest.raises(ParameterError, match="at most the number of different points, 2; got"):
            fit(points, n_classes, 0)
    for n_classes in (0, 1.5, "2"):
        with pytest.raises(ParameterError, match="n_classes must be an integer of at least 1"):
            fit(points, n_classes, 0)
    for seed in (-1, 2**32, None):
        with pytest.raises(ParameterError, match="seed must be an integer in"):
            fit(points, 1, seed)
    for wrong in (np.nan, np.inf):
        with pytest.raises(ParameterError, match="points must be finite numbers; got '1 of 3 rows"):
            fit(np.array([[0.0, 1.0], [wrong, 0.0], [1.0, 0.0]]), 1, 0)
    for table in (np.zeros(3), np.zeros((3, 0)), np.zeros((2, 2, 2))):
        with pytest.raises(ParameterError, match=r"points must be a table of shape \(n, k\)"):
            fit(table, 1, 0)
    with pytest.raises(ParameterError, match=r"table of shape \(n, 2\); got \(4, 3\)"):
        assign(np.zeros((4, 3)), fit(points, 1, 0))
    with pytest.raises(ParameterError, match="points must be finite numbers"):
        assign(np.array([[0.0, np.nan]]), fit(points, 1, 0))


@either
def test_all_may_be_one_class(fit: Any, assign: Any) -> None:
    points = np.array([[3.0, 4.0], [3.0, 4.0]])
    classes = fit(points, 1, 0)
    np.testing.assert_allclose(classes.centres, [[3, 4]])
    np.testing.assert_allclose(assign(np.array([[3.0, 4.0], [9.0, 9.0]]), classes)[1], 1)
    with pytest.raises(ParameterError, match="there must be at least two points; got 1"):
        fit(points[:1], 1, 0)


@either
def test_dimensions_without_variance_do_not_matter(
    fit: Any, assign: Any, rng: np.random.Generator
) -> None:
    points, truth = draw_blobs(rng)
    flat = np.concatenate([points, np.full((len(points), 1), 7.0), points[:, :1]], axis=1)
    np.testing.assert_array_equal(assign(flat, fit(flat, 4, 0))[0], truth)
