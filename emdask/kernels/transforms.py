"""Fourier transforms of images, each by itself: its bits do not depend on those beside it.

A library may round otherwise for another number of images, so always as many are transformed
together: a few on the CPU, as many as fill it on a card.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from emdask.backend import array_namespace, fourier_namespace
from emdask.kernels import scales

# Enough that calls cost little beside the work, and few enough for the caches.
PIXELS_ON_CPU = 1 << 16

__all__ = ["to_half_planes", "to_images"]


def to_half_planes(images: Any) -> Any:
    """Transform images.

    Parameters
    ----------
    images : array, shape (n, h, w)
        Of any real type; NumPy or CuPy.

    Returns
    -------
    complex64 array, shape (n, h, w // 2 + 1)
        As of `numpy.fft.rfft2`.

    Examples
    --------
    >>> to_half_planes(np.ones((1, 2, 4), np.int16))[0, 0, 0]
    np.complex64(8+0j)
    """
    xp, fft = array_namespace(images), fourier_namespace(images)
    n, h, w = images.shape
    terms = xp.empty((n, h, w // 2 + 1), np.complex64)
    batch = xp.zeros((_images_at_once((h, w), xp), h, w), np.float32)
    for start in range(0, n, len(batch)):
        part = images[start : start + len(batch)]
        batch[: len(part)] = part
        terms[start : start + len(batch)] = fft.rfft2(batch, axes=(1, 2))[: len(part)]
    return terms


def to_images(terms: Any, shape: tuple[int, int]) -> Any:
    """Inverse of `to_half_planes`.

    Parameters
    ----------
    terms : complex64 array, shape (n, h, w // 2 + 1)
        NumPy or CuPy.
    shape : (h, w)
        Size of the images.

    Returns
    -------
    float32 array, shape (n, h, w)

    Examples
    --------
    >>> images = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    >>> bool(np.allclose(to_images(to_half_planes(images), (3, 4)), images, atol=1e-5))
    True
    """
    xp, fft = array_namespace(terms), fourier_namespace(terms)
    images = xp.empty((len(terms), *shape), np.float32)
    batch = xp.zeros((_images_at_once(shape, xp), *terms.shape[1:]), np.complex64)
    for start in range(0, len(terms), len(batch)):
        part = terms[start : start + len(batch)]
        batch[: len(part)] = part
        images[start : start + len(batch)] = fft.irfft2(batch, s=shape, axes=(1, 2))[: len(part)]
    return images


def _images_at_once(shape: tuple[int, int], xp: Any) -> int:
    pixels = PIXELS_ON_CPU if xp is np else scales.TRANSFORM_PIXELS
    return max(1, pixels // (shape[0] * shape[1]))
