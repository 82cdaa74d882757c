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

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace, to_host
from emdask.kernels.shrinkage import SHRINKERS
from emdask.kernels.steerable import SteerableBasis

__all__ = [
    "CoefficientSums",
    "Covariance",
    "Spectrum",
    "add_sums",
    "estimate_covariance",
    "sum_coefficients",
]

Doubles = npt.NDArray[np.float64]

# Of the conjugate gradients: least residual, in parts of the right-hand side, and most steps.
TOLERANCE = 1e-6
MOST_STEPS = 500
# Filters below this part of the strongest one tell nothing and are raised to it.
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
        Of the sample covariance, noise included, in coordinates in which the noise is white.
    signal : float64 array, shape (n_q,)
        What shrinkage leaves of them as signal.
    noise_edge
        The largest one that noise alone would give.
    """

    sample: Doubles
    signal: Doubles
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
    products = [_lower(parts[:, own].T @ parts[:, own]) for own in basis.slices]
    zeroth = parts[: len(coefs), basis.slices[0]]
    counts = np.bincount(which, minlength=len(power)).astype(np.float64)
    return CoefficientSums(
        n_images=len(coefs),
        first=to_host(zeroth.sum(axis=0)),
        products=to_host(xp.concatenate(products)),
        first_by_power=to_host(xp.ascontiguousarray(zeroth.T @ xp.asarray(power[which]))),
        power=counts @ power,
        power_products=_lower((power * counts[:, None]).T @ power),
    )


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
    return matrix[np.tril_indices(len(matrix))]


def _symmetric(lower: Doubles, size: int) -> Doubles:
    matrix = np.empty((size, size))
    rows, columns = np.tril_indices(size)
    matrix[rows, columns] = matrix[columns, rows] = lower
    return matrix


# --- Estimates ------------------------------------------------------------------------------------


def estimate_covariance(
    sums: CoefficientSums,
    basis: SteerableBasis,
    noise_variance: float,
    shrinkage: str = "frobenius",
) -> Covariance:
    """Estimate the mean and the covariance of images without CTF and noise.

    The sample covariance is brought to white noise by the mean filter, its eigenvalues are shrunk
    (`emdask.kernels.shrinkage`; n images are n samples of order 0, and 2 n of any other, whose
    real and imaginary parts are alike), and least squares is solved by conjugate gradients.

    Parameters
    ----------
    sums
        Over all images.
    basis
        What they were expanded in.
    noise_variance
        Of a pixel, 0 or more.
    shrinkage
        A name in `emdask.kernels.shrinkage.SHRINKERS`.

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
    >>> float(estimate_covariance(sums, basis, 1.0).blocks[3].max())
    0.0
    """
    n = sums.n_images
    pairs = _symmetric(sums.power_products / n, len(sums.power))
    mean = _estimate_mean(sums, basis.radial[0])
    blocks, spectra, start = [], [], 0
    for k, radial in enumerate(basis.radial):
        size = radial.shape[1]
        end = start + size * (size + 1) // 2
        sample = _symmetric(sums.products[start:end] / n, size)
        if k == 0:
            sample = _centre(sample, mean, radial, sums.first_by_power / n, pairs)
        whiten, colour = _whitening(radial.T @ (sums.power[:, None] / n * radial))
        values, vectors = np.linalg.eigh(whiten @ sample @ whiten)
        ratio = size / (n if k == 0 else 2 * n)
        signal = SHRINKERS[shrinkage](values, noise_variance, ratio)
        vectors = colour @ vectors
        block = _solve(radial, pairs, (vectors * signal) @ vectors.T, whiten @ whiten)
        blocks.append(_positive(block))
        edge = noise_variance * (1 + np.sqrt(ratio)) ** 2
        spectra.append(Spectrum(values[::-1], signal[::-1], float(edge)))
        start = end
    return Covariance(mean, tuple(blocks), tuple(spectra))


def _estimate_mean(sums: CoefficientSums, radial: Doubles) -> Doubles:
    """Solve sum G mean = sum t, of least squares weighted by the noise of each coefficient."""
    whiten, _ = _whitening(radial.T @ (sums.power[:, None] / sums.n_images * radial))
    return whiten @ (whiten @ (sums.first / sums.n_images))


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


def _whitening(filters: Doubles) -> tuple[Doubles, Doubles]:
    """Return the symmetric inverse root and root of a filter matrix."""
    values, vectors = np.linalg.eigh(filters)
    least = max(LEAST_FILTER * values.max(initial=0.0), np.finfo(np.float64).tiny)
    roots = np.sqrt(np.maximum(values, least))
    return (vectors / roots) @ vectors.T, (vectors * roots) @ vectors.T


def _solve(radial: Doubles, pairs: Doubles, right: Doubles, inverse: Doubles) -> Doubles:
    """Solve mean(G C G) = right for C by conjugate gradients, preconditioned by the mean filter."""

    def apply(matrix: Doubles) -> Doubles:
        return np.asarray(radial.T @ ((radial @ matrix @ radial.T) * pairs) @ radial)

    solution, residual = np.zeros_like(right), right.copy()
    small = TOLERANCE * np.linalg.norm(right)
    steered = inverse @ residual @ inverse
    direction, size = steered, np.vdot(residual, steered)
    for _ in range(MOST_STEPS):
        if np.linalg.norm(residual) <= small:
            break
        image = apply(direction)
        step = size / np.vdot(direction, image)
        solution = solution + step * direction
        residual = residual - step * image
        steered = inverse @ residual @ inverse
        size, previous = np.vdot(residual, steered), size
        direction = steered + size / previous * direction
    return solution


def _positive(matrix: Doubles) -> Doubles:
    """Return the nearest matrix that is symmetric without negative eigenvalues."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return np.asarray((vectors * np.maximum(values, 0)) @ vectors.T)
