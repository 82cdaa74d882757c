"""The outline of a particle as a feature: the autocorrelation of its longest contour.

It is what LCTC ("Linear Combinations of Template Conformations") compares first: `mask_particle`
separates the particle from the ground by Otsu's threshold and a random walker, `longest_contour`
and `resample_contour` follow its outline, and `contour_autocorrelation` makes of that numbers that
do not depend on where the particle is, nor how it is turned in the plane. `contour_features` does
all of it. Of the projection it keeps the outline alone, and noise moves that: for denoised images.

All of it runs on the host, image by image.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse
from scipy.sparse.linalg import spsolve

from emdask.checks import check_choice, check_integer, require

__all__ = [
    "contour_autocorrelation",
    "contour_features",
    "longest_contour",
    "mask_particle",
    "resample_contour",
]

Floats = npt.NDArray[np.float64]

# Points of a contour, and what of their autocorrelation is not a repetition.
N_POINTS = 100
N_FEATURES = N_POINTS // 2 + 1
VECTORS = ("points", "steps")
# Pixels within this many deviations of their class from the threshold are undecided.
UNDECIDED = 0.5
# Of Grady's weights exp(-STEEPNESS d^2), d the difference of neighbours in deviations of the image.
STEEPNESS = 1.0
# Lets the walker pass where the weight of an edge is 0 to rounding.
LEAST_WEIGHT = 1e-10
# Deviation of an image, as share of its level, below which it is rounding.
FLAT = 1e-6


def contour_features(
    images: npt.NDArray[Any],
    *,
    of: Literal["points", "steps"] = "points",
    normalise: bool = False,
) -> npt.NDArray[np.float32]:
    """Autocorrelate the longest contour of the particle in each image.

    Parameters
    ----------
    images : array, shape (n, h, w)
        Particles brighter than what is around them, denoised. Grey level and offset do not matter.
    of
        As of `contour_autocorrelation`: "points" relative to their centroid, or "steps" from each
        point to the next, which is what LCTC takes.
    normalise
        Divide by the value at lag 0: then only the shape counts. Otherwise the size does too, as in
        LCTC; but noise changes it more than the shape.

    Returns
    -------
    float32 array, shape (n, 51)
        At lags of 0 to 50 of 100 points, in px^2, or without unit where normalised. A row is NaN
        where there is no closed contour: the image is constant (deviates by less than a millionth
        of its level), has pixels that are not finite, or its longest contour ends at the border,
        which cuts the particle. An image of noise alone has the contour of some spot.

    Raises
    ------
    ParameterError
        If the images are not a stack, or ``of`` is neither word.

    Notes
    -----
    Features stay the same when the particle is shifted, turned in the plane, or mirrored, up to
    what sampling by pixels does to its outline: a particle cannot be told from its mirror image,
    nor a view from the opposite one. They do change with a blur: what is compared must have been
    blurred, or denoised, alike.

    "An Efficient Method to Quantify Structural Distributions in Heterogeneous cryo-EM Datasets",
    bioRxiv (2021), doi:10.1101/2021.05.27.446075; program at https://github.com/ghl1995/LCTC. It
    takes steps, does not normalise, follows the binary mask, samples it at equal numbers of corners
    rounded to pixels, and goes to lag 49; its walker depends on the grey level.

    Examples
    --------
    >>> y, x = np.mgrid[:48, :48] - 24
    >>> disc = np.hypot(y, x) < 12
    >>> features = contour_features(np.stack([disc, 3.0 * disc - 1, np.ones((48, 48))]))
    >>> features.shape, round(float(features[0, 0] / 100) ** 0.5)
    ((3, 51), 12)
    >>> bool(np.allclose(features[0], features[1])), bool(np.isnan(features[2]).all())
    (True, True)
    """
    what, shape = "contour_features", np.shape(images)
    ok = len(shape) == 3 and min(shape[1:]) >= 2
    require(ok, what, "images must be a stack (n, h, w) of at least 2 x 2 px", shape)
    check_choice(what, "of", of, VECTORS)
    features = np.full((len(images), N_FEATURES), np.nan, np.float32)
    for image, feature in zip(images, features, strict=True):
        contour = longest_contour(mask_particle(image))
        if contour is not None:
            points = resample_contour(contour, N_POINTS)
            feature[:] = contour_autocorrelation(points, of=of, normalise=normalise)
    return features


def mask_particle(image: npt.NDArray[Any]) -> Floats:
    """Separate a particle from the ground by Otsu's threshold and a random walker.

    What is more than half a deviation of its class above or below the threshold is particle or
    ground. Where the rest belongs is the probability that a walker from there, who does not like to
    climb, meets the particle first.

    Parameters
    ----------
    image : array, shape (h, w)
        Particle brighter than the ground.

    Returns
    -------
    float64 array, shape (h, w)
        Probability of particle, from 0 to 1; 0 everywhere in an image that is constant or not
        finite.

    Notes
    -----
    Otsu, "A threshold selection method from gray-level histograms", IEEE Transactions on Systems,
    Man, and Cybernetics 9 (1979) 62-66. Grady, "Random walks for image segmentation", IEEE
    Transactions on Pattern Analysis and Machine Intelligence 28 (2006) 1768-1783. The result is
    that of ``skimage.segmentation.random_walker`` with ``beta=10`` and ``mode="bf"`` for the image
    divided by its deviation, and found several times faster: what is undecided alone makes up the
    equations, for one of the two labels.

    Examples
    --------
    >>> image = np.zeros((6, 6))
    >>> image[2:4, 1:4] = 1
    >>> mask_particle(image)[2]
    array([0., 1., 1., 1., 0., 0.])
    """
    from skimage.filters import threshold_otsu

    grey = np.asarray(image, np.float64)
    level, deviation = (grey.mean(), grey.std()) if np.isfinite(grey).all() else (0.0, 0.0)
    if deviation <= FLAT * abs(level):
        return np.zeros(grey.shape)
    grey = (grey - level) / deviation
    threshold = threshold_otsu(grey)
    ground = grey < threshold - UNDECIDED * grey[grey < threshold].std()
    particle = grey > threshold + UNDECIDED * grey[grey > threshold].std()
    mask: Floats = particle.astype(np.float64)
    undecided = ~(ground | particle)
    if undecided.any():
        mask[undecided] = _walk(grey, undecided, mask)
    return mask


def _walk(grey: Floats, undecided: npt.NDArray[np.bool_], known: Floats) -> Floats:
    """Probability of each undecided pixel: the mean of its neighbours', by weight."""
    n = int(undecided.sum())
    number = np.full(grey.shape, -1)
    number[undecided] = np.arange(n)
    degree, given = np.zeros(n), np.zeros(n)
    rows, columns, weights = [np.arange(n)], [np.arange(n)], []
    for here, there in _neighbours():
        i, j = number[here], number[there]
        weight = np.exp(-STEEPNESS * np.square(grey[here] - grey[there])) + LEAST_WEIGHT
        asks, both = i >= 0, (i >= 0) & (j >= 0)
        degree += np.bincount(i[asks], weight[asks], n)
        given += np.bincount(i[asks], weight[asks] * known[there][asks], n)
        rows.append(i[both])
        columns.append(j[both])
        weights.append(-weight[both])
    places = np.concatenate(rows), np.concatenate(columns)
    laplacian = scipy.sparse.csc_array((np.concatenate([degree, *weights]), places), shape=(n, n))
    return np.asarray(np.clip(spsolve(laplacian, given), 0.0, 1.0))


