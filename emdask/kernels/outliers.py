"""Hot and dead pixels and gold beads: where an image does not show the specimen."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from emdask.kernels.noise import NORMAL_MEDIAN

__all__ = ["find_beads", "find_hot_pixels", "grow"]

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# Side of the surroundings that a pixel is held against, px.
WINDOW_PX = 9
# What differs less from the mean around it than this share of the threshold is not looked at.
WORTH_A_LOOK = 0.7
# Where more of an image stands out, that is what the image is like.
MOST_HOT = 0.01
AT_ONCE = 1 << 14
# Beads are looked for in images in which they are about as wide as this, px.
COARSE_BEAD_PX = 12
# Beads differ from what is around them by at least this many deviations of a pixel.
LEAST_CONTRAST = 2.0
# Areas of beads, relative to a disc of their width; up to a pair that touches.
BEAD_AREAS = (0.3, 3.0)
# From here on distances to all pixels are found faster than all pixels within the distance.
FAR_PX = 4.0


def find_hot_pixels(image: npt.NDArray[np.float32], threshold: float) -> Mask:
    """Find pixels that are far from the median of the 9 x 9 px around them.

    Parameters
    ----------
    image
        In grey levels, (h, w).
    threshold
        How far, in robust deviations of these pixels.

    Returns
    -------
    (h, w) bool
        Nowhere True where more than 1 % of the pixels would be.

    Examples
    --------
    >>> image = np.random.default_rng(0).normal(size=(32, 32)).astype("f4")
    >>> image[5, 7] += 20
    >>> np.argwhere(find_hot_pixels(image, 8.0)).tolist()
    [[5, 7]]
    """
    rest = image - scipy.ndimage.uniform_filter(image, 5, mode="mirror")
    sigma = _robust_deviation(rest)
    found = np.abs(rest) > WORTH_A_LOOK * threshold * sigma
    places = np.argwhere(found)
    reach = WINDOW_PX // 2
    wide = np.pad(image, reach, mode="reflect" if min(image.shape) > reach else "symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(wide, (WINDOW_PX, WINDOW_PX))
    for start in range(0, len(places), AT_ONCE):
        y, x = places[start : start + AT_ONCE].T
        around = windows[y, x].reshape(len(y), -1)
        middle = np.median(around, axis=1)
        local = np.median(np.abs(around - middle[:, None]), axis=1) / NORMAL_MEDIAN
        found[y, x] = np.abs(image[y, x] - middle) > threshold * np.maximum(local, sigma / 2)
    return found if found.mean() <= MOST_HOT else np.zeros_like(found)


def _robust_deviation(values: npt.NDArray[Any]) -> float:
    """Standard deviation of the bulk of values around 0: from the median of a sample of them."""
    step = 1 + int((values.size / (1 << 20)) ** 0.5)
    return float(np.median(np.abs(values[::step, ::step]))) / NORMAL_MEDIAN


def find_beads(
    image: npt.NDArray[np.float32], known: Mask, bead_px: float, threshold: float
) -> Mask:
    """Find compact dark or bright regions of about the size of a bead.

    Parameters
    ----------
    image
        In grey levels, (h, w).
    known
        Pixels that count, (h, w): not those that are known to be hot.
    bead_px
        Diameter of the beads.
    threshold
        How far their mean is from the median within five diameters, in robust deviations of such
        differences all over the image. At least two standard deviations of a pixel are asked for
        too, which proteins in ice do not reach.

    Returns
    -------
    (h, w) bool
        Regions to where their contrast falls to half, and a rim of 1/12 of the diameter.

    Examples
    --------
    >>> y, x = np.mgrid[:200, :200] - 90
    >>> disc = np.hypot(y, x) < 10
    >>> image = np.random.default_rng(0).normal(size=(200, 200)) - 4.0 * disc
    >>> found = find_beads(image.astype("f4"), np.ones((200, 200), bool), 20, 8)
    >>> bool(found[disc].mean() > 0.98), bool(found.sum() < 2 * disc.sum())
    (True, True)
    """
    step = max(1, round(bead_px / COARSE_BEAD_PX))
    coarse, _ = bin_known(image, known, step)
    width = bead_px / step
    contrast = coarse - _background(coarse, width)
    contrast = scipy.ndimage.gaussian_filter(contrast, width / 6, mode="mirror")
    pixel = _robust_deviation(image - scipy.ndimage.uniform_filter(image, 5, mode="mirror"))
    usual = _robust_deviation(contrast - np.median(contrast))
    least = max(threshold * usual, LEAST_CONTRAST * pixel)
    beads = np.zeros(coarse.shape, bool)
    for sign in (-1, 1):
        beads |= _compact_regions(sign * contrast, least, width)
    # The rim of a bead is in cells that it fills by less than half.
    beads = scipy.ndimage.binary_dilation(beads, np.ones((3, 3)))
    fine = np.repeat(np.repeat(beads, step, axis=0), step, axis=1)
    return np.pad(fine, [(0, step)] * 2, mode="edge")[: image.shape[0], : image.shape[1]]


def bin_known(image: npt.NDArray[Any], known: Mask, step: int) -> tuple[Floats, Floats]:
    """Average the known pixels of squares.

    Parameters
    ----------
    image, known
        Pixels, and which of them count, (h, w).
    step
        Side of the squares, px; those at the end may be smaller.

    Returns
    -------
    means, shares : (ceil(h / step), ceil(w / step)) float64
        Means of the known pixels, the mean of all where there is none; share of known pixels.

    Examples
    --------
    >>> bin_known(np.array([[1.0, 3.0, 9.0]]), np.array([[True, True, False]]), 2)[0]
    array([[2., 2.]])
    """
    cuts = [np.arange(0, n, step) for n in image.shape]

    def total(values: npt.NDArray[Any]) -> Floats:
        rows = np.add.reduceat(values, cuts[0], axis=0, dtype=np.float64)
        return np.asarray(np.add.reduceat(rows, cuts[1], axis=1))

    counts, areas = total(known), total(np.ones(image.shape, np.uint8))
    sums = total(np.where(known, image, 0))
    mean = sums.sum() / max(counts.sum(), 1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), mean), counts / areas


def _background(image: Floats, width: float) -> Floats:
    """Medians within five widths, found in squares of half a width."""
    step = max(1, round(width / 2))
    squares, _ = bin_known(image, np.ones(image.shape, bool), step)
    medians = scipy.ndimage.median_filter(squares, 9, mode="mirror")
    places = [(np.arange(n) + 0.5) / step - 0.5 for n in image.shape]
    grid = np.meshgrid(*places, indexing="ij")
    return np.asarray(scipy.ndimage.map_coordinates(medians, grid, order=1, mode="nearest"))


def _compact_regions(contrast: Floats, least: float, width: float) -> Mask:
    """Regions around peaks above ``least``, to half of each peak, if of the area of beads."""
    result = np.zeros(contrast.shape, bool)
    labels, n_regions = scipy.ndimage.label(contrast > least / 2)
    peaks = scipy.ndimage.maximum(contrast, labels, np.arange(1, n_regions + 1))
    areas = np.pi / 4 * width**2 * np.array(BEAD_AREAS)
    for i, (box, peak) in enumerate(zip(scipy.ndimage.find_objects(labels), peaks, strict=True)):
        if peak > least:
            region = (labels[box] == i + 1) & (contrast[box] > peak / 2)
            pieces, n_pieces = scipy.ndimage.label(region)
            sizes = scipy.ndimage.sum_labels(region, pieces, np.arange(n_pieces + 1))
            compact = (sizes >= areas[0]) & (sizes <= areas[1])
            result[box] |= compact[pieces] & region
    return result


def grow(mask: Mask, grow_px: float) -> Mask:
    """Add all pixels within a distance of a mask.

    Examples
    --------
    >>> grow(np.array([[False, True, False, False]]), 1.0).tolist()
    [[True, True, True, False]]
    """
    if grow_px < 1 or not mask.any():
        return mask
    if grow_px > FAR_PX:
        return np.asarray(scipy.ndimage.distance_transform_edt(~mask) <= grow_px)
    reach = int(grow_px)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return np.asarray(scipy.ndimage.binary_dilation(mask, np.hypot(y, x) <= grow_px))
