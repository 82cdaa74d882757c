"""Wiener filter of images in a steerable basis, each with its own CTF.

Of premultiplied coefficients t = G x + noise of covariance ``variance * G``, where x has some mean
and a covariance ``variance * F Fᵀ``, the estimate of least mean squared error is

    mean + F (1 + Fᵀ G F)⁻¹ Fᵀ (t - G mean).

G is a diagonal h between radial nodes, G = Rᵀ h R: the matrices Fᵀ G F of all CTFs are one product,
of the pairs of columns of R F with the columns h. An image's bits do not depend on those beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace
from emdask.kernels.row_products import multiply_rows, pack_matrix
from emdask.kernels.steerable import SteerableBasis

__all__ = ["filter_coefficients"]

Doubles = npt.NDArray[np.float64]

# Noise is at least this part of the strongest component: single precision tells no less.
LEAST_NOISE = 1e-6
# Components of less than this part of the noise are left out: each adds at most its square to the
# error, in the noise's units, and time grows with the third power of their number.
LEAST_COMPONENT = 1e-2


def filter_coefficients(
    coefs: Any,
    basis: SteerableBasis,
    power: Doubles,
    which: npt.NDArray[np.intp],
    *,
    mean: Doubles,
    factors: Sequence[Doubles],
    noise_variance: float,
) -> Any:
    """Estimate the coefficients of images without CTF and noise.

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
    mean : float64 array, shape (n_q0,)
        Of the coefficients of order 0.
    factors
        For each order, a float64 matrix (n_q, rank) of orthogonal columns, whose product with its
        transpose is the covariance.
    noise_variance
        Of a pixel, 0 or more.

    Returns
    -------
    complex64 array, shape (n, n_coefs)

    Examples
    --------
    >>> from emdask.kernels.steerable import steerable_basis
    >>> basis = steerable_basis(16)
    >>> coefs, power = np.ones((1, 56), np.complex64), np.ones((1, len(basis.nodes)))
    >>> mean = np.zeros(basis.radial[0].shape[1])
    >>> factors = [np.eye(radial.shape[1]) for radial in basis.radial]
    >>> model = {"mean": mean, "factors": factors, "noise_variance": 1.0}
    >>> clean = filter_coefficients(coefs, basis, power, np.zeros(1, int), **model)
    >>> clean[0, basis.slices[1]][0].round(3)
    np.complex64(0.5+0j)
    """
    xp = array_namespace(coefs)
    start = basis.slices[0]
    centred = coefs.copy()
    seen = multiply_rows(
        _to(xp, power * (basis.radial[0] @ mean)), pack_matrix(basis.radial[0], xp)
    )
    centred[:, start] -= seen[xp.asarray(which)]
    scaled = _scale_factors(factors, noise_variance)
    rows = [(radial @ own).T for radial, own in zip(basis.radial, scaled, strict=True)]
    filtered = _twin(xp)(centred, basis.slices, scaled, rows, power, which)
    filtered[:, start] += _to(xp, mean)
    return filtered


def _twin(xp: Any) -> Callable[..., Any]:
    if xp is not np:
        return _filter_on_card
    from emdask.kernels.steerable_wiener_cpu import filter_orders

    return filter_orders


def _scale_factors(factors: Sequence[Doubles], noise_variance: float) -> list[Doubles]:
    """Return the factors of the covariance in units of the noise, without what is nothing in it."""
    variances = [np.square(factor).sum(axis=0) for factor in factors]
    largest = max((own.max(initial=0) for own in variances), default=0)
    noise = max(noise_variance, LEAST_NOISE * largest)
    return [
        factor[:, own > LEAST_COMPONENT * noise] / np.sqrt(noise or 1.0)
        for factor, own in zip(factors, variances, strict=True)
    ]


def _to(xp: Any, array: Any) -> Any:
    return xp.asarray(np.ascontiguousarray(array, np.float32))


def _filter_on_card(
    coefs: Any,
    places: Sequence[slice],
    factors: Sequence[Doubles],
    rows: Sequence[Doubles],
    power: Doubles,
    which: Any,
) -> Any:
    """Filter as `steerable_wiener_cpu.filter_orders` does."""
    xp = array_namespace(coefs)
    filtered, squares, own = xp.zeros_like(coefs), _to(xp, power), xp.asarray(which)
    for place, factor, samples in zip(places, factors, rows, strict=True):
        size, rank = factor.shape
        if not rank:
            continue
        parts = xp.stack([coefs[:, place].real, coefs[:, place].imag], 1).reshape(-1, size)
        right = multiply_rows(parts, pack_matrix(factor, xp)).reshape(-1, 2, rank)
        one, other = np.tril_indices(rank)
        lower = multiply_rows(squares, pack_matrix((samples[one] * samples[other]).T, xp))
        matrices = xp.empty((len(own), rank, rank))
        matrices[:, one, other] = matrices[:, other, one] = lower[own]
        matrices += xp.eye(rank)
        solutions = xp.linalg.solve(matrices, right.transpose(0, 2, 1).astype(np.float64))
        solutions = xp.ascontiguousarray(solutions.transpose(0, 2, 1), np.float32)
        parts = multiply_rows(solutions.reshape(-1, rank), pack_matrix(factor.T, xp))
        parts = parts.reshape(-1, 2, size)
        filtered[:, place] = parts[:, 0] + 1j * parts[:, 1]
    return filtered
