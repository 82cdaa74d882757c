"""How much noise is in an image; one function for NumPy and CuPy arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from emdask.backend import array_namespace
from emdask.kernels.reductions import mean_of_pixels, over_pixels, variance_of_pixels

__all__ = ["estimate_sigma", "estimate_snr", "known_sigmas"]

# Median of the absolute value of a standard normal variable.
NORMAL_MEDIAN = 0.6744897501960817
CLIP = 3.0
# In a smaller image the coarse detail says too little.
COARSE_SIZE = 32
N_CLIPS = 3
# On a card: 1 GiB of working memory.
PIXELS_AT_ONCE = 1 << 24
# Variance of a standard normal variable cut at CLIP.
CLIPPED_VARIANCE = 1 - 2 * CLIP * math.exp(-(CLIP**2) / 2) / math.sqrt(2 * math.pi) / math.erf(
    CLIP / math.sqrt(2)
)


def estimate_sigma(images: Any) -> Any:
    """Estimate the standard deviation of white noise, image by image.

    Differences across the diagonal of each 2x2 square hold the finest detail, where the noise of
    cryo-EM images is far stronger than the signal. Their median gives a scale that edges do not
    disturb; the variance within three of these scales, corrected for the cut, has half the scatter
    of the median and does not jump between the steps of counted electrons.

    The noise of a real detector fades towards the finest detail. Where noise prevails (SNR below
    1), detail of twice the size is noise as well: it is measured likewise, and the larger of the
    two counts.

    Parameters
    ----------
    images
        Images in grey levels, (n, h, w), finite.

    Returns
    -------
    (n,) float64
        In grey levels; 0 for constant images and for those less than 2 px high or wide.

    Notes
    -----
    Donoho and Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika 81 (1994)
    425-455, section 4.2, for the median.

    Examples
    --------
    >>> import numpy as np
    >>> noise = np.random.default_rng(0).normal(scale=3.0, size=(1, 128, 128))
    >>> bool(abs(estimate_sigma(noise)[0] - 3.0) < 0.1)
    True
    """
    xp = array_namespace(images)
    if min(images.shape[1:]) < 2 or len(images) == 0:
        return xp.zeros(len(images))
    # The processor's cache holds one image; a card wants many at a time.
    at_once = 1 if xp is np else max(1, PIXELS_AT_ONCE // images[0].size)
    parts = [images[start : start + at_once] for start in range(0, len(images), at_once)]
    fine = xp.concatenate([_clipped_deviation(xp, _fine_detail(part)) for part in parts])
    if min(images.shape[1:]) < COARSE_SIZE:
        return fine
    coarse = xp.concatenate([_clipped_deviation(xp, _coarse_detail(part)) for part in parts])
    # Filtered images may lack their finest detail; noise is never more than the whole image.
    larger = xp.minimum(xp.maximum(fine, coarse), xp.sqrt(variance_of_pixels(images)))
    return xp.where(estimate_snr(images, fine) < 1, larger, fine)


def known_sigmas(images: Any, sigma: Any) -> Any:
    """Return the standard deviation of each image's noise: as given, or estimated.

    Parameters
    ----------
    images
        Images in grey levels, (n, h, w), finite.
    sigma
        "auto", or one number for all images.

    Returns
    -------
    (n,) float64
        In grey levels.

    Examples
    --------
    >>> import numpy as np
    >>> known_sigmas(np.zeros((2, 4, 4)), 0.5)
    array([0.5, 0.5])
    """
    if sigma == "auto":
        return estimate_sigma(images)
    return array_namespace(images).full(len(images), float(sigma))


def _fine_detail(images: Any) -> Any:
    """Finest diagonal Haar coefficients at all shifts; white noise keeps its deviation."""
    down = images[:, 1:].astype("f8") - images[:, :-1]
    return (down[:, :, 1:] - down[:, :, :-1]) / 2


def _coarse_detail(images: Any) -> Any:
    """Diagonal Haar coefficients of twice the size, likewise."""
    rows = images[:, 1:].astype("f8") + images[:, :-1]
    squares = rows[:, :, 1:] + rows[:, :, :-1]
    down = squares[:, 2:] - squares[:, :-2]
    return (down[:, :, 2:] - down[:, :, :-2]) / 4


def _clipped_deviation(xp: Any, values: Any) -> Any:
    """Deviation within three deviations, image by image: (n, h, w) -> (n,)."""
    power = values * values
    median = np.median(power, axis=(1, 2)) if xp is np else bisect_median(power)
    variance = median / NORMAL_MEDIAN**2
    # Where half of the image is flat, its median says nothing.
    variance = xp.where(variance > 0, variance, mean_of_pixels(power))
    for _ in range(N_CLIPS):
        inside = power <= CLIP**2 * variance[:, None, None]
        sums = over_pixels("sum", power * inside)
        variance = sums / over_pixels("sum", inside) / CLIPPED_VARIANCE
    return xp.sqrt(variance)


def bisect_median(values: Any) -> Any:
    """Median of each image of non-negative numbers, without sorting.

    Bisection on the bits of the numbers, which sort as they do: 64 sums, where CuPy would sort each
    image.

    Parameters
    ----------
    values
        (n, h, w) float64, finite and at least 0.

    Returns
    -------
    (n,) float64

    Examples
    --------
    >>> import numpy as np
    >>> bisect_median(np.array([[[5.0, 1.0], [2.0, 7.0]]]))
    array([3.5])
    """
    xp = array_namespace(values)
    bits = values.view(np.int64)
    n_values = values[0].size
    half = (n_values + 1) // 2
    low, high = xp.full(len(values), -1), over_pixels("max", bits)
    for _ in range(63):
        middle = low + (high - low) // 2
        enough = over_pixels("sum", bits <= middle[:, None, None]) >= half
        low, high = xp.where(enough, low, middle), xp.where(enough, middle, high)
    lower = high.view(np.float64)
    if n_values % 2:
        return lower
    above = over_pixels("min", xp.where(bits > high[:, None, None], values, np.inf))
    more = over_pixels("sum", bits <= high[:, None, None]) > half
    return (lower + xp.where(more, lower, above)) / 2


def estimate_snr(images: Any, sigmas: Any) -> Any:
    """Estimate the ratio of the variances of signal and noise, image by image.

    Parameters
    ----------
    images
        Images in grey levels, (n, h, w).
    sigmas
        Standard deviation of the noise, (n,), in grey levels.

    Returns
    -------
    (n,) float64
        At least 0; infinite where there is no noise.

    Examples
    --------
    >>> import numpy as np
    >>> float(estimate_snr(np.array([[[0.0, 4.0]]]), np.array([1.0]))[0])
    3.0
    """
    xp = array_namespace(images)
    variances = variance_of_pixels(images)
    safe = xp.where(sigmas > 0, sigmas, 1.0)
    return xp.where(sigmas > 0, xp.maximum(variances / safe**2 - 1, 0), xp.inf)