def _neighbours() -> list[tuple[Any, Any]]:
    """Slices of an image: pixels that have a neighbour, and that; in four directions."""
    first, last, every = slice(None, -1), slice(1, None), slice(None)
    pairs = [((first, every), (last, every)), ((every, first), (every, last))]
    return pairs + [(there, here) for here, there in pairs]


def longest_contour(mask: npt.NDArray[Any], level: float = 0.5) -> Floats | None:
    """Follow the outlines of a mask and return the longest.

    Parameters
    ----------
    mask : array, shape (h, w)
        From 0 to 1.
    level
        Where the particle ends.

    Returns
    -------
    float64 array, shape (m, 2), or None
        y and x in px along the contour, the last point as the first. None where there is no
        contour, and where the longest is not closed: the border cuts what it surrounds.

    Examples
    --------
    >>> mask = np.zeros((5, 6))
    >>> mask[2, 2:4] = 1
    >>> y, x = longest_contour(mask).T
    >>> float(y.min()), float(y.max()), float(x.min()), float(x.max())
    (1.5, 2.5, 1.5, 3.5)
    >>> mask[2] = 1
    >>> longest_contour(mask) is None
    True
    """
    from skimage.measure import find_contours

    contours = find_contours(mask, level)
    if not contours:
        return None
    longest = max(contours, key=lambda contour: float(_lengths(contour).sum()))
    is_closed = np.array_equal(longest[0], longest[-1])
    return np.asarray(longest, np.float64) if is_closed else None


