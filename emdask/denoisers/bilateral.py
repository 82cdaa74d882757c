"""Bilateral filter: each pixel becomes the mean of near pixels where a blurred image is alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from emdask.backend import array_namespace, filter_namespace
from emdask.checks import check_number, check_sigma, check_width
from emdask.kernels.smoothing import best_gaussian_widths, gaussian_noise
from emdask.kernels.unit_noise import denoise_at_unit_noise
from emdask.method import Method, noise_parameter, parameter

# Deviation of the weights of grey levels, in those of the guide's noise, at strength 1; widths of
# distances and of the guide, in that of the best Gaussian. benchmarks/filters.py has the sweep.
RANGE = 2.5
RELATIVE_WIDTH = 2.0
RELATIVE_GUIDE = 0.9
# Where an image shows nothing but noise, the best Gaussian has no end.
WIDEST_PX = 12.0
# As far as the nearby pixels reach, in widths.
TRUNCATE = 2.0
# Bands of rows that stay in the processor's cache.
BAND_PIXELS = 1 << 15


@dataclass(frozen=True, kw_only=True)
class Bilateral:
    """Parameters of the bilateral filter.

    Parameters
    ----------
    sigma
        Standard deviation of the white noise in grey levels, or "auto": estimated image by image.
    strength
        Deviation of the weights of grey levels, in 2.5 deviations of the noise that the guide has;
        the larger, the more it is a Gaussian.
    width_px
        Standard deviation of the weights of distances, px. "auto": image by image, twice that of
        the Gaussian that denoises it best, at most 12.
    guide_px
        Grey levels are compared in the guide, the image blurred by a Gaussian of this standard
        deviation, px. 0 compares those of the image itself, as published: where noise prevails,
        that is no better than a Gaussian. "auto": 0.9 of that of the Gaussian that denoises it
        best.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    Tomasi and Manduchi, "Bilateral filtering for gray and color images", ICCV 1998, 839-846; with a
    guide: Eisemann and Durand, "Flash photography enhancement via intrinsic relighting", ACM
    Transactions on Graphics 23 (2004) 673-678. Not by scikit-image, whose `denoise_bilateral`
    (0.26) shifts and skews images: its table of spatial weights has rows of another length than it
    reads. The work grows by the square of the width.

    Examples
    --------
    >>> Bilateral(strength=0.5).strength
    0.5
    >>> Bilateral(strength=0)
    Traceback (most recent call last):
    emdask.errors.ParameterError: bilateral: strength must be a number in [0.01, 100]; got 0.
    """

    sigma: Literal["auto"] | float = noise_parameter()
    strength: float = parameter(1.0, "how much is removed, relative to what suits the noise")
    width_px: Literal["auto"] | float = parameter(
        "auto", "standard deviation of the Gaussian; auto: fitted to each image", "px"
    )
    guide_px: Literal["auto"] | float = parameter(
        "auto", "blur of the image in which grey levels are compared; auto: fitted", "px"
    )

    def __post_init__(self) -> None:
        check_sigma("bilateral", self.sigma)
        check_number("bilateral", "strength", self.strength, 0.01, 100)
        check_width("bilateral", "width_px", self.width_px)
        check_width("bilateral", "guide_px", self.guide_px)


def denoise(images: Any, params: Bilateral) -> Any:
    """Filter images; NumPy or CuPy.

    Parameters
    ----------
    images
        Noisy images in grey levels, (n, h, w).
    params
        Parameters.

    Returns
    -------
    (n, h, w) float32
    """

    def denoise_all(units: Any) -> Any:
        xp, blur = array_namespace(units), filter_namespace(units).gaussian_filter
        result = xp.empty(units.shape, np.float32)
        fitted = best_gaussian_widths(units)
        # A card wants many images at a time: those that share a width.
        for best_px in np.unique(fitted):
            chosen = xp.asarray(np.flatnonzero(fitted == best_px))
            width_px = _known(params.width_px, min(WIDEST_PX, RELATIVE_WIDTH * best_px))
            guide_px = _known(params.guide_px, RELATIVE_GUIDE * best_px)
            guides = blur(units[chosen], (0, guide_px, guide_px))
            range_width = params.strength * RANGE * gaussian_noise(guide_px)
            result[chosen] = filter_images(units[chosen], guides, width_px, range_width)
        return result

    return denoise_at_unit_noise(images, params.sigma, denoise_all)


def _known(given: Any, fitted: float) -> float:
    return float(fitted if given == "auto" else given)


def filter_images(images: Any, guides: Any, width_px: float, range_width: float) -> Any:
    """Apply the bilateral filter to images, which continue as their mirror images.

    Parameters
    ----------
    images
        (n, h, w) float32.
    guides
        Images in which grey levels are compared, (n, h, w) float32.
    width_px
        Standard deviation of the weights of distances.
    range_width
        Standard deviation of the weights of differences, in grey levels of the guides.

    Returns
    -------
    (n, h, w) float32

    Examples
    --------
    >>> steps = np.repeat(np.array([[[0, 0, 9, 9]]], "f4"), 4, axis=1)
    >>> bool(abs(filter_images(steps, steps, 1.0, 1.0) - steps).max() < 1e-5)
    True
    """
    xp = array_namespace(images)
    radius = int(TRUNCATE * width_px + 0.5)
    margins = ((0, 0), (0, 0), (radius, radius), (radius, radius))
    both = xp.pad(xp.stack([images, guides]), margins, "symmetric")
    if xp is not np:
        return _filter_inside(both, radius, width_px, range_width)
    rows = max(1, BAND_PIXELS // images.shape[2])
    result = np.empty_like(images)
    for i, top in np.ndindex(len(images), -(-images.shape[1] // rows)):
        band = both[:, i, top * rows : min((top + 1) * rows, images.shape[1]) + 2 * radius]
        inside = _filter_inside(band, radius, width_px, range_width)
        result[i, top * rows : (top + 1) * rows] = inside
    return result


def _filter_inside(both: Any, radius: int, width_px: float, range_width: float) -> Any:
    """Filter what is inside the margin of images and their guides, (2, ..., h, w)."""
    xp = array_namespace(both)
    height, width = (length - 2 * radius for length in both.shape[-2:])
    centre = both[1, ..., radius : radius + height, radius : radius + width]
    total, weights = xp.zeros_like(centre), xp.zeros_like(centre)
    for dy in range(2 * radius + 1):
        for dx in range(2 * radius + 1):
            image, guide = both[..., dy : dy + height, dx : dx + width]
            distance = (dy - radius) ** 2 + (dx - radius) ** 2
            difference = guide - centre
            weight = difference * difference * (-0.5 / range_width**2)
            weight -= distance / (2 * max(width_px, 1e-9) ** 2)
            xp.exp(weight, out=weight)
            weights += weight
            weight *= image
            total += weight
    return total / weights


METHOD = Method(params=Bilateral, apply={"cpu": denoise, "cuda": denoise})
