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

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace
from emdask.kernels.row_products import ROWS_ON_CARD, multiply_rows, pack_matrix
from emdask.kernels.steerable import SteerableBasis

__all__ = ["filter_coefficients", "scale_factors"]

Doubles = npt.NDArray[np.float64]

# Noise is at least this part of the strongest component: single precision tells no less.
LEAST_NOISE = 1e-6
# Components of less than this part of the noise are left out: each adds at most its square to the
# error, in the noise's units, and time grows with the third power of their number.
LEAST_COMPONENT = 1e-2
# Elements of the systems of equations that are solved together on a card: 128 MiB.
ELEMENTS_ON_CARD = 1 << 24


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
    if xp is not np:
        return _solve_on_card(centred, basis, power, which)
    from emdask.kernels.steerable_wiener_cpu import solve_orders

    return solve_orders(centred, basis.slices, basis.radial, power, which)


def _to(xp: Any, array: Any) -> Any:
    return xp.asarray(np.ascontiguousarray(array, np.float32))


# --- Cards ----------------------------------------------------------------------------------------


class _Group(NamedTuple):
    """Orders whose blocks are filled up to one size.

    Parameters
    ----------
    places : int array, shape (n_orders, size)
        Coefficients of each, then the number of all.
    pairs : float32 array, shape (n_r, n_orders * size * size)
        Products of the functions at the nodes.
    """

    places: Any
    pairs: Any


def _solve_on_card(coefs: Any, basis: SteerableBasis, power: Doubles, which: Any) -> Any:
    """Solve as `solve_orders` does, all orders of a size at once."""
    xp = array_namespace(coefs)
    squares = _to(xp, power)[xp.asarray(which)]
    parts = xp.zeros((len(coefs), coefs.shape[1] + 1, 2))
    parts[:, :-1, 0], parts[:, :-1, 1] = coefs.real, coefs.imag
    for places, pairs in _group_orders(basis, xp, xp.cuda.Device().id):
        n_orders, size = places.shape
        # Always as many images, or a library might round otherwise.
        n_rows = min(ROWS_ON_CARD, max(1, ELEMENTS_ON_CARD // pairs.shape[1]))
        rows = xp.zeros((n_rows, len(pairs)), np.float32)
        for start in range(0, len(coefs), n_rows):
            some = slice(start, start + n_rows)
            n = len(squares[some])
            rows[:n] = squares[some]
            matrices = (rows @ pairs)[:n].reshape(n, n_orders, size, size).astype(np.float64)
            matrices += xp.eye(size)
            parts[some, places] = xp.linalg.solve(matrices, parts[some, places])
    return (parts[:, :-1, 0] + 1j * parts[:, :-1, 1]).astype(np.complex64)


@functools.lru_cache(maxsize=4)
def _group_orders(basis: SteerableBasis, xp: Any, card: int) -> tuple[_Group, ...]:
    sizes = np.array([own.shape[1] for own in basis.radial])
    rounded = np.where(sizes > 0, 2 ** np.ceil(np.log2(np.maximum(sizes, 1))), 0).astype(int)
    groups = []
    for size in np.unique(rounded[rounded > 0]):
        members = np.flatnonzero(rounded == size)
        places = np.full((len(members), size), len(basis.orders))
        columns = np.zeros((len(members), size, len(basis.nodes)))
        for i, k in enumerate(members):
            places[i, : sizes[k]] = np.arange(basis.slices[k].start, basis.slices[k].stop)
            columns[i, : sizes[k]] = basis.radial[k].T
        pairs = columns[:, :, None] * columns[:, None, :]
        pairs = np.moveaxis(pairs, -1, 0).reshape(len(basis.nodes), -1)
        groups.append(_Group(xp.asarray(places), _to(xp, pairs)))
    # Other threads use them on streams of their own.
    xp.cuda.get_current_stream().synchronize()
    return tuple(groups)
