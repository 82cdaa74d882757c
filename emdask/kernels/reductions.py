"""Numbers of whole images: sums, extremes, means, variances; one function for NumPy and CuPy.

A card has one thread block work out each number, which for a micrograph takes as long as BM3D: so
there rows come first, and what they give afterwards.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from emdask.backend import array_namespace

__all__ = ["mean_of_pixels", "over_pixels", "variance_of_pixels"]

SIDES = (-2, -1)


def over_pixels(reduction: str, images: Any, dtype: Any = None) -> Any:
    """Reduce each image to one number.

    Parameters
    ----------
    reduction
        Method of arrays that may be applied to rows first: "sum", "mean", "max", "min" or "all".
    images
        Images, (..., h, w).
    dtype
        Of sums; None for what the array's library takes.

    Returns
    -------
    (...)

    Examples
    --------
    >>> over_pixels("max", np.array([[[1, 5], [3, 2]]]))
    array([5])
    """
    options = {} if dtype is None else {"dtype": dtype}
    if array_namespace(images) is np:
        return getattr(images, reduction)(axis=SIDES, **options)
    rows = getattr(images, reduction)(axis=-1, **options)
    return getattr(rows, reduction)(axis=-1, **options)


def mean_of_pixels(images: Any) -> Any:
    """Mean of each image: (..., h, w) -> (...) float64.

    Examples
    --------
    >>> mean_of_pixels(np.array([[[1, 5], [3, 2]]]))
    array([2.75])
    """
    if array_namespace(images) is np:
        return images.mean(axis=SIDES, dtype="f8")
    return over_pixels("sum", images, dtype="f8") / prod(images.shape[-2:])


def variance_of_pixels(images: Any) -> Any:
    """Variance of each image: (..., h, w) -> (...) float64.

    Examples
    --------
    >>> variance_of_pixels(np.array([[[1, 5], [3, 3]]]))
    array([2.])
    """
    if array_namespace(images) is np:
        return images.var(axis=SIDES, dtype="f8")
    # CuPy's own takes the mean, and differences from it, in the type of the images.
    deviations = images - mean_of_pixels(images)[..., None, None]
    deviations *= deviations
    return mean_of_pixels(deviations)
