"""Directions of view: grids of them on the sphere, whole or around one, and angles between them.

A direction is RELION's rot and tilt. Images seen from directions that are opposite to each other
are mirror images, so a grid over the whole sphere holds them too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.kernels.projections import rotation_matrices
from emdask.kernels.templates import sphere_views

__all__ = [
    "align_views",
    "angles_between",
    "cone_views",
    "sphere_grid",
    "turn_pole",
    "unit_vectors",
    "view_of",
]

Array = npt.NDArray[Any]


def unit_vectors(views_deg: npt.ArrayLike) -> Array:
    """Return the directions as vectors in the frame of the particle.

    Parameters
    ----------
    views_deg : array_like, shape (..., 2)
        rot and tilt, degrees.

    Returns
    -------
    float64 array, shape (..., 3)
        The third rows of `emdask.kernels.projections.rotation_matrices`.

    Examples
    --------
    >>> unit_vectors([90.0, 90.0]).round(6).tolist()
    [0.0, 1.0, 0.0]
    """
    rot, tilt = np.moveaxis(np.deg2rad(np.asarray(views_deg, np.float64)), -1, 0)
    return np.stack([np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)], -1)


def view_of(vectors: npt.ArrayLike) -> Array:
    """Return the directions that vectors have: the inverse of `unit_vectors`.

    Parameters
    ----------
    vectors : array_like, shape (..., 3)
        Of any length but 0, in the frame of the particle.

    Returns
    -------
    float64 array, shape (..., 2)
        rot, 0 to 360, and tilt, degrees.

    Examples
    --------
    >>> view_of([0.0, 2.0, 0.0]).tolist()
    [90.0, 90.0]
    """
    x, y, z = np.moveaxis(np.asarray(vectors, np.float64), -1, 0)
    rot = np.rad2deg(np.arctan2(y, x)) % 360
    return np.stack([rot, np.rad2deg(np.arctan2(np.hypot(x, y), z))], -1)


def angles_between(views_deg: npt.ArrayLike, view_deg: npt.ArrayLike) -> Array:
    """Return the angles of directions to one direction.

    Parameters
    ----------
    views_deg : array_like, shape (..., 2)
        rot and tilt, degrees.
    view_deg : array_like, shape (2,)
        The one.

    Returns
    -------
    float64 array, shape (...)
        Degrees, 0 to 180.

    Examples
    --------
    >>> angles_between([[0.0, 30.0], [180.0, 30.0]], [0.0, 10.0]).round(6).tolist()
    [20.0, 40.0]
    """
    cosines = unit_vectors(views_deg) @ unit_vectors(view_deg)
    angles: Array = np.rad2deg(np.arccos(np.clip(cosines, -1, 1)))
    return angles


def align_views(views_deg: npt.ArrayLike, view_deg: npt.ArrayLike) -> Array:
    """Turn views in their planes so that neighbours of one direction look as alike as possible.

    Each is what is seen when the particle is tipped from the one direction by the least rotation.

    Parameters
    ----------
    views_deg : array_like, shape (v, 2)
        rot and tilt, degrees.
    view_deg : array_like, shape (2,)
        The one direction.

    Returns
    -------
    float64 array, shape (v, 3)
        RELION's rot, tilt and psi, degrees.

    Examples
    --------
    >>> align_views([[70.0, 5.0]], [0.0, 0.0]).round(6).tolist()
    [[70.0, 5.0, -70.0]]
    """
    views = np.asarray(views_deg, np.float64)
    untwisted = rotation_matrices(np.column_stack([views, np.zeros(len(views))]))
    frame = rotation_matrices([*np.asarray(view_deg, np.float64), 0.0])
    # Where the direction of each view lies in the frame of the one; the least rotation brings it
    # to z about the axis (y, -x, 0), and what is left of it in the view's own plane is psi.
    x, y, z = (unit_vectors(views) @ frame.T).T
    scale = 1 / (1 + np.maximum(z, 1e-9 - 1))
    zero = np.zeros_like(x)
    least = np.stack(
        [
            np.stack([1 - x * x * scale, -x * y * scale, -x], -1),
            np.stack([-x * y * scale, 1 - y * y * scale, -y], -1),
            np.stack([x, y, z + zero], -1),
        ],
        -2,
    )
    turned = least @ frame @ untwisted.swapaxes(1, 2)
    psi = np.rad2deg(np.arctan2(turned[:, 0, 1], turned[:, 0, 0]))
    return np.column_stack([views, psi])


def cone_views(
    view_deg: npt.ArrayLike, cone_deg: float, step_deg: float, beyond_deg: float = 0.0
) -> Array:
    """Spread directions evenly over a cone, in rings about its axis.

    Parameters
    ----------
    view_deg : array_like, shape (2,)
        rot and tilt of the axis, degrees.
    cone_deg
        Half the opening angle.
    step_deg
        Distance of neighbours.
    beyond_deg
        With rings further out up to so much outside of the cone; one at least, if it is above 0.

    Returns
    -------
    float64 array, shape (v, 2)
        rot (0 to 360) and tilt, degrees; the axis comes first, and rings follow outwards: some lie
        on the edge of the cone, and the outermost of those beyond it where these end.

    Examples
    --------
    >>> views = cone_views([20.0, 50.0], 10.0, 3.0)
    >>> len(views), float(angles_between(views, [20.0, 50.0]).max().round(6))
    (43, 10.0)
    """
    inside, beyond = (_divide(width, step_deg) for width in (cone_deg, beyond_deg))
    tilts = [0.0, *inside, *(cone_deg + beyond)]
    rings = [_ring(min(tilt, 180.0), step_deg, i) for i, tilt in enumerate(tilts)]
    return turn_pole(np.concatenate(rings), view_deg)


def sphere_grid(step_deg: float) -> Array:
    """Spread directions evenly over the whole sphere.

    Parameters
    ----------
    step_deg
        Edge of the square that each has to itself.

    Returns
    -------
    float64 array, shape (v, 2)
        rot and tilt, degrees: `emdask.kernels.templates.sphere_views`.

    Examples
    --------
    >>> len(sphere_grid(10.0))
    413
    """
    return sphere_views(max(1, round(4 * np.pi / np.deg2rad(step_deg) ** 2)))


def _divide(width_deg: float, step_deg: float) -> Array:
    """Ends of equal parts, about a step wide each."""
    n = max(1, round(width_deg / step_deg)) if width_deg > 0 else 0
    return width_deg * np.arange(1, n + 1) / max(n, 1)


def _ring(tilt_deg: float, step_deg: float, number: int) -> Array:
    """Directions at one tilt; those of every other ring begin half a step further."""
    circumference_deg = 360 * np.sin(np.deg2rad(tilt_deg))
    n = max(1, round(circumference_deg / step_deg))
    rot = 360 * (np.arange(n) + 0.5 * (number % 2)) / n
    return np.column_stack([rot, np.full(n, tilt_deg)])


def turn_pole(views_deg: Array, view_deg: npt.ArrayLike) -> Array:
    """Turn directions about the pole so that they are about another direction."""
    rot, tilt = np.deg2rad(np.asarray(view_deg, np.float64))
    c, s = np.cos(tilt), np.sin(tilt)
    cr, sr = np.cos(rot), np.sin(rot)
    # Columns: where x, y and z of the pole's frame come to lie.
    frame = np.array([[cr * c, -sr, cr * s], [sr * c, cr, sr * s], [-s, 0.0, c]])
    x, y, z = frame @ unit_vectors(views_deg).T
    turned = np.column_stack(
        [np.rad2deg(np.arctan2(y, x)) % 360, np.rad2deg(np.arccos(z.clip(-1, 1)))]
    )
    return turned
