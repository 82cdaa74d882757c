"""Images brought to mean 0 and unit noise and back; one function for NumPy and CuPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from emdask.backend import array_namespace
from emdask.kernels.noise import known_sigmas
from emdask.kernels.reductions import mean_of_pixels, variance_of_pixels

__all__ = ["denoise_at_unit_noise", "image_by_image", "to_unit_noise"]

# Noise weaker than this share of an image's deviation is lost in the rounding of float32.
LEAST_NOISE = 1e-6


def denoise_at_unit_noise(images: Any, sigma: Any, denoise: Callable[[Any], Any]) -> Any:
    """Denoise images that are scaled to mean 0 and unit noise, and scale the result back.

    Whatever the grey levels, a method then sees the same numbers: its answer follows any scale and
    offset, and what libraries assume of a range of grey levels does not matter.

    Parameters
    ----------
    images
        Noisy images in grey levels, (n, h, w).
    sigma
        Standard deviation of the noise in grey levels, or "auto".
    denoise
        Takes and returns (n, h, w) float32 of unit noise; image by image.

    Returns
    -------
    (n, h, w) float32
        In grey levels. Images without noise come back as they are.

    Examples
    --------
    >>> images = np.array([[[5.0, 7.0]], [[1.0, 1.0]]])
    >>> denoise_at_unit_noise(images, 1.0, np.zeros_like).tolist()
    [[[6.0, 6.0]], [[1.0, 1.0]]]
    """
    unit, scales, means, noisy = to_unit_noise(images, sigma)
    result = denoise(unit) * scales + means
    return array_namespace(images).where(noisy, result, images).astype(np.float32)


def to_unit_noise(images: Any, sigma: Any) -> tuple[Any, Any, Any, Any]:
    """Scale images to mean 0 and unit noise.

    Parameters
    ----------
    images
        Noisy images in grey levels, (n, h, w).
    sigma
        Standard deviation of the noise in grey levels, or "auto".

    Returns
    -------
    unit : (n, h, w) float32
        In units of the noise; 0 where an image has none.
    scales, means : (n, 1, 1) float64
        What undoes it.
    noisy : (n, 1, 1) bool
        Which images have noise.

    Examples
    --------
    >>> unit, scales, means, noisy = to_unit_noise(np.array([[[5.0, 7.0]]]), 0.5)
    >>> unit.tolist(), scales.item(), means.item(), noisy.item()
    ([[[-2.0, 2.0]]], 0.5, 6.0, True)
    """
    xp = array_namespace(images)
    sigmas = known_sigmas(images, sigma)[:, None, None]
    means = mean_of_pixels(images)[:, None, None]
    deviations = xp.sqrt(variance_of_pixels(images))[:, None, None]
    noisy = sigmas > LEAST_NOISE * deviations
    scales = xp.where(noisy, sigmas, 1.0)
    unit = xp.where(noisy, (images - means) / scales, 0.0).astype(np.float32)
    return unit, scales, means, noisy


def image_by_image(denoise: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make a function of one image one of many.

    Parameters
    ----------
    denoise
        Takes and returns (h, w).

    Returns
    -------
    callable
        Takes (n, h, w), returns (n, h, w) float32.

    Examples
    --------
    >>> image_by_image(np.transpose)(np.array([[[1, 2], [3, 4]]])).tolist()
    [[[1.0, 3.0], [2.0, 4.0]]]
    """

    def denoise_all(images: Any) -> Any:
        result = array_namespace(images).empty(images.shape, np.float32)
        for i, image in enumerate(images):
            result[i] = denoise(image)
        return result

    return denoise_all
