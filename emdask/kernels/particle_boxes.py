"""Boxes around particles: cut out of a micrograph, made smaller, brought to one background."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace
from emdask.kernels.mirroring import mirror_places
from emdask.kernels.transforms import to_half_planes, to_images

__all__ = ["bin_boxes", "box_starts", "cut_boxes", "fits_inside", "normalise_boxes"]

# Deviation of a background, as share of its level, below which it is rounding and not noise.
FLAT = 1e-6


def box_starts(centres_px: Any, box_px: int) -> npt.NDArray[np.int64]:
    """Return the first row and column of each box: its pixel ``box_px // 2`` is nearest the centre.

    Parameters
    ----------
    centres_px : array, shape (n, 2)
        x and y of each; halves go up.
    box_px
        Side of the boxes.

    Returns
    -------
    int64 array, shape (n, 2)
        y and x.

    Examples
    --------
    >>> box_starts([[10.4, 20.5]], 8).tolist()
    [[17, 6]]
    """
    nearest = np.floor(np.asarray(centres_px, np.float64) + 0.5).astype(np.int64)
    return np.ascontiguousarray(nearest.reshape(-1, 2)[:, ::-1]) - box_px // 2


def fits_inside(
    starts_px: npt.NDArray[np.int64], box_px: int, shape: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Whether boxes lie within an image (h, w), all of each.

    Examples
    --------
    >>> fits_inside(np.array([[0, 0], [3, -1]]), 4, (7, 4)).tolist()
    [True, False]
    """
    inside = (starts_px >= 0) & (starts_px + box_px <= np.array(shape))
    return np.logical_and(inside[:, 0], inside[:, 1])


def cut_boxes(image: Any, starts_px: npt.NDArray[np.int64], box_px: int) -> Any:
    """Cut boxes out of an image.

    Parameters
    ----------
    image : array, shape (h, w)
        Of any real type; NumPy or CuPy.
    starts_px : int64 array, shape (n, 2)
        First row and column of each; beyond the image, what is within is mirrored at its border.
    box_px
        Side of the boxes.

    Returns
    -------
    float32 array, shape (n, box_px, box_px)

    Examples
    --------
    >>> cut_boxes(np.arange(12).reshape(3, 4), np.array([[1, -1]]), 2)[0].tolist()
    [[4.0, 4.0], [8.0, 8.0]]
    """
    xp = array_namespace(image)
    boxes = xp.empty((len(starts_px), box_px, box_px), np.float32)
    inside = fits_inside(starts_px, box_px, image.shape)
    for box, (y, x), is_inside in zip(boxes, starts_px.tolist(), inside, strict=True):
        if is_inside:
            box[:] = image[y : y + box_px, x : x + box_px]
        else:
            rows, columns = (
                xp.asarray(mirror_places(start + np.arange(box_px), length))
                for start, length in zip((y, x), image.shape, strict=True)
            )
            box[:] = image[rows[:, None], columns[None, :]]
    return boxes


def bin_boxes(boxes: Any, factor: int) -> Any:
    """Make boxes smaller by leaving out their high frequencies.

    Images without frequencies from the new Nyquist frequency on keep their values at every
    ``factor``-th pixel, from the first; so the pixel at half the side is the same point.

    Parameters
    ----------
    boxes : float32 array, shape (n, b, b)
        NumPy or CuPy; b an even multiple of the factor.
    factor
        How many times smaller.

    Returns
    -------
    float32 array, shape (n, b / factor, b / factor)

    Examples
    --------
    >>> wave = np.cos(2 * np.pi * np.arange(16) / 16).astype("f4")
    >>> binned = bin_boxes(np.tile(wave, (1, 16, 1)), 2)
    >>> bool(np.allclose(binned[0, 3], wave[::2], atol=1e-6))
    True
    """
    if factor == 1:
        return boxes
    side = boxes.shape[-1] // factor
    terms = to_half_planes(boxes)
    half = side // 2
    xp = array_namespace(boxes)
    kept = xp.concatenate([terms[:, :half], terms[:, -half:]], axis=1)[..., : half + 1]
    return to_images(xp.ascontiguousarray(kept) / np.float32(factor**2), (side, side))


def normalise_boxes(boxes: Any, radius_px: int) -> Any:
    """Take off the ramp of each box's background, and divide by its deviation.

    What is farther from the pixel at half the side than the radius is background: a plane is fitted
    to it by least squares and subtracted, so that its mean is 0, and its standard deviation becomes
    1. That is how RELION normalises particles. A background without any noise stays at 0.

    Parameters
    ----------
    boxes : float32 array, shape (n, b, b)
        NumPy or CuPy.
    radius_px
        At most half the side.

    Returns
    -------
    float32 array, shape (n, b, b)

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(size=(1, 32, 32)).astype("f4")
    >>> ramp = np.add.outer(np.arange(32.0), 2 * np.arange(32.0))
    >>> same = normalise_boxes(noise + ramp, 12) - normalise_boxes(5 * noise - ramp, 12)
    >>> bool(abs(same).max() < 1e-4)
    True
    """
    xp = array_namespace(boxes)
    side = boxes.shape[-1]
    where, basis, solve = _background(side, radius_px)
    where, basis = xp.asarray(where), xp.asarray(basis)
    places = xp.arange(side) - side // 2
    result = xp.empty(boxes.shape, np.float32)
    # Box by box: sums over many at once round otherwise for another number of them.
    for box, normal in zip(boxes, result, strict=True):
        background = box.reshape(-1)[where].astype(np.float64)
        terms = [(background * direction).sum() for direction in basis]
        level, slope_y, slope_x = (
            row[0] * terms[0] + row[1] * terms[1] + row[2] * terms[2] for row in solve
        )
        rest = box - (level + slope_y * places[:, None] + slope_x * places)
        deviation = xp.sqrt(xp.square(rest.reshape(-1)[where]).mean())
        is_flat = deviation <= FLAT * abs(background.mean())
        normal[:] = rest / xp.where(is_flat, 1.0, deviation)
    return result


@lru_cache(maxsize=8)
def _background(
    side: int, radius_px: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], list[list[float]]]:
    """Places of the background, an orthonormal basis of planes on it, and back to level, y, x."""
    y, x = (place - side // 2 for place in np.indices((side, side)).reshape(2, -1))
    where = np.flatnonzero(x * x + y * y > radius_px**2)
    planes = np.stack([np.ones(len(where)), y[where], x[where]], axis=1)
    basis, triangle = np.linalg.qr(planes)
    return where, np.ascontiguousarray(basis.T), np.linalg.inv(triangle).tolist()
