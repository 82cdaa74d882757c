"""Classes of feature vectors without references: principal components, k-means, Gaussian mixtures.

Components come from sums that add up over the chunks of a stack. Classes are fitted on the host, by
scikit-learn, to as many points as memory holds; what is fitted are a few plain arrays, and points
are assigned by them alone, wherever they are, in NumPy or CuPy.

Classes are sorted, the largest first, and all random numbers come of the seed: the same points give
the same classes, on any number of threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace, one_blas_thread, to_host
from emdask.checks import check_integer, require
from emdask.kernels.mixtures import posteriors
from emdask.kernels.row_products import multiply_rows, pack_matrix

__all__ = [
    "Components",
    "FeatureSums",
    "GaussianClasses",
    "KmeansClasses",
    "add_sums",
    "assign_gmm",
    "assign_kmeans",
    "find_components",
    "fit_gmm",
    "fit_kmeans",
    "log_densities",
    "project",
    "sum_features",
]

Doubles = npt.NDArray[np.float64]

WHAT = "clusters"
# The largest that scikit-learn takes.
MAX_SEED = 2**32 - 1
# Starts, of which the best is kept, and most steps.
N_STARTS = {"kmeans": 10, "gmm": 5}
N_STEPS = 5000
# Gain of the log-likelihood of a point in a step, below which starts of mixtures are compared, and
# below which the best has converged: where classes overlap, weights are far off after the first.
COARSE_GAIN, FINE_GAIN = 1e-3, 1e-6
# Of the variance of all points: no class has less, and no direction less of the mean of all.
LEAST_VARIANCE = 1e-6
# After the point, in which weights of classes and coordinates of centres are told apart.
N_DIGITS = 6


class FeatureSums(NamedTuple):
    """What adds up over feature vectors, in float64 of the host.

    Attributes
    ----------
    n
        Number of the vectors.
    total : shape (f,)
        Their sum.
    outer : shape (f, f)
        Sum of their outer products with themselves.
    """

    n: int
    total: Doubles
    outer: Doubles


class Components(NamedTuple):
    """Principal components, the strongest first; of the host.

    Attributes
    ----------
    mean : shape (f,)
        Of the vectors.
    axes : shape (c, f)
        Orthonormal; the largest number of each is positive.
    variances : shape (c,)
        Of the vectors along them.
    """

    mean: Doubles
    axes: Doubles
    variances: Doubles


class KmeansClasses(NamedTuple):
    """Classes of k-means, the largest first; of the host.

    Attributes
    ----------
    centres : shape (k, c)
        Means of their points.
    weights : shape (k,)
        Share of the points that each has.
    variance
        Of points about the centres of their classes, in one dimension.
    """

    centres: Doubles
    weights: Doubles
    variance: float


class GaussianClasses(NamedTuple):
    """Gaussians of a mixture, that of most weight first; of the host.

    Attributes
    ----------
    centres : shape (k, c)
        Their means.
    covariances : shape (k, c, c)
        Positive definite.
    weights : shape (k,)
        In all 1.
    """

    centres: Doubles
    covariances: Doubles
    weights: Doubles


def sum_features(features: Any) -> FeatureSums:
    """Add up feature vectors and their outer products.

    Parameters
    ----------
    features : array, shape (n, f)
        NumPy or CuPy. There may be none.

    Returns
    -------
    FeatureSums
        Of f² numbers.

    Raises
    ------
    ParameterError
        If a feature is not finite.

    Examples
    --------
    >>> sum_features(np.array([[1.0, 2.0], [3.0, 4.0]])).outer
    array([[10., 14.],
           [14., 20.]])
    """
    values = _check_points(features, "features")
    return FeatureSums(len(values), to_host(values.sum(axis=0)), to_host(values.T @ values))


def add_sums(a: FeatureSums, b: FeatureSums) -> FeatureSums:
    """Combine the sums of two parts of a stack.

    Examples
    --------
    >>> one = sum_features(np.ones((2, 3)))
    >>> add_sums(one, one).n
    4
    """
    return FeatureSums(a.n + b.n, a.total + b.total, a.outer + b.outer)


def find_components(sums: FeatureSums, n_components: int) -> Components:
    """Return the principal components of vectors by their sums.

    Parameters
    ----------
    sums
        Over all vectors.
    n_components
        Of them as many as there are features at most, and less than there are vectors.

    Returns
    -------
    Components

    Raises
    ------
    ParameterError
        If the number is out of range.

    Notes
    -----
    Eigenvectors of ``(outer - total totalᵀ / n) / (n - 1)``. In float64 the difference loses what
    is below 1e-16 of the squares of the means: features should not lie further from 0 than a
    million times their scatter.

    Examples
    --------
    >>> points = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
    >>> find_components(sum_features(points), 1)
    Components(mean=array([2., 1.]), axes=array([[1., 0.]]), variances=array([4.]))
    """
    from scipy.linalg import eigh

    n_features = len(sums.total)
    check_integer(WHAT, "n_components", n_components, 1, min(n_features, sums.n - 1))
    mean = sums.total / sums.n
    covariance = (sums.outer - np.outer(mean, sums.total)) / (sums.n - 1)
    with one_blas_thread:
        strongest = (n_features - n_components, n_features - 1)
        variances, columns = eigh(covariance, subset_by_index=strongest)
    axes = columns[:, ::-1].T
    largest = np.abs(axes).argmax(axis=1)[:, None]
    # Adding 0 makes zeros positive.
    axes = axes * np.sign(np.take_along_axis(axes, largest, axis=1)) + 0.0
    return Components(mean, axes, np.maximum(variances[::-1], 0))


def project(features: Any, components: Components) -> Any:
    """Return the coordinates of feature vectors along principal components.

    Parameters
    ----------
    features : array, shape (n, f)
        NumPy or CuPy.
    components
        Of as many features.

    Returns
    -------
    float32 array, shape (n, c)
        Of the library of the features. Those of a vector do not depend on what is beside it.

    Raises
    ------
    ParameterError
        If a feature is not finite, or the numbers of features differ.

    Examples
    --------
    >>> components = Components(np.array([2.0, 1.0]), np.array([[1.0, 0.0]]), np.ones(1))
    >>> project(np.array([[5.0, 1.0]]), components)
    array([[3.]], dtype=float32)
    """
    xp = array_namespace(features)
    values = _check_points(features, "features", len(components.mean))
    centred = (values - xp.asarray(components.mean)).astype(np.float32)
    return multiply_rows(centred, pack_matrix(components.axes.T, xp))


def fit_kmeans(points: npt.ArrayLike, n_classes: int, seed: int) -> KmeansClasses:
    """Find classes by k-means: centres from which points are least far.

    Parameters
    ----------
    points : array, shape (n, c)
        Of the host. Distances count all dimensions alike.
    n_classes
        As many as there are different points at most.
    seed
        0 to 2^32 - 1.

    Returns
    -------
    KmeansClasses
        Of equal weights, that of the smallest coordinates first.

    Raises
    ------
    ParameterError
        If there are less than two points, a coordinate is not finite, or a number is out of range.

    Notes
    -----
    Lloyd's algorithm from the best of ten starts by k-means++ (Arthur and Vassilvitskii,
    "k-means++: the advantages of careful seeding", SODA 2007, 1027-1035), of scikit-learn.

    Examples
    --------
    >>> fit_kmeans([[0.0], [9.0], [8.0], [10.0]], 2, seed=0).centres
    array([[9.],
           [0.]])
    """
    scaled, middle, scale = _scaled_points(points, n_classes, seed)
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]

    n_starts = N_STARTS["kmeans"]
    estimator = KMeans(n_classes, n_init=n_starts, max_iter=N_STEPS, random_state=seed)
    with _one_thread():
        estimator.fit(scaled)
    weights = np.bincount(estimator.labels_, minlength=n_classes) / len(scaled)
    variance = max(float(estimator.inertia_) / scaled.size, LEAST_VARIANCE)
    order = _largest_first(weights, estimator.cluster_centers_)
    centres = estimator.cluster_centers_[order] * scale + middle
    return KmeansClasses(centres, weights[order], variance * scale**2)


def assign_kmeans(points: Any, classes: KmeansClasses) -> tuple[Any, Any]:
    """Assign points to the nearest centres.

    Parameters
    ----------
    points : array, shape (n, c)
        NumPy or CuPy.
    classes
        Of as many dimensions.

    Returns
    -------
    labels : int64 array, shape (n,)
        Class of each point, from 0: the largest.
    memberships : float64 array, shape (n, k)
        How probable each class would be if all were round Gaussians of one width and weight. The
        largest is that of the label; each row adds up to 1.

    Raises
    ------
    ParameterError
        If a coordinate is not finite, or the numbers of dimensions differ.

    Examples
    --------
    >>> classes = KmeansClasses(np.array([[9.0], [0.0]]), np.array([0.75, 0.25]), 2.0)
    >>> assign_kmeans(np.array([[1.0], [4.5]]), classes)[1].round(2)
    array([[0. , 1. ],
           [0.5, 0.5]])
    """
    n_classes, n_dimensions = classes.centres.shape
    values = _check_points(points, "points", n_dimensions)
    centres = array_namespace(points).asarray(classes.centres)
    distances = sum((values[:, d, None] - centres[:, d]) ** 2 for d in range(n_dimensions))
    memberships = posteriors(-distances / (2 * classes.variance), np.full(n_classes, 1 / n_classes))
    return distances.argmin(axis=1), memberships


def fit_gmm(points: npt.ArrayLike, n_classes: int, seed: int) -> GaussianClasses:
    """Find classes by a mixture of Gaussians, each of its own shape.

    Parameters
    ----------
    points : array, shape (n, c)
        Of the host. More than c in each class, or its shape says nothing.
    n_classes
        As many as there are different points at most.
    seed
        0 to 2^32 - 1.

    Returns
    -------
    GaussianClasses
        Of equal weights, that of the smallest coordinates first.

    Raises
    ------
    ParameterError
        If there are less than two points, a coordinate is not finite, or a number is out of range.

    Notes
    -----
    Expectation maximisation from the best of five starts by k-means, of scikit-learn, until a step
    gains less than 1e-6 in the log-likelihood of a point. Points are brought to variance 1 in all
    directions first: else k-means cuts classes that lie side by side across where they are long,
    and expectation maximisation stays there. Each class is widened by a millionth of the variance
    of all points in each direction.

    Examples
    --------
    >>> fit_gmm([[0.0], [2.0], [8.0], [10.0], [12.0]], 2, seed=0).centres.round(3)
    array([[10.],
           [ 1.]])
    """
    scaled, middle, scale = _scaled_points(points, n_classes, seed)
    from sklearn.mixture import GaussianMixture  # type: ignore[import-untyped]

    estimator = GaussianMixture(
        n_classes,
        tol=COARSE_GAIN,
        reg_covar=LEAST_VARIANCE,
        max_iter=N_STEPS,
        n_init=N_STARTS["gmm"],
        random_state=seed,
    )
    with _one_thread():
        to_white, from_white = _whitening(scaled)
        white = scaled @ to_white
        estimator.fit(white)
        estimator.set_params(tol=FINE_GAIN, warm_start=True).fit(white)
    centres = estimator.means_ @ from_white
    covariances = from_white.T @ estimator.covariances_ @ from_white
    order = _largest_first(estimator.weights_, centres)
    weights = estimator.weights_[order]
    return GaussianClasses(centres[order] * scale + middle, covariances[order] * scale**2, weights)


def assign_gmm(points: Any, classes: GaussianClasses) -> tuple[Any, Any]:
    """Assign points to the Gaussians that they most probably come from.

    Parameters
    ----------
    points : array, shape (n, c)
        NumPy or CuPy.
    classes
        Of as many dimensions.

    Returns
    -------
    labels : int64 array, shape (n,)
        Class of each point, from 0: that of most weight.
    memberships : float64 array, shape (n, k)
        How probable each class is; each row adds up to 1.

    Raises
    ------
    ParameterError
        If a coordinate is not finite, or the numbers of dimensions differ.

    Examples
    --------
    >>> classes = GaussianClasses(
    ...     np.array([[1.0], [-1.0]]), np.ones((2, 1, 1)), np.array([0.9, 0.1])
    ... )
    >>> assign_gmm(np.array([[0.0]]), classes)
    (array([0]), array([[0.9, 0.1]]))
    """
    memberships = posteriors(log_densities(points, classes), classes.weights)
    return memberships.argmax(axis=1), memberships


def log_densities(points: Any, classes: GaussianClasses) -> Any:
    """Return the logarithm of the density of each Gaussian at each point, without its weight.

    Parameters
    ----------
    points, classes
        As of `assign_gmm`.

    Returns
    -------
    float64 array, shape (n, k)
        As `emdask.kernels.mixtures` wants it.

    Raises
    ------
    ParameterError
        As of `assign_gmm`.

    Examples
    --------
    >>> classes = GaussianClasses(np.zeros((1, 1)), np.ones((1, 1, 1)), np.ones(1))
    >>> log_densities(np.array([[0.0], [2.0]]), classes).round(3)
    array([[-0.919],
           [-2.919]])
    """
    xp = array_namespace(points)
    n_dimensions = classes.centres.shape[1]
    values = _check_points(points, "points", n_dimensions)
    roots = np.linalg.cholesky(classes.covariances)
    diagonals = np.diagonal(roots, axis1=1, axis2=2)
    peaks = -np.log(diagonals).sum(axis=1) - n_dimensions * np.log(2 * np.pi) / 2
    distances = _whitened_distances(values, xp.asarray(classes.centres), xp.asarray(roots))
    return xp.asarray(peaks) - distances / 2


def _whitened_distances(values: Any, centres: Any, roots: Any) -> Any:
    """Squared Mahalanobis distances, (n, k), by forward substitution.

    Element by element: no point changes the rounding of another's.
    """
    whitened: list[Any] = []
    for d in range(values.shape[1]):
        rest = values[:, d, None] - centres[:, d]
        for e, known in enumerate(whitened):
            rest = rest - roots[:, d, e] * known
        whitened.append(rest / roots[:, d, d])
    return sum(part * part for part in whitened)


def _check_points(points: Any, name: str, n_dimensions: int | None = None) -> Any:
    """Points as float64 of their library."""
    xp = array_namespace(points)
    values = xp.asarray(points, np.float64)
    ok = values.ndim == 2 and values.shape[1] > 0
    ok = ok and n_dimensions in (None, values.shape[1])
    columns = "k" if n_dimensions is None else str(n_dimensions)
    require(ok, WHAT, f"{name} must be a table of shape (n, {columns})", values.shape)
    faulty = int((~xp.isfinite(values)).any(axis=1).sum())
    rule = f"{name} must be finite numbers"
    require(not faulty, WHAT, rule, f"{faulty} of {len(values)} rows that are not")
    return values


def _scaled_points(
    points: npt.ArrayLike, n_classes: int, seed: int
) -> tuple[Doubles, Doubles, float]:
    """Points of mean 0 and mean variance 1, so that no tolerance has a unit; mean and scale."""
    values = _check_points(points, "points")
    check_integer(WHAT, "seed", seed, 0, MAX_SEED)
    check_integer(WHAT, "n_classes", n_classes, 1)
    require(len(values) > 1, WHAT, "there must be at least two points", len(values))
    n_different = len(np.unique(values, axis=0))
    rule = f"n_classes must be at most the number of different points, {n_different}"
    require(n_classes <= n_different, WHAT, rule, n_classes)
    middle = values.mean(axis=0)
    centred = values - middle
    scale = float(np.sqrt((centred**2).mean())) or 1.0
    return centred / scale, middle, scale


def _whitening(points: Doubles) -> tuple[Doubles, Doubles]:
    """Matrices, (c, c), that points of mean 0 are to be multiplied with to be white, and back."""
    variances, axes = np.linalg.eigh(points.T @ points / len(points))
    widths = np.sqrt(np.maximum(variances, LEAST_VARIANCE))
    return axes / widths, (axes * widths).T


def _largest_first(weights: Doubles, centres: Doubles) -> npt.NDArray[np.intp]:
    """Order of classes: by weight, descending, then by the scaled coordinates of the centres.

    Rounded: what is equal may have come out unequal in the last digits.
    """
    return np.lexsort((*centres.T[::-1].round(N_DIGITS), -weights.round(N_DIGITS)))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let scikit-learn add up in one order."""
    from threadpoolctl import threadpool_limits

    with one_blas_thread, threadpool_limits(limits=1, user_api="openmp"):
        yield
