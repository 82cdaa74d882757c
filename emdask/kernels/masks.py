"""Soft masks of volumes: plain arrays, NumPy or CuPy."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from emdask.backend import array_namespace, filter_namespace

__all__ = ["mask_from_volume", "spherical_mask"]

# Of the values within the inscribed sphere, the share above which a voxel is surely density.
STRONG_SHARE = 1e-3
# Share of that strength at which a particle ends.
EDGE_SHARE = 0.15


def spherical_mask(box_px: int, radius_px: float, soft_px: float = 0.0, xp: ModuleType = np) -> Any:
    """Return a ball about the centre of a volume, with a soft edge.

    Parameters
    ----------
    box_px
        Edge n of the volume; the ball's centre is voxel ``n // 2``.
    radius_px
        Where the mask begins to fall from 1.
    soft_px
        Width of the edge, along which it falls to 0 as a cosine.
    xp
        Library of the mask: ``numpy`` or ``cupy``.

    Returns
    -------
    float32 array, shape (n, n, n)
        From 0 to 1.

    Examples
    --------
    >>> spherical_mask(8, 2.0)[4, 4]
    array([0., 0., 1., 1., 1., 1., 1., 0.], dtype=float32)
    """
    square = xp.square(xp.arange(box_px, dtype=np.float32) - box_px // 2)
    distance = xp.sqrt(square[:, None, None] + square[:, None] + square)
    return _fall_off(distance - np.float32(radius_px), soft_px)


def mask_from_volume(
    volume: Any,
    threshold: float | None = None,
    *,
    smooth_px: float = 2.0,
    extend_px: float = 3.0,
    soft_px: float = 5.0,
) -> Any:
    """Return a mask of where the density is.

    The volume is blurred, cut at a threshold, and what is cut out grown and given a soft edge.

    Parameters
    ----------
    volume : array, shape (n, n, n)
        Density, positive where the particle is.
    threshold
        Of the blurred volume; None takes 0.15 of the value that a thousandth of the voxels in the
        inscribed sphere exceed, and of what lies above it the largest connected part.
    smooth_px
        Standard deviation of the blur.
    extend_px
        How far the mask reaches beyond what is above the threshold.
    soft_px
        Width of the edge beyond that, along which it falls to 0 as a cosine.

    Returns
    -------
    float32 array, shape (n, n, n)
        From 0 to 1.

    Examples
    --------
    >>> ball = spherical_mask(48, 6.0)
    >>> mask = mask_from_volume(ball)
    >>> bool(mask[ball > 0].min() == 1), bool(mask.mean() < 0.1)
    (True, True)
    """
    xp, filters = array_namespace(volume), filter_namespace(volume)
    n = len(volume)
    blurred = filters.gaussian_filter(xp.asarray(volume, np.float32), smooth_px)
    inside = spherical_mask(n, n / 2, xp=xp) > 0
    if threshold is None:
        strong = float(xp.quantile(blurred[inside], 1 - STRONG_SHARE))
        core = _largest_part((blurred > EDGE_SHARE * strong) & inside)
    else:
        core = blurred > threshold
    if not bool(core.any()):
        return xp.zeros(volume.shape, np.float32)
    distance = filters.distance_transform_edt(~core).astype(np.float32)
    return _fall_off(distance - np.float32(extend_px), soft_px)


def _largest_part(core: Any) -> Any:
    xp = array_namespace(core)
    labels, _ = filter_namespace(core).label(core)
    sizes = xp.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def _fall_off(beyond: Any, soft_px: float) -> Any:
    """1 where ``beyond`` is at most 0, 0 from ``soft_px`` on."""
    xp = array_namespace(beyond)
    if soft_px <= 0:
        return (beyond <= 0).astype(np.float32)
    share = xp.clip(beyond / np.float32(soft_px), 0, 1)
    return (xp.cos(np.float32(np.pi) * share) + 1) / 2
