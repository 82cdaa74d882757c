"""Wiener filter of images in a steerable basis, each with its own CTF.

Of premultiplied coefficients t = G x + noise of covariance ``variance * G``, where x has some mean
and a covariance ``variance * F Fᵀ``, the estimate of least mean squared error is

    mean + F z,    (1 + Fᵀ G F) z = Fᵀ (t - G mean).

In the basis that is combined of the columns of F (`emdask.kernels.steerable.combine`), Fᵀ t are the
coefficients of an image, Fᵀ G F is the filter matrix of its squared CTF, and F z is evaluated at
once: what there is to do grows with the number of components, and not with that of functions. An
image's bits do not depend on those beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace
from emdask.kernels.row_products import multiply_rows, pack_matrix
from emdask.kernels.steerable import SteerableBasis

__all__ = ["filter_coefficients", "scale_factors"]

Doubles = npt.NDArray[np.float64]

# Noise is at least this part of the strongest component: single precision tells no less.
LEAST_NOISE = 1e-6
# Components of less than this part of the noise are left out: each adds at most its square to the
# error, in the noise's units, and time grows with the third power of their number.
LEAST_COMPONENT = 1e-2


def scale_factors(factors: Sequence[Doubles], noise_variance: float) -> list[Doubles]:
    """Return the factors of the covariance in units of the noise, without what is nothing in it.

    Parameters
    ----------
    factors
        For each order, a float64 matrix (n_q, rank) of orthogonal columns, whose product with its
        transpose is the covariance.
    noise_variance
        Of a pixel, 0 or more.

    Returns
    -------
    list of float64 arrays
        Matrices F, for `emdask.kernels.steerable.combine`.

    Examples
    --------
    >>> scale_factors([np.diag([4.0, 0.01])], 4.0)
    [array([[2.],
           [0.]])]
    """
    variances = [np.square(factor).sum(axis=0) for factor in factors]
    largest = max((own.max(initial=0) for own in variances), default=0)
    noise = max(noise_variance, LEAST_NOISE * largest)
    return [
        factor[:, own > LEAST_COMPONENT * noise] / np.sqrt(noise or 1.0)
        for factor, own in zip(factors, variances, strict=True)
    ]


def filter_coefficients(
    coefs: Any,
    basis: SteerableBasis,
    power: Doubles,
    which: npt.NDArray[np.intp],
    profile: Doubles,
) -> Any:
    """Estimate what images are beside their mean, without CTF and noise.

    Parameters
    ----------
    coefs : complex64 array, shape (n, n_coefs)
        Of images times their CTF; NumPy or CuPy.
    basis
        What they are coefficients of: the components, scaled by `scale_factors`.
    power : float64 array, shape (m, n_r)
        The squared CTFs that differ, at the nodes of the basis.
    which : int array, shape (n,)
        Which of them each image has.
    profile : float64 array, shape (n_r,)
        The mean image at the nodes, with their weights: ``radial[0] @ mean`` in the whole basis.

    Returns
    -------
    complex64 array, shape (n, n_coefs)

    Examples
    --------
    >>> from emdask.kernels.steerable import steerable_basis
    >>> basis = steerable_basis(16)
    >>> coefs, power = np.ones((1, 56), np.complex64), np.ones((1, len(basis.nodes)))
    >>> none = np.zeros(len(basis.nodes))
    >>> clean = filter_coefficients(coefs, basis, power, np.zeros(1, int), none)
    >>> clean[0, basis.slices[1]][0].round(3)
    np.complex64(0.5+0j)
    """
    xp = array_namespace(coefs)
    centred, place = coefs.copy(), basis.slices[0]
    if place.stop:
        means = multiply_rows(_to(xp, power * profile), pack_matrix(basis.radial[0], xp))
        centred[:, place] -= means[xp.asarray(which)]
    return _twin(xp)(centred, basis.slices, basis.radial, power, which)


def _twin(xp: Any) -> Callable[..., Any]:
    if xp is not np:
        return _solve_on_card
    from emdask.kernels.steerable_wiener_cpu import solve_orders

    return solve_orders


def _to(xp: Any, array: Any) -> Any:
    return xp.asarray(np.ascontiguousarray(array, np.float32))


def _solve_on_card(
    coefs: Any, places: Sequence[slice], radial: Sequence[Doubles], power: Doubles, which: Any
) -> Any:
    """Solve as `solve_orders` does, one order after the other."""
    xp = array_namespace(coefs)
    solutions, squares, own = xp.empty_like(coefs), _to(xp, power), xp.asarray(which)
    for place, columns in zip(places, radial, strict=True):
        size = columns.shape[1]
        if size == 0:
            continue
        one, other = np.tril_indices(size)
        lower = multiply_rows(squares, pack_matrix(columns[:, one] * columns[:, other], xp))
        matrices = xp.empty((len(own), size, size))
        matrices[:, one, other] = matrices[:, other, one] = lower[own]
        matrices += xp.eye(size)
        parts = xp.stack([coefs[:, place].real, coefs[:, place].imag], 2).astype(np.float64)
        parts = xp.linalg.solve(matrices, parts)
        solutions[:, place] = parts[..., 0] + 1j * parts[..., 1]
    return solutions
