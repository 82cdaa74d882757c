"""Blobs of one size, by the Laplacian of Gaussian; one function for NumPy and CuPy arrays."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from emdask.backend import array_namespace, filter_namespace
from emdask.kernels.crystals import remove_crystals
from emdask.kernels.scales import from_frequencies, to_frequencies

__all__ = ["laplacian_of_gaussian", "score_laplacian"]

# Width of the Gaussian, in diameters, at which a ball's projection responds most: 0.601 radii.
BALL_WIDTH: Final = 0.3
# Peaks of so many deviations, and what is within so many diameters, are no background; how often
# the background is found.
PEAK: Final = 2.5
PEAK_REACH: Final = 0.25
N_PASSES: Final = 4
# Share of the map that must be left as background.
LEAST_BACKGROUND: Final = 0.05


def score_laplacian(image: Any, diameter_px: float) -> Any:
    """Score how much each pixel is the middle of a light ball.

    Parameters
    ----------
    image : array, shape (h, w)
        Micrograph as of `emdask.kernels.standard_micrographs.standardise`; NumPy or CuPy.
    diameter_px
        Of the ball.

    Returns
    -------
    float32 array, shape (h, w)
        Response of the Laplacian of Gaussian, in deviations of its own background; 0 where the
        image is constant.

    Notes
    -----
    The Gaussian is that at which the projection of a ball responds most, 0.3 diameters wide: for a
    disc that would be 0.35 (diameter / (2 √2)), but particles are thinner towards their rim.
    Crystals of ice are made background first (`emdask.kernels.crystals`). The background is what is
    left of the map without its peaks; deviations are by the median of absolute ones.

    Examples
    --------
    >>> y, x = np.indices((96, 96)) - 40
    >>> noise = np.random.default_rng(0).normal(0, 1, (96, 96)).astype(np.float32)
    >>> ball = np.sqrt(np.maximum(64 - y**2 - x**2, 0)).astype(np.float32) / 4
    >>> scores = score_laplacian(noise + ball, 16.0)
    >>> [int(i) for i in np.unravel_index(scores.argmax(), scores.shape)]
    [40, 40]
    """
    kept = remove_crystals(image, diameter_px)
    response = laplacian_of_gaussian(kept, BALL_WIDTH * diameter_px)
    return _in_deviations(response, diameter_px)


def laplacian_of_gaussian(image: Any, width_px: float) -> Any:
    """Filter an image by minus the Laplacian of a Gaussian, times its width squared.

    Parameters
    ----------
    image : array, shape (h, w)
        float32, NumPy or CuPy; goes on mirrored beyond its borders.
    width_px
        Standard deviation σ of the Gaussian.

    Returns
    -------
    float32 array, shape (h, w)
        Convolution with −σ² ∇² G, in the frequencies k: times (σ k)² exp(−(σ k)² / 2).

    Notes
    -----
    Lindeberg, "Feature detection with automatic scale selection", International Journal of
    Computer Vision 30 (1998) 79-116: of normalised Laplacians that of the blob's own size responds
    most.

    Examples
    --------
    >>> bool(abs(laplacian_of_gaussian(np.full((8, 9), 3, np.float32), 2.0)).max() < 1e-5)
    True
    """
    xp = array_namespace(image)
    k_y, k_x = (
        xp.arange(n, dtype=np.float32) * np.float32(np.pi * width_px / n) for n in image.shape
    )
    squared = xp.square(k_y)[:, None] + xp.square(k_x)
    return from_frequencies(to_frequencies(image) * (squared * xp.exp(squared * np.float32(-0.5))))


def _in_deviations(response: Any, diameter_px: float) -> Any:
    """Map in units of the deviation of what lies off its peaks."""
    xp, filters = array_namespace(response), filter_namespace(response)
    # The map is smooth: few of its pixels tell its statistics.
    step = max(1, int(BALL_WIDTH * diameter_px / 2))
    sample = xp.ascontiguousarray(response[::step, ::step])
    window = _window(PEAK_REACH * diameter_px / step)
    rest = sample.ravel()
    for i in range(N_PASSES):
        middle = xp.median(rest)
        deviation = 1.4826 * xp.median(abs(rest - middle))
        highest = filters.maximum_filter(sample, window)
        background = sample[highest <= middle + PEAK * deviation]
        if i == N_PASSES - 1 or background.size < LEAST_BACKGROUND * sample.size:
            break
        rest = background
    if float(deviation) <= 0:
        return xp.zeros_like(response)
    return ((response - middle) / deviation).astype(np.float32)


def _window(reach_px: float) -> int:
    return 2 * round(reach_px) + 1
