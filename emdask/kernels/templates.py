"""Templates: views of a volume, or images, brought to one size and turned; plain NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.ndimage import affine_transform

from emdask.kernels.projections import rotation_matrices
from emdask.kernels.slices import prepare_volume, project_volume

__all__ = ["project_views", "resample", "sphere_views", "turn_images"]

Array = npt.NDArray[Any]


def sphere_views(n_views: int) -> Array:
    """Spread directions of view evenly over the sphere, along a spiral.

    Half of the sphere would leave out the mirror images of its views.

    Parameters
    ----------
    n_views
        How many.

    Returns
    -------
    float64 array, shape (n_views, 2)
        RELION's rot and tilt, degrees.

    Notes
    -----
    Rings of equal height have equal areas, so steps in the cosine of the tilt are equal, and the
    golden angle between neighbours keeps them apart: Swinbank and Purser, Quarterly Journal of the
    Royal Meteorological Society 132 (2006) 1769-1793.

    Examples
    --------
    >>> sphere_views(2).round(1).tolist()
    [[68.8, 60.0], [206.3, 120.0]]
    """
    number = np.arange(n_views) + 0.5
    rot = np.rad2deg(np.pi * (3 - 5**0.5) * number) % 360
    tilt = np.rad2deg(np.arccos(1 - 2 * number / n_views))
    return np.column_stack([rot, tilt])


def project_views(volume: Array, factor: float, n_views: int, n_angles: int) -> Array:
    """Project a volume in many directions, at another size of pixel.

    Parameters
    ----------
    volume : array, shape (n, n, n)
        Mass in each voxel, centre at voxel ``n // 2``.
    factor
        Pixels for each voxel.
    n_views
        Directions of view, see `sphere_views`.
    n_angles
        Turns of each in its plane, over 360 degrees.

    Returns
    -------
    float32 array, shape (n_views * n_angles, m, m)
        Centre at pixel ``m // 2``.

    Examples
    --------
    >>> project_views(np.ones((16, 16, 16), np.float32), 0.5, n_views=3, n_angles=4).shape
    (12, 8, 8)
    """
    small = resample(volume, factor, (0, 1, 2))
    views_deg = np.repeat(sphere_views(n_views), n_angles, axis=0)
    psi_deg = np.tile(np.arange(n_angles) * 360 / n_angles, n_views)
    matrices = rotation_matrices(np.column_stack([views_deg, psi_deg]))
    return np.asarray(project_volume(prepare_volume(small), matrices))


def resample(values: Array, factor: float, axes: tuple[int, ...]) -> Array:
    """Bring an array to another size of pixel, about its centre, by Fourier transforms.

    Parameters
    ----------
    values : array
        Centre at ``n // 2`` along each of the axes; 0 beyond.
    factor
        New pixels for each old one; what is made differs from it by less than 1 / n, to have whole
        pixels.
    axes
        Along which.

    Returns
    -------
    float32 array
        An even number of pixels along these axes, centre at ``m // 2``.

    Examples
    --------
    >>> resample(np.ones((2, 16), np.float32), 0.5, (1,)).shape
    (2, 8)
    """
    result = np.asarray(values, np.float32)
    for axis in axes:
        n = result.shape[axis]
        m = 2 * int(np.ceil(n * factor / 2 - 1e-9))
        wide = max(n, round(m / factor))
        before = wide // 2 - n // 2
        margins = [(0, 0)] * result.ndim
        margins[axis] = (before, wide - n - before)
        centred = fft.ifftshift(np.pad(result, margins), axes=axis)
        kept = fft.rfft(centred, axis=axis).take(range(min(wide // 2, m // 2) + 1), axis)
        result = fft.fftshift(fft.irfft(kept, m, axis=axis), axes=axis) * np.float32(m / wide)
    return result


def turn_images(images: Array, n_angles: int) -> Array:
    """Turn images about their centres, by cubic splines; 0 comes in from beyond them.

    Parameters
    ----------
    images : array, shape (n, h, w)
        Centre at pixel (h // 2, w // 2).
    n_angles
        Turns of each, over 360 degrees.

    Returns
    -------
    float32 array, shape (n * n_angles, h, w)
        The turns of an image, by growing angle from x towards y, are side by side.

    Examples
    --------
    >>> turned = turn_images(np.eye(3, dtype=np.float32)[None], 4)
    >>> turned.shape, abs(turned[1]).round(3).astype(int).tolist()
    ((4, 3, 3), [[0, 0, 1], [0, 1, 0], [1, 0, 0]])
    """
    centre = np.array(images.shape[1:]) // 2
    turned = []
    for image in images:
        for angle in np.arange(n_angles) * 2 * np.pi / n_angles:
            c, s = np.cos(angle), np.sin(angle)
            back = np.array([[c, -s], [s, c]])
            turned.append(affine_transform(image, back, centre - back @ centre, order=3))
    return np.array(turned, np.float32)