def _lengths(contour: Floats) -> Floats:
    return np.asarray(np.hypot(*np.diff(contour, axis=0).T))


def resample_contour(contour: npt.ArrayLike, n_points: int = N_POINTS) -> Floats:
    """Place points along a closed contour at equal distances of arc.

    Parameters
    ----------
    contour : array_like, shape (m, 2)
        Corners; from the last it goes straight back to the first, if that is not the same.
    n_points
        How many.

    Returns
    -------
    float64 array, shape (n_points, 2)
        The first is the first corner, which is not repeated at the end.

    Raises
    ------
    ParameterError
        If the contour has no corners of two numbers or ``n_points`` is less than 3.

    Examples
    --------
    >>> square = [[0, 0], [0, 3], [3, 3], [3, 0]]
    >>> resample_contour(square, 6).tolist()
    [[0.0, 0.0], [0.0, 2.0], [1.0, 3.0], [3.0, 3.0], [3.0, 1.0], [2.0, 0.0]]
    """
    corners = np.asarray(contour, np.float64)
    ok = corners.ndim == 2 and len(corners) > 0 and corners.shape[1] == 2
    require(ok, "resample_contour", "contour must have the shape (m, 2)", corners.shape)
    check_integer("resample_contour", "n_points", n_points, 3)
    closed = np.concatenate([corners, corners[:1]])
    arc = np.concatenate([[0.0], np.cumsum(_lengths(closed))])
    at = arc[-1] * np.arange(n_points) / n_points
    return np.stack([np.interp(at, arc, places) for places in closed.T], axis=1)


def contour_autocorrelation(
    points: npt.ArrayLike,
    *,
    of: Literal["points", "steps"] = "points",
    normalise: bool = False,
) -> Floats:
    """Correlate a closed contour with itself, shifted along itself.

    Parameters
    ----------
    points : array_like, shape (..., n, 2)
        Points in px around a contour, at equal distances along it.
    of
        What is correlated, vectors v_j in the plane: "points" relative to the centroid of all
        points, or "steps", point j + 1 less point j.
    normalise
        Divide by the value at lag 0; where that is 0 too, the result is NaN.

    Returns
    -------
    float64 array, shape (..., n // 2 + 1)
        Sum over j of v_j . v_(j - k), at lags k of 0 to n // 2 in px^2; the contour is closed, so
        at n - k it is the same.

    Raises
    ------
    ParameterError
        If points are not pairs of numbers, or ``of`` is neither word.

    Notes
    -----
    With z = x + iy it is the sum of Re(z_j conj(z_(j - k))), the transform of the power spectrum of
    z. A shift, a rotation, another first point, the other sense, and a mirror change none of it. At
    lag k, that of steps is twice that of points less those at k - 1 and k + 1: it tells the same,
    with more weight on detail and on noise.

    Examples
    --------
    >>> contour_autocorrelation([[0, 0], [0, 2], [2, 2], [2, 0]])
    array([ 8.,  0., -8.])
    >>> contour_autocorrelation([[0, 0], [0, 2], [2, 2], [2, 0]], of="steps", normalise=True)
    array([ 1.,  0., -1.])
    """
    what = "contour_autocorrelation"
    check_choice(what, "of", of, VECTORS)
    pairs = np.asarray(points, np.float64)
    ok = pairs.ndim >= 2 and pairs.shape[-1] == 2 and pairs.shape[-2] > 0
    require(ok, what, "points must have the shape (..., n, 2)", pairs.shape)
    n = pairs.shape[-2]
    if of == "steps":
        vectors = np.roll(pairs, -1, axis=-2) - pairs
    else:
        vectors = pairs - pairs.mean(axis=-2, keepdims=True)
    power = np.square(np.abs(np.fft.fft(vectors[..., 1] + 1j * vectors[..., 0])))
    result: Floats = np.fft.ifft(power).real[..., : n // 2 + 1]
    if normalise:
        with np.errstate(invalid="ignore", divide="ignore"):
            return result / result[..., :1]
    return result
