"""Mean and covariance of images in a steerable basis, from sums over images of any CTF.

Bhamre, Zhang and Singer, "Denoising and covariance estimation of single particle cryo-EM images",
Journal of Structural Biology 195 (2016) 72-81. Images lie at all in-plane angles and are mirrored
as often as not, so coefficients of different orders are uncorrelated and those of one order have a
real covariance C. Of premultiplied coefficients t = G x + noise, G the filter matrix of the squared
CTF, E[t] = G mean and Cov[t] = G C G + variance * G. Least squares over all images is a linear
equation for C. Because G is a diagonal h between radial nodes, G = Rᵀ h R, the sum over images of
G C G needs but one matrix, the sum of h hᵀ, however many CTFs there are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace, to_host
from emdask.kernels.conjugate_gradients import solve_equations
from emdask.kernels.prior_covariance import bayes_covariance
from emdask.kernels.shrinkage import shrink_frobenius, shrink_operator
from emdask.kernels.steerable import SteerableBasis, combine

__all__ = [
    "ESTIMATORS",
    "CoefficientSums",
    "Covariance",
    "Spectrum",
    "add_sums",
    "estimate_covariance",
    "shrink_covariance",
    "sum_coefficients",
]

Doubles = npt.NDArray[np.float64]
Shrinker = Callable[[Doubles, float, float], Doubles]

# Of the conjugate gradients: least residual, in parts of the right-hand side, and most steps.
TOLERANCE = 1e-6
MOST_STEPS = 500
# Of frequencies that an envelope leaves less of, in parts of the largest mean of squared CTFs,
# filter matrices are no longer exact enough to be inverted.
LEAST_ENVELOPE = 1e-2
# Matrices stay regular.
LEAST_FILTER = 1e-9


class CoefficientSums(NamedTuple):
    """Sums over images; those of two stacks add up to those of both (`add_sums`).

    Parameters
    ----------
    n_images
        How many images.
    first : float64 array, shape (n_q0,)
        Sum of the coefficients t of order 0.
    products : float64 array, shape (n_pairs,)
        Sums of the real part of t t^H, the lower halves of all orders one after the other.
    first_by_power : float64 array, shape (n_q0, n_r)
        Sum of t hᵀ for order 0, where h is the squared CTF at the radial nodes.
    power : float64 array, shape (n_r,)
        Sum of h.
    power_products : float64 array, shape (n_r * (n_r + 1) / 2,)
        Sum of h hᵀ, its lower half.
    """

    n_images: int
    first: Doubles
    products: Doubles
    first_by_power: Doubles
    power: Doubles
    power_products: Doubles


class Spectrum(NamedTuple):
    """Eigenvalues of one order, descending, in the square of the images' unit.

    Parameters
    ----------
    sample : float64 array, shape (n_q,)
        Of the sample covariance, noise included, in coordinates in which the noise is white; NaN
        at the end, instead of those of what the CTFs leave next to nothing of.
    noise_edge
        The largest one that noise alone would give.
    """

    sample: Doubles
    noise_edge: float


class Covariance(NamedTuple):
    """What images have in common.

    Parameters
    ----------
    mean : float64 array, shape (n_q0,)
        Of order 0; the other orders have none.
    blocks
        For each order, float64 (n_q, n_q): symmetric, no eigenvalue below 0.
    spectra
        For each order, the eigenvalues that the block was made of.
    """

    mean: Doubles
    blocks: tuple[Doubles, ...]
    spectra: tuple[Spectrum, ...]


# --- Sums -----------------------------------------------------------------------------------------


def sum_coefficients(
    coefs: Any, basis: SteerableBasis, power: Doubles, which: npt.NDArray[np.intp]
) -> CoefficientSums:
    """Add up what the mean and the covariance are made of.

    Parameters
    ----------
    coefs : complex64 array, shape (n, n_coefs)
        Of images times their CTF; NumPy or CuPy.
    basis
        What they are coefficients of.
    power : float64 array, shape (m, n_r)
        The squared CTFs that differ, at the nodes of the basis.
    which : int array, shape (n,)
        Which of them each image has.

    Returns
    -------
    CoefficientSums
        Added up in double precision, on the host.

    Examples
    --------
    >>> from emdask.kernels.steerable import steerable_basis
    >>> basis = steerable_basis(16)
    >>> coefs, power = np.ones((3, 56), np.complex64), np.ones((1, len(basis.nodes)))
    >>> sums = sum_coefficients(coefs, basis, power, np.zeros(3, int))
    >>> sums.n_images, float(sums.first[0]), float(sums.products[0])
    (3, 3.0, 3.0)
    """
    xp = array_namespace(coefs)
    parts = xp.concatenate([coefs.real, coefs.imag]).astype(np.float64)
    zeroth = parts[: len(coefs), basis.slices[0]]
    counts = np.bincount(which, minlength=len(power)).astype(np.float64)
    return CoefficientSums(
        n_images=len(coefs),
        first=to_host(zeroth.sum(axis=0)),
        products=to_host(_multiply(parts, basis)),
        first_by_power=to_host(xp.ascontiguousarray(zeroth.T @ xp.asarray(power[which]))),
        power=counts @ power,
        power_products=_lower((power * counts[:, None]).T @ power),
    )


def _multiply(parts: Any, basis: SteerableBasis) -> Any:
    """Return the lower halves of the products of each order's columns."""
    xp = array_namespace(parts)
    if xp is np:
        return np.concatenate([_lower(parts[:, own].T @ parts[:, own]) for own in basis.slices])
    # A card has all products sooner than it begins those of each order.
    size = len(basis.orders)
    rows = [np.stack(_lower_half(own.stop - own.start)) + own.start for own in basis.slices]
    one, other = xp.asarray(np.concatenate(rows, axis=1))
    return (parts.T @ parts).reshape(-1)[one * size + other]


