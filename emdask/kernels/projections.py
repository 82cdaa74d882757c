"""Projections of a density made of Gaussian blobs: exact, without a volume to interpolate."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def rotation_matrices(rotation_deg: npt.ArrayLike) -> Array:
    """Turn RELION's Euler angles into matrices.

    Parameters
    ----------
    rotation_deg : array_like, shape (..., 3)
        rot, tilt, psi: rotations about z, then the new y, then the new z, of the coordinate system.

    Returns
    -------
    float64 array, shape (..., 3, 3)
        Takes a point (x, y, z) of the particle to that of the view, which looks along z.

    Examples
    --------
    >>> rotation_matrices([90.0, 0.0, 0.0]).round(3) @ [1.0, 0.0, 0.0]
    array([ 0., -1.,  0.])
    """
    rot, tilt, psi = np.moveaxis(np.deg2rad(np.asarray(rotation_deg, np.float64)), -1, 0)
    return np.asarray(_about_z(psi) @ _about_y(tilt) @ _about_z(rot))


def _about_z(angle: Array) -> Array:
    c, s, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    rows = [[c, s, zero], [-s, c, zero], [zero, zero, one]]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def _about_y(angle: Array) -> Array:
    c, s, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    rows = [[c, zero, -s], [zero, one, zero], [s, zero, c]]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def project_blobs(
    positions_A: Array,
    width_A: float,
    *,
    rotation_deg: npt.ArrayLike,
    shift_A: npt.ArrayLike = (0.0, 0.0),
    box_px: int,
    pixel_size_A: float,
) -> Array:
    """Project a sum of equal Gaussian blobs of unit mass.

    Parameters
    ----------
    positions_A : array, shape (m, 3)
        Centres (x, y, z) in Å about the centre of the particle.
    width_A
        Standard deviation of each blob in Å.
    rotation_deg : array_like, shape (n, 3)
        RELION's ZYZ Euler angles of each image.
    shift_A : array_like, shape (2,) or (n, 2)
        Translation (x, y) that would centre the particle, as RELION's origin: it stands at minus
        that.
    box_px
        Edge of the images; the particle's centre is at pixel ``box_px // 2``.
    pixel_size_A
        Edge of a pixel in Å.

    Returns
    -------
    float32 array, shape (n, box_px, box_px)
        Mass in each pixel.

    Examples
    --------
    >>> image = project_blobs(
    ...     np.zeros((1, 3)), 3.0, rotation_deg=[[0, 0, 0]], box_px=32, pixel_size_A=2.0
    ... )
    >>> round(float(image.sum()), 3), int(image[0, 16].argmax())
    (1.0, 16)
    """
    matrices = rotation_matrices(rotation_deg)
    shifts = np.broadcast_to(np.asarray(shift_A, np.float64), (len(matrices), 2))
    grid_A = (np.arange(box_px) - box_px // 2) * pixel_size_A
    images = np.empty((len(matrices), box_px, box_px), np.float32)
    for image, matrix, shift in zip(images, matrices, shifts, strict=True):
        x, y = (positions_A @ matrix[:2].T - shift).T
        # A Gaussian is the product of one along y and one along x, so the sum over blobs is one
        # product of matrices.
        image[:] = _profile(grid_A, y, width_A).T @ _profile(grid_A, x, width_A)
    return images * np.float32(pixel_size_A**2)


def _profile(grid_A: Array, centres_A: Array, width_A: float) -> Array:
    # Single precision before the exponential, which then takes a quarter of the time.
    scaled = ((grid_A[None, :] - centres_A[:, None]) / width_A).astype(np.float32)
    height = np.float32(1 / (width_A * np.sqrt(2 * np.pi)))
    return np.asarray(height * np.exp(scaled * scaled * np.float32(-0.5)))
