"""Wiener filter of images in a steerable basis, each with its own CTF.

Of premultiplied coefficients t = G x + noise of covariance ``variance * G``, where x has some mean
and a covariance C = F Fᵀ, the estimate of least mean squared error is

    mean + F (variance + Fᵀ G F)⁻¹ Fᵀ (t - G mean).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace
from emdask.kernels.steerable import SteerableBasis

__all__ = ["factor_covariance", "filter_coefficients"]

Doubles = npt.NDArray[np.float64]

# A library may round otherwise for another number of images, so always as many are filtered.
IMAGES_AT_ONCE = 64
# Below this part of the strongest component noise is taken to be this much, and components to be 0.
LEAST = 1e-7


def factor_covariance(blocks: Sequence[Doubles]) -> tuple[Doubles, ...]:
    """Return F of each order's covariance C = F Fᵀ, without the columns that are nothing.

    Parameters
    ----------
    blocks
        For each order, float64 (n_q, n_q), symmetric.

    Returns
    -------
    tuple of float64 arrays, shape (n_q, rank)

    Examples
    --------
    >>> factor_covariance([np.diag([4.0, 0.0])])
    (array([[2.],
           [0.]]),)
    """
    pairs = [np.linalg.eigh(block) for block in blocks]
    largest = max((values.max(initial=0.0) for values, _ in pairs), default=0.0)
    factors = []
    for values, vectors in pairs:
        kept = values > LEAST * largest
        factors.append(vectors[:, kept] * np.sqrt(values[kept]))
    return tuple(factors)


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

    The result for an image does not depend on those beside it.

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
        For each order, float64 (n_q, rank), as of `factor_covariance`.
    noise_variance
        Of a pixel, 0 or more.

    Returns
    -------
    complex64 array, shape (n, n_coefs)

    Examples
    --------
    >>> from emdask.kernels.steerable import steerable_basis
    >>> basis = steerable_basis(16)
    >>> model = {
    ...     "mean": np.zeros(basis.radial[0].shape[1]),
    ...     "factors": [np.eye(radial.shape[1]) for radial in basis.radial],
    ... }
    >>> coefs, power = np.ones((1, 56), np.complex64), np.ones((1, len(basis.nodes)))
    >>> same = np.zeros(1, int)
    >>> clean = filter_coefficients(coefs, basis, power, same, **model, noise_variance=1.0)
    >>> clean[0, basis.slices[1]][0].round(3)
    np.complex64(0.5+0j)
    """
    xp = array_namespace(coefs)
    largest = max((float(np.square(own).sum(axis=0).max(initial=0)) for own in factors), default=0)
    noise = max(noise_variance, LEAST * largest)
    rows, own_rows = xp.asarray(power), xp.asarray(which)
    filtered = xp.zeros_like(coefs)
    for k, (own, radial, factor) in enumerate(
        zip(basis.slices, basis.radial, factors, strict=True)
    ):
        radial, factor = xp.asarray(radial), xp.asarray(factor)
        part = coefs[:, own].astype(np.complex128)
        if k == 0:
            seen = _in_batches(rows * (radial @ xp.asarray(mean)), radial)
            part -= seen[own_rows]
        if factor.shape[1]:
            gains = _make_gains(rows, radial @ factor, noise)
            parts = xp.stack([part.real, part.imag], axis=1)
            weights = _in_batches(parts.reshape(-1, part.shape[1]), factor)
            weights = weights.reshape(len(coefs), 2, -1)
            weights = xp.matmul(weights, gains[own_rows])
            parts = _in_batches(weights.reshape(-1, factor.shape[1]), factor.T)
            parts = parts.reshape(len(coefs), 2, -1)
            filtered[:, own] = parts[:, 0] + 1j * parts[:, 1]
        if k == 0:
            filtered[:, own] += xp.asarray(mean)
    return filtered


def _make_gains(power: Any, sampled: Any, noise: float) -> Any:
    """Return (noise + Fᵀ G F)⁻¹ of each squared CTF, (m, rank, rank)."""
    xp = array_namespace(power)
    rank = sampled.shape[1]
    pairs = (sampled[:, :, None] * sampled[:, None, :]).reshape(len(sampled), -1)
    return xp.linalg.inv(_in_batches(power, pairs).reshape(-1, rank, rank) + noise * xp.eye(rank))


def _in_batches(rows: Any, matrix: Any) -> Any:
    """Return the product of two matrices, always of as many rows at once."""
    xp = array_namespace(rows)
    product = xp.empty((len(rows), matrix.shape[1]))
    batch = xp.zeros((IMAGES_AT_ONCE, rows.shape[1]))
    for start in range(0, len(rows), IMAGES_AT_ONCE):
        part = rows[start : start + IMAGES_AT_ONCE]
        batch[: len(part)] = part
        product[start : start + IMAGES_AT_ONCE] = (batch @ matrix)[: len(part)]
    return product
