"""Crystals of ice on standardised micrographs; one function for NumPy and CuPy arrays."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from emdask.backend import array_namespace, filter_namespace
from emdask.kernels.standard_micrographs import LIMIT

__all__ = ["remove_crystals"]

# In diameters: the surroundings of which more than a share is at the limit of grey levels; the
# radius of a disc that no particle fills; and how much further a crystal's edge reaches.
WIDTH: Final = 0.1
SHARE: Final = 0.5
THICK: Final = 0.6
EDGE: Final = 0.25


def remove_crystals(image: Any, diameter_px: float) -> Any:
    """Make background of what is at the limit of grey levels in discs larger than a particle.

    Strong particles may be at the limit all over, too: what is as small as a particle stays.

    Parameters
    ----------
    image : float32 array, shape (h, w)
        Micrograph as of `emdask.kernels.standard_micrographs.standardise`; NumPy or CuPy.
    diameter_px
        Of a particle.

    Returns
    -------
    float32 array, shape (h, w)
        0 within a quarter of a diameter of discs of 1.2 diameters at the limit.

    Examples
    --------
    >>> image = np.ones((60, 60), np.float32)
    >>> image[8:32, 8:32] = image[45:55, 45:55] = 5
    >>> cleaned = remove_crystals(image, 16.0)
    >>> cleaned[20, 20], cleaned[50, 50]
    (np.float32(0.0), np.float32(5.0))
    """
    xp, filters = array_namespace(image), filter_namespace(image)
    at_limit = (abs(image) >= np.float32(0.99 * LIMIT)).astype(np.float32)
    solid = filters.gaussian_filter(at_limit, WIDTH * diameter_px) > SHARE
    if bool(solid.all()):
        return xp.zeros_like(image)
    thick = filters.distance_transform_edt(solid) > THICK * diameter_px
    if not bool(thick.any()):
        return image
    near = filters.distance_transform_edt(~thick) <= (THICK + EDGE) * diameter_px
    return xp.where(near, np.float32(0), image)
