"""Fill pixels that are not known, as smoothly as those around them allow."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from emdask.kernels.outliers import bin_known

__all__ = ["fill_masked"]

Mask = npt.NDArray[np.bool_]

# Regions of more pixels are filled at a lower resolution, in which they have about as many.
LARGEST_REGION = 100
# Rows of known pixels around a region, at the resolution at which it is filled.
SURROUNDINGS = 6


def fill_masked(image: npt.NDArray[np.float32], mask: Mask) -> npt.NDArray[np.float32]:
    """Replace the pixels under a mask; the others stay bit by bit.

    Parameters
    ----------
    image
        In grey levels, (h, w).
    mask
        Pixels to replace, (h, w); of an image without any others, none is.

    Returns
    -------
    (h, w) float32

    Notes
    -----
    Biharmonic interpolation: Damelin and Hoang, "On surface completion and image inpainting by
    biharmonic functions: numerical aspects", International Journal of Mathematics and Mathematical
    Sciences (2018) 3950312. It goes on with the slopes at the rim, which are mostly noise at the
    rim of a large region; so regions of more than 100 pixels are filled in an image that is binned
    until they have no more, and the result is interpolated. That also bounds time and memory.

    Examples
    --------
    >>> plane = np.add.outer(np.arange(9.0), 2 * np.arange(9.0)).astype("f4")
    >>> mask = np.zeros((9, 9), bool)
    >>> mask[4, 3:5] = True
    >>> bool(np.allclose(fill_masked(np.where(mask, 99, plane), mask), plane, atol=1e-4))
    True
    """
    if not mask.any() or mask.all():
        return image
    result = image.copy()
    labels, n_regions = scipy.ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=n_regions + 1)
    large = sizes > LARGEST_REGION
    large[0] = False
    for i, box in enumerate(scipy.ndimage.find_objects(labels), start=1):
        if large[i]:
            _fill_coarsely(result, mask, labels, box, i)
    small = mask & ~large[labels]
    if small.any():
        result[small] = _biharmonic(result, small)[small]
    return result


def _fill_coarsely(
    image: npt.NDArray[np.float32],
    mask: Mask,
    labels: npt.NDArray[Any],
    box: tuple[slice, slice],
    label: int,
) -> None:
    """Fill the region of a label, in place, by what a binned image goes on like."""
    size = np.count_nonzero(labels[box] == label)
    step = int(np.ceil((size / LARGEST_REGION) ** 0.5))
    near = _surround(box, SURROUNDINGS * step, image.shape)
    coarse, shares = bin_known(image[near], ~mask[near], step)
    unknown = shares < 0.5
    if unknown.any() and not unknown.all():
        coarse = _biharmonic(coarse, unknown)
    region = labels[near] == label
    places = (np.argwhere(region).T + 0.5) / step - 0.5
    image[near][region] = scipy.ndimage.map_coordinates(coarse, places, order=1, mode="nearest")


def _surround(box: tuple[slice, ...], reach: int, shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(
        slice(max(side.start - reach, 0), min(side.stop + reach, n))
        for side, n in zip(box, shape, strict=True)
    )


def _biharmonic(image: npt.NDArray[Any], mask: Mask) -> npt.NDArray[np.float64]:
    """Fill by scikit-image, in as much of the image as it takes."""
    from skimage.restoration import inpaint_biharmonic

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    near = _surround(box, SURROUNDINGS, mask.shape)
    result = image.astype(np.float64)
    # Rounding is relative to the values, which may have a large offset.
    offset = np.median(result[near][~mask[near]])
    result[near] = offset + inpaint_biharmonic(result[near] - offset, mask[near])
    return result
