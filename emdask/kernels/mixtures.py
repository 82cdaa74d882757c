"""Proportions of classes, from how likely each image is under each class.

Counting each image for its likeliest class is biased wherever classes overlap: small classes get
what large ones lose by mistake. The proportions that make all images together most likely are not.
They are what expectation maximisation converges to; where classes overlap it does so in thousands
of steps, so the maximum is found by Newton steps here, and its distance to it is known.

All of it is of the host, but for `posteriors`, which is of NumPy or CuPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace, one_blas_thread, to_host
from emdask.checks import check_integer, require

__all__ = [
    "ProportionEstimate",
    "bootstrap_proportions",
    "estimate_proportions",
    "posteriors",
    "summarize_draws",
    "without_last",
]

Doubles = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

WHAT = "proportions"
# By how much the log-likelihood of all images may lie below its maximum: the estimate is then
# within 0.002 standard errors of it. By rounding, the one of an image is not known better than to
# LEAST_GAP.
TOLERANCE = 1e-6
LEAST_GAP = 1e-12
# Problems at random, of up to 30 classes of any overlap, took 14 at most.
N_STEPS = 100
# Of the way to where a share would be 0; what a step leaves of the products of shares and slacks.
STEP_SHARE = 0.99
SHRINKAGE = 0.1
# Numbers that stay in a processor's cache, and counts of images in draws that are held at once.
NUMBERS_AT_ONCE = 1 << 17
COUNTS_AT_ONCE = 1 << 24
# Between these percentiles of draws lies a proportion.
INTERVAL = (2.5, 97.5)


class ProportionEstimate(NamedTuple):
    """Proportions of classes and how sure they are; arrays are over classes, (k,).

    Attributes
    ----------
    proportions
        They add up to 1.
    errors
        Standard errors.
    low, high
        Bounds of the 95 % interval of each.
    """

    proportions: Doubles
    errors: Doubles
    low: Doubles
    high: Doubles


def estimate_proportions(log_likelihoods: npt.ArrayLike) -> Doubles:
    """Return the proportions of classes that make all images most likely.

    Parameters
    ----------
    log_likelihoods : array, shape (n, k)
        Natural logarithm of how likely each image is under each class, up to a number of the image.
        -inf where a class is out of the question.

    Returns
    -------
    float64 array, shape (k,)
        At least 0, in all 1. A class that would have less than a millionth of an image has 0.

    Raises
    ------
    ParameterError
        If there is no image, or one has NaN, +inf, or -inf in all classes.

    Notes
    -----
    The maximum of ``sum_i log sum_j p_j L_ij``, which is concave, by a primal-dual interior-point
    method (Koenker and Mizera, "Convex optimization, shape constraints, compound decisions, and
    empirical Bayes rules", Journal of the American Statistical Association 109 (2014) 674-685).
    It has converged when the log-likelihood is within 1e-6 of its maximum (1e-12 an image for more
    than a million): at proportions that add up to 1 it lies at most
    ``n (max_j mean_i L_ij / sum_l p_l L_il - 1)`` below (Lindsay, "The geometry of mixture
    likelihoods: a general theory", Annals of Statistics 11 (1983) 86-94). Where classes are exactly
    alike they share equally.

    Examples
    --------
    >>> chances = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.1, 0.9]])
    >>> estimate_proportions(np.log(chances)).round(4)
    array([0.8125, 0.1875])
    """
    likelihoods = _scaled_likelihoods(log_likelihoods)
    once = np.ones((1, len(likelihoods)), np.int32)
    with one_blas_thread:
        (shares,) = _maximize(likelihoods, once)
    return np.asarray(shares)


def posteriors(log_likelihoods: Any, proportions: npt.ArrayLike) -> Any:
    """Return how probable each class is for each image, given the proportions.

    Parameters
    ----------
    log_likelihoods : array, shape (n, k)
        As of `estimate_proportions`; NumPy or CuPy. There may be no image.
    proportions : array, shape (k,)
        Of the host; at least 0, in all 1.

    Returns
    -------
    float64 array, shape (n, k)
        Of the library of the log-likelihoods; each row adds up to 1.

    Raises
    ------
    ParameterError
        If an image has NaN, +inf, or -inf in all classes that have a proportion, or if these are
        no proportions of as many classes.

    Examples
    --------
    >>> posteriors(np.log([[0.5, 0.5], [0.1, 0.9]]), [0.9, 0.1])
    array([[0.9, 0.1],
           [0.5, 0.5]])
    """
    xp = array_namespace(log_likelihoods)
    table = xp.asarray(log_likelihoods, np.float64)
    _check_table(table)
    shares = _check_proportions(proportions, table.shape[1])
    logs = np.log(shares, where=shares > 0, out=np.full(shares.shape, -np.inf))
    terms = table + xp.asarray(logs)
    best = _best(terms, "-inf in all classes with a proportion above 0", "Give each class one.")
    terms = xp.exp(terms - best)
    return terms / terms.sum(axis=1, keepdims=True)


def bootstrap_proportions(log_likelihoods: npt.ArrayLike, n_draws: int, seed: int) -> Doubles:
    """Estimate proportions again and again from images drawn with replacement.

    Parameters
    ----------
    log_likelihoods : array, shape (n, k)
        As of `estimate_proportions`.
    n_draws
        At least 1; 200 give errors to 5 %.
    seed
        At least 0.

    Returns
    -------
    float64 array, shape (n_draws, k)
        What `estimate_proportions` returns for each draw of n images. The first draws are the same
        however many there are.

    Raises
    ------
    ParameterError
        As of `estimate_proportions`, and if a number is out of range.

    Notes
    -----
    Efron and Tibshirani, "An Introduction to the Bootstrap", Chapman and Hall 1993, chapter 6.
    A draw is how often each image counts, so that no log-likelihood is copied. The scatter of draws
    holds that of the images and of mistaking classes for each other, which
    ``sqrt(p (1 - p) / n)`` does not. It does not hold errors of the likelihoods themselves.

    Examples
    --------
    >>> certain = np.where(np.arange(2) == np.repeat([0, 1], [90, 10])[:, None], 0, -np.inf)
    >>> bootstrap_proportions(certain, 200, seed=0).std(axis=0).round(2)
    array([0.03, 0.03])
    """
    check_integer(WHAT, "n_draws", n_draws, 1)
    check_integer(WHAT, "seed", seed, 0)
    likelihoods = _scaled_likelihoods(log_likelihoods)
    n_images = len(likelihoods)
    n_at_once = max(1, COUNTS_AT_ONCE // n_images)
    with one_blas_thread:
        parts = [
            _maximize(likelihoods, _draw_counts(n_images, part, seed))
            for part in _parts(n_draws, n_at_once)
        ]
    return np.concatenate(parts)


def summarize_draws(proportions: npt.ArrayLike, draws: npt.ArrayLike) -> ProportionEstimate:
    """Return proportions with the errors that draws of them show.

    Parameters
    ----------
    proportions : array, shape (k,)
        Of all images, as of `estimate_proportions`, or of `without_last`.
    draws : array, shape (n_draws, k)
        Of the same kind, as of `bootstrap_proportions`; at least 2. Where one is NaN, the errors
        are.

    Returns
    -------
    ProportionEstimate
        The interval lies between the percentiles 2.5 and 97.5 of the draws.

    Raises
    ------
    ParameterError
        If the numbers of classes differ or there are less than two draws.

    Notes
    -----
    Percentiles need no symmetry and never leave [0, 1]. That of p % is draw number
    ``(n_draws + 1) p / 100`` of the sorted ones (Davison and Hinkley, "Bootstrap Methods and their
    Application", Cambridge 1997, section 5.3.1); by NumPy's default, 100 draws would cover 93 %.
    With less than 39 the outermost are the bounds. For a class that no draw has found, both are 0:
    what n images do not show may still be ``3 / n`` of all.

    Examples
    --------
    >>> draws = np.stack([np.linspace(0.5, 0.7, 199), np.linspace(0.5, 0.3, 199)], axis=1)
    >>> summarize_draws([0.6, 0.4], draws).low.round(3)
    array([0.504, 0.304])
    """
    best, table = np.asarray(proportions, np.float64), np.asarray(draws, np.float64)
    ok = best.ndim == 1 and table.ndim == 2 and len(table) > 1 and table.shape[1:] == best.shape
    rule = "draws must have two rows or more, and a column for each proportion"
    require(ok, WHAT, rule, f"shapes {best.shape} and {table.shape}")
    low, high = np.percentile(table, INTERVAL, axis=0, method="weibull")
    return ProportionEstimate(best, table.std(axis=0, ddof=1), low, high)


def without_last(proportions: npt.ArrayLike) -> Doubles:
    """Return the proportions among all classes but the last, "none of these".

    Parameters
    ----------
    proportions : array, shape (..., k)
        Of all images, or of draws: each is renormalised by itself, so that intervals hold that the
        number of images that are none of these is uncertain, too.

    Returns
    -------
    float64 array, shape (..., k - 1)
        NaN where all images are none of these.

    Raises
    ------
    ParameterError
        If there are less than two classes.

    Examples
    --------
    >>> without_last([[0.3, 0.1, 0.6], [0.0, 0.5, 0.5]])
    array([[0.75, 0.25],
           [0.  , 1.  ]])
    """
    shares = np.asarray(proportions, np.float64)
    ok = shares.ndim > 0 and shares.shape[-1] > 1
    require(ok, WHAT, "there must be a class beside the last", f"shape {shares.shape}")
    kept = shares[..., :-1]
    totals = kept.sum(axis=-1, keepdims=True)
    unknown = np.full(kept.shape, np.nan)
    return np.asarray(np.divide(kept, totals, out=unknown, where=totals > 0))


def _scaled_likelihoods(log_likelihoods: npt.ArrayLike) -> Doubles:
    """Likelihoods of each image in units of the largest."""
    table = np.asarray(log_likelihoods, np.float64)
    best = _check_table(table)
    require(len(table) > 0, WHAT, "there must be at least one image", f"shape {table.shape}")
    scaled: Doubles = np.exp(table - best)
    return scaled


def _check_table(table: Any) -> Any:
    """Largest entry of each row, (n, 1); refuses what is no table of log-likelihoods."""
    ok = table.ndim == 2 and table.shape[1] > 0
    require(ok, WHAT, "log_likelihoods must be (images, classes)", f"shape {table.shape}")
    return _best(table, "NaN, +inf, or -inf in all classes", "Leave such images out.")


def _best(table: Any, wrong: str, remedy: str) -> Any:
    """Largest entry of each row, (n, 1), which is finite."""
    best = table.max(axis=1, keepdims=True)
    faulty = np.flatnonzero(~np.isfinite(to_host(best[:, 0])))
    if len(faulty):
        row = int(faulty[0])
        rule = f"no row of log_likelihoods may have {wrong}"
        got = to_host(table[row]).tolist()
        require(
            False, WHAT, f"{rule}; {len(faulty)} of {len(table)} have, as row {row}", got, remedy
        )
    return best


def _check_proportions(proportions: npt.ArrayLike, n_classes: int) -> Doubles:
    shares = np.asarray(proportions, np.float64)
    require(shares.shape == (n_classes,), WHAT, f"there must be {n_classes}", shares.tolist())
    ok = bool((shares >= 0).all()) and abs(shares.sum() - 1) < 1e-3
    require(ok, WHAT, "they must be at least 0 and add up to 1", shares.tolist())
    return shares


def _parts(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _draw_counts(n_images: int, draws: slice, seed: int) -> Array:
    """How often each image is in each draw, (draws, n)."""
    counts = np.empty((draws.stop - draws.start, n_images), np.int32)
    for count, draw in zip(counts, range(draws.start, draws.stop), strict=True):
        drawn = np.random.default_rng([seed, draw]).integers(0, n_images, n_images)
        count[:] = np.bincount(drawn, minlength=n_images)
    return counts


def _maximize(likelihoods: Doubles, counts: Array) -> Doubles:
    """Proportions of most likelihood, (d, k), for each row of counts, (d, n), of all images.

    Minimises ``sum_j p_j - mean_i log sum_j p_j L_ij`` over all ``p >= 0``; where it is least, they
    add up to 1.
    """
    n_images, n_classes = likelihoods.shape
    found = np.empty((len(counts), n_classes))
    left = np.arange(len(counts))
    shares = np.full(found.shape, 1 / n_classes)
    slacks = np.ones(found.shape)
    for _ in range(N_STEPS):
        slopes, curvatures = _derivatives(likelihoods, counts, shares)
        total = shares.sum(axis=1)
        gaps = slopes.max(axis=1) * total - 1
        there = gaps <= max(TOLERANCE / n_images, LEAST_GAP)
        if there.any():
            found[left[there]] = (shares / total[:, None])[there]
            some = (left, counts, shares, slacks, slopes, curvatures)
            left, counts, shares, slacks, slopes, curvatures = (values[~there] for values in some)
        if not len(left):
            break
        shares, slacks = _newton_step(shares, slacks, slopes, curvatures)
    rule = f"the maximum must be found within {N_STEPS} steps"
    require(not len(left), WHAT, rule, f"gaps up to {gaps.max():.2g} an image")
    found[found < TOLERANCE / n_images] = 0
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def _derivatives(likelihoods: Doubles, counts: Array, shares: Doubles) -> tuple[Doubles, Doubles]:
    """First derivatives of the mean log-likelihood, (d, k), and minus its second, (d, k, k)."""
    n_images, n_classes = likelihoods.shape
    i, j = np.triu_indices(n_classes)
    slopes, upper = np.zeros(shares.shape), np.zeros((len(shares), len(i)))
    for part in _parts(n_images, max(1, NUMBERS_AT_ONCE // max(len(shares), len(i)))):
        some = likelihoods[part]
        mixed = shares @ some.T
        weights = counts[:, part] / (n_images * mixed)
        slopes += weights @ some
        upper += (weights / mixed) @ (some[:, i] * some[:, j])
    curvatures = np.empty((len(shares), n_classes, n_classes))
    curvatures[:, i, j] = curvatures[:, j, i] = upper
    return slopes, curvatures


def _newton_step(
    shares: Doubles, slacks: Doubles, slopes: Doubles, curvatures: Doubles
) -> tuple[Doubles, Doubles]:
    """Step towards ``slacks = 1 - slopes`` and equal, smaller products of shares and slacks."""
    target = SHRINKAGE * (shares * slacks).mean(axis=1, keepdims=True)
    own = np.arange(shares.shape[1])
    matrices = curvatures.copy()
    matrices[:, own, own] += slacks / shares
    shift = np.linalg.solve(matrices, (slopes - 1 + target / shares)[..., None])[..., 0]
    pull = (target - slacks * shift) / shares - slacks
    return _move(shares, shift), _move(slacks, pull)


def _move(values: Doubles, change: Doubles) -> Doubles:
    """Values of each row after as much of the change as keeps them above 0."""
    ratio = np.maximum(-change / values, STEP_SHARE).max(axis=1, keepdims=True)
    return np.asarray(values + STEP_SHARE / ratio * change)
