"""Folding half planes by the symmetries of the square: sums over a disc become shorter ones.

Mirrored and transposed, points of a disc in Fourier space go over into one another, eight at a
time. The real part of an image's transform is the same at k and -k: it goes with angular functions
of even order. Under the other symmetries it falls into four parts, each given by an eighth of the
points, and orthogonal to the others. The imaginary part changes its sign at -k and goes with odd
orders. It falls into two parts, each given by a quarter of the points, that are transposes of each
other: what is multiplied with one is multiplied with the other by the same matrix.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace

__all__ = [
    "Folding",
    "find_octant",
    "find_quadrant",
    "fold_imag",
    "fold_real",
    "unfold_imag",
    "unfold_real",
]

Integers = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


class Folding(NamedTuple):
    """Points that stand for all of a disc.

    Parameters
    ----------
    points : int64 array, shape (m, 2)
        (x, y) in steps of the Fourier grid.
    weights : float64 array, shape (m,)
        Sums over the disc are sums of folded values times these.
    places : int64 array, shape (4 m,)
        Where a flat half plane has (x, y), (x, -y), (y, x) and (y, -x).
    sources : int64 array
        Where each point of a half plane finds its value when it is unfolded.
    """

    points: Integers
    weights: Doubles
    places: Any
    sources: Any

    def to(self, xp: Any) -> Folding:
        """The same with indices for arrays of a library."""
        return self._replace(places=xp.asarray(self.places), sources=xp.asarray(self.sources))


def find_octant(box_px: int, band: float) -> Folding:
    """Find the points 0 <= y <= x nearer to the origin than ``band``, in cycles a pixel.

    Examples
    --------
    >>> octant = find_octant(8, 0.3)
    >>> octant.points.tolist(), octant.weights.tolist()
    ([[0, 0], [1, 0], [2, 0], [1, 1], [2, 1]], [0.25, 1.0, 1.0, 1.0, 2.0])
    """
    points = _find_points(box_px, band)
    points = points[points[:, 1] <= points[:, 0]]
    x, y = points.T
    # Of the four values that are added up, some are the same point.
    weights = 2.0 / (1 + (y == 0)) / (1 + (x == y)) / (1 + (x == 0))
    places = _find_places(points, box_px)
    return Folding(points, weights, places.reshape(-1), _invert(places, 0, box_px))


def find_quadrant(box_px: int, band: float) -> Folding:
    """Find the points 0 < x, 0 <= y nearer to the origin than ``band``, in cycles a pixel.

    Examples
    --------
    >>> quadrant = find_quadrant(8, 0.3)
    >>> quadrant.points.tolist(), quadrant.weights.tolist()
    ([[1, 0], [2, 0], [1, 1], [2, 1], [1, 2]], [1.0, 1.0, 2.0, 2.0, 2.0])
    """
    points = _find_points(box_px, band)
    points = points[points[:, 0] > 0]
    weights = 2.0 / (1 + (points[:, 1] == 0))
    places = _find_places(points, box_px)
    # Values at (x, y) and (x, -y) are equal, those at (y, x) and (y, -x) opposite.
    even, odd = _invert(places[:2], 0, box_px), _invert(places[2:], len(points), box_px)
    even[even < 2 * len(points)] %= len(points)
    even[even == 2 * len(points)] = 3 * len(points)
    return Folding(points, weights, places.reshape(-1), np.stack([even, odd]))


def _find_points(box_px: int, band: float) -> Integers:
    y, x = np.mgrid[: box_px // 2 + 1, : box_px // 2 + 1].reshape(2, -1)
    inside = x * x + y * y < (band * box_px) ** 2
    return np.stack([x[inside], y[inside]], 1)


def _find_places(points: Integers, box_px: int) -> Integers:
    """Return where a flat half plane has (x, y), (x, -y), (y, x) and (y, -x); (4, m)."""
    x, y = points.T
    rows, columns = np.stack([y, -y, x, -x]) % box_px, np.stack([x, x, y, y])
    return np.asarray(rows * (box_px // 2 + 1) + columns, np.int64)


def _invert(places: Integers, first: int, box_px: int) -> Integers:
    """Return the number, from ``first`` on, that each point has among places, or the one after."""
    numbers = np.full(box_px * (box_px // 2 + 1), first + places.size)
    numbers[places.reshape(-1)] = first + np.arange(places.size)
    return numbers


# --- Even orders ----------------------------------------------------------------------------------


def fold_real(real: Any, octant: Folding) -> tuple[Any, Any, Any, Any]:
    """Add up the values of each orbit with the signs of four parts.

    Parameters
    ----------
    real : array, shape (n, box (box // 2 + 1))
        Real parts of half planes; NumPy or CuPy.
    octant
        As of `find_octant`, with indices of the same library.

    Returns
    -------
    tuple of arrays, shape (n, m)
        Parts that do not change when mirrored, the first neither when transposed, the second
        changes its sign then; and parts that change their sign when mirrored, likewise.
    """
    here, below, across, beside = _take(real, octant)
    sums, others = here + below, across + beside
    differences, opposites = here - below, across - beside
    return sums + others, sums - others, differences + opposites, differences - opposites


def unfold_real(parts: tuple[Any, Any, Any, Any], octant: Folding) -> Any:
    """Adjoint of `fold_real`, but that a point counts once for each value that it stands for."""
    xp = array_namespace(parts[0])
    sums, others = parts[0] + parts[1], parts[0] - parts[1]
    differences, opposites = parts[2] + parts[3], parts[2] - parts[3]
    values = [sums + differences, sums - differences, others + opposites, others - opposites]
    zeros = xp.zeros((len(sums), 1), sums.dtype)
    return xp.take(xp.concatenate([*values, zeros], 1), octant.sources, axis=1)


# --- Odd orders -----------------------------------------------------------------------------------


def fold_imag(imag: Any, quadrant: Folding) -> Any:
    """Add up values at (x, y) and (x, -y), and subtract those at (y, -x) from those at (y, x).

    Parameters
    ----------
    imag : array, shape (n, box (box // 2 + 1))
        Imaginary parts of half planes; NumPy or CuPy.
    quadrant
        As of `find_quadrant`, with indices of the same library.

    Returns
    -------
    array, shape (2 n, m)
        The part that does not change its sign when y does, then the transpose of the other.
    """
    here, below, across, beside = _take(imag, quadrant)
    return array_namespace(imag).concatenate([here + below, across - beside])


def unfold_imag(parts: Any, quadrant: Folding) -> Any:
    """Adjoint of `fold_imag`, but that a point counts once for each value that it stands for."""
    xp = array_namespace(parts)
    even, odd = parts[: len(parts) // 2], parts[len(parts) // 2 :]
    values = xp.concatenate([even, odd, -odd, xp.zeros((len(even), 1), even.dtype)], 1)
    unfolded = xp.take(values, quadrant.sources[0], axis=1)
    unfolded += xp.take(values, quadrant.sources[1], axis=1)
    return unfolded


def _take(values: Any, folding: Folding) -> Any:
    """Return the values at the four places of each point; four of (n, m)."""
    taken = array_namespace(values).take(values, folding.places, axis=1)
    return taken.reshape(len(values), 4, -1).swapaxes(0, 1)