def add_sums(one: CoefficientSums, other: CoefficientSums) -> CoefficientSums:
    """Return the sums over the images of both.

    Examples
    --------
    >>> ones = CoefficientSums(1, *[np.ones(1)] * 5)
    >>> add_sums(ones, ones).n_images, add_sums(ones, ones).first
    (2, array([2.]))
    """
    return CoefficientSums(
        one.n_images + other.n_images,
        *(a + b for a, b in zip(one[1:], other[1:], strict=True)),
    )


def _lower(matrix: Any) -> Any:
    return matrix[_lower_half(len(matrix))]


@functools.lru_cache(maxsize=256)
def _lower_half(size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    return np.tril_indices(size)


def _unpack(products: Doubles, basis: SteerableBasis) -> list[Doubles]:
    """Return the matrix of each order."""
    sizes = [radial.shape[1] for radial in basis.radial]
    ends = np.cumsum([size * (size + 1) // 2 for size in sizes])
    lowers = np.split(products, ends[:-1])
    return [_symmetric(lower, size) for lower, size in zip(lowers, sizes, strict=True)]


def _symmetric(lower: Doubles, size: int) -> Doubles:
    matrix = np.empty((size, size))
    rows, columns = _lower_half(size)
    matrix[rows, columns] = matrix[columns, rows] = lower
    return matrix


# --- Estimates ------------------------------------------------------------------------------------


def estimate_covariance(
    sums: CoefficientSums,
    basis: SteerableBasis,
    noise_variance: float,
    shrinkage: str = "bayes",
) -> Covariance:
    """Estimate the mean and the covariance of images without CTF and noise.

    Of n images there are n samples of order 0 and 2 n of any other, whose real and imaginary parts
    are alike.

    Parameters
    ----------
    sums
        Over all images.
    basis
        What they were expanded in.
    noise_variance
        Of a pixel, 0 or more.
    shrinkage
        A name in `ESTIMATORS`: "bayes" (`emdask.kernels.prior_covariance`); "frobenius" or
        "operator", the norm of the error of which is least.

    Returns
    -------
    Covariance

    Examples
    --------
    >>> from emdask.kernels.steerable import steerable_basis
    >>> basis = steerable_basis(16)
    >>> rng = np.random.default_rng(0)
    >>> noise = (rng.normal(size=(500, 56)) + 1j * rng.normal(size=(500, 56))) / np.sqrt(2)
    >>> power = np.ones((1, len(basis.nodes)))
    >>> sums = sum_coefficients(noise, basis, power, np.zeros(500, int))
    >>> float(estimate_covariance(sums, basis, 1.0, "frobenius").blocks[3].max())
    0.0
    """
    n = sums.n_images
    power, pairs = sums.power / n, _symmetric(sums.power_products / n, len(sums.power))
    seen = [_find_seen(radial, power) for radial in basis.radial]
    strengths, vectors = seen[0]
    mean = (vectors / strengths) @ (vectors.T @ sums.first / n)
    samples = _unpack(sums.products / n, basis)
    samples[0] = _centre(samples[0], mean, basis.radial[0], sums.first_by_power / n, pairs)
    samples = [own.vectors.T @ full @ own.vectors for own, full in zip(seen, samples, strict=True)]
    within = combine(basis, [own.vectors for own in seen])
    found = ESTIMATORS[shrinkage](samples, power, pairs, n, within, noise_variance)
    blocks = [own.vectors @ block @ own.vectors.T for own, block in zip(seen, found, strict=True)]
    spectra = []
    for k, (sample, own) in enumerate(zip(samples, seen, strict=True)):
        values = np.full(len(own.vectors), np.nan)
        values[: len(sample)] = np.linalg.eigvalsh(_whiten(sample, own.strengths))[::-1]
        edge = noise_variance * (1 + np.sqrt(_ratio(sample, k, n))) ** 2
        spectra.append(Spectrum(values, float(edge)))
    return Covariance(mean, tuple(blocks), tuple(spectra))


def shrink_covariance(
    samples: Sequence[Doubles],
    power: Doubles,
    pairs: Doubles,
    n_images: int,
    basis: SteerableBasis,
    noise_variance: float,
    shrink: Shrinker,
) -> list[Doubles]:
    """Shrink eigenvalues where the noise is white, and solve the equation of least squares.

    Parameters
    ----------
    samples
        For each order, float64 (n_q, n_q): mean over images of the real part of t t^H, less what
        the mean of order 0 is.
    power : float64 array, shape (n_r,)
        Mean of h, the squared CTF at the nodes of the basis.
    pairs : float64 array, shape (n_r, n_r)
        Mean of h hᵀ.
    n_images
        How many.
    basis
        What they were expanded in.
    noise_variance
        Of a pixel, 0 or more.
    shrink
        One of `emdask.kernels.shrinkage`.

    Returns
    -------
    list of float64 arrays
        For each order (n_q, n_q), symmetric, no eigenvalue below 0.
    """
    blocks = []
    for k, (sample, radial) in enumerate(zip(samples, basis.radial, strict=True)):
        strengths, vectors = np.linalg.eigh(_filter_matrix(radial, power))
        values, turn = np.linalg.eigh(_whiten(vectors.T @ sample @ vectors, strengths))
        signal = shrink(values, noise_variance, _ratio(sample, k, n_images))
        turn = np.sqrt(strengths)[:, None] * turn
        found = _solve(radial @ vectors, pairs, (turn * signal) @ turn.T, strengths)
        blocks.append(_positive(vectors @ found @ vectors.T))
    return blocks


ESTIMATORS: Mapping[str, Callable[..., list[Doubles]]] = {
    "bayes": bayes_covariance,
    "frobenius": functools.partial(shrink_covariance, shrink=shrink_frobenius),
    "operator": functools.partial(shrink_covariance, shrink=shrink_operator),
}


def _ratio(sample: Doubles, order: int, n_images: int) -> float:
    return len(sample) / (2 * n_images if order else n_images)


def _centre(
    sample: Doubles, mean: Doubles, radial: Doubles, first_by_power: Doubles, pairs: Doubles
) -> Doubles:
    """Turn the mean of t tᵀ into that of (t - G mean) (t - G mean)ᵀ."""
    profile = radial @ mean
    crossed = (first_by_power * profile) @ radial
    return (
        sample
        - crossed
        - crossed.T
        + radial.T @ (pairs * np.multiply.outer(profile, profile)) @ radial
    )


class _Seen(NamedTuple):
    """Eigenvalues and -vectors of an order's mean filter matrix, in the span of what is seen."""

    strengths: Doubles
    vectors: Doubles


def _find_seen(radial: Doubles, power: Doubles) -> _Seen:
    values, vectors = np.linalg.eigh(_filter_matrix(radial, _find_envelope(power)))
    vectors = vectors[:, values > LEAST_ENVELOPE]
    strengths, turn = np.linalg.eigh(_filter_matrix(radial @ vectors, power))
    kept = strengths > LEAST_FILTER * power.max()
    return _Seen(strengths[kept], vectors @ turn[:, kept])


def _find_envelope(power: Doubles) -> Doubles:
    """Return the largest filter at a node's frequency or above, in parts of the largest of all.

    Where contrast has yet to rise, at low frequencies, filters are weak and signals strong.
    """
    largest = np.maximum.accumulate(power[-2::-1])[::-1]
    # The last node stands for the mean of an image: left out, or not.
    largest = np.append(largest, np.sign(power[-1]) * largest[0])
    return np.asarray(largest / max(largest[0], np.finfo(np.float64).tiny))


def _filter_matrix(radial: Doubles, h: Doubles) -> Doubles:
    return np.asarray(radial.T @ (h[:, None] * radial))


def _whiten(sample: Doubles, strengths: Doubles) -> Doubles:
    """Divide coordinates in which the mean filter is diagonal by the root of its strengths."""
    roots = np.sqrt(strengths)
    return np.asarray(sample / np.multiply.outer(roots, roots))


def _solve(radial: Doubles, pairs: Doubles, right: Doubles, strengths: Doubles) -> Doubles:
    """Solve mean(G C G) = right for C, where the mean of G is diagonal, of those strengths."""
    scaling = np.multiply.outer(strengths, strengths)
    return solve_equations(
        lambda matrix: np.asarray(radial.T @ ((radial @ matrix @ radial.T) * pairs) @ radial),
        right,
        lambda residual: residual / scaling,
        tolerance=TOLERANCE,
        most_steps=MOST_STEPS,
    )


def _positive(matrix: Doubles) -> Doubles:
    """Return the nearest matrix that is symmetric without negative eigenvalues."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return np.asarray((vectors * np.maximum(values, 0)) @ vectors.T)
