"""Power spectrum of the noise, and filters that make it white; NumPy and CuPy arrays.

The noise is seen where no particle is: in the quieter corners of particle images, in the quietest
tiles of micrographs. There its autocorrelation is measured, whose transform is the spectrum: a mask
biases a spectrum, but not an autocorrelation that is divided by the number of pairs of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.ndimage import uniform_filter

from emdask.backend import array_namespace
from emdask.kernels.fourier import frequency_grid

__all__ = [
    "NoiseSums",
    "add_sums",
    "colour_images",
    "count_pixels",
    "noise_spectrum",
    "sum_noise",
    "whiten_images",
]

Array = npt.NDArray[Any]

# Of micrographs; small beside the gaps between particles.
TILE_PX = 64
# Background is where the variance of the smoothed image is up to so many times that of its quietest
# places, and as much more as chance makes of few values: 2.3 times in tiles, 2.7 in corners of
# 128 px, 3.5 of 64 px, or the noise of small boxes would be too low. What is signal must not be
# counted as noise, or it is taken away later; what noise is missed is only left in.
CONTRAST, BY_CHANCE = 2.0, 1.5
QUIETEST = 5  # per cent
SMOOTHING_PX = 4
# Longest distance over which the noise is taken to be correlated, as a share of a piece's side.
REACH = 0.5
# Where there is no correlation, in units of that distance.
FAR = 0.7, 1.3
# Frequencies at which the noise lacks more than this of its peak power are not blown up further.
LEAST_POWER = 1e-4


class NoiseSums(NamedTuple):
    """What adds up over pieces of background.

    Parameters
    ----------
    power
        Of the zero-padded piece, on the grid of `numpy.fft.rfft2`.
    pairs
        Of its mask, 1 where there is background, likewise.
    """

    power: Array
    pairs: Array


def sum_noise(images: Any, *, corners: bool) -> NoiseSums:
    """Add up the power of what is background in each image.

    Parameters
    ----------
    images
        Images in grey levels, (n, h, w).
    corners
        Whether the background is in the image's four corners, outside of the ellipse that touches
        the sides, or its tiles of 64 px; the quiet ones in either case.

    Returns
    -------
    NoiseSums
    """
    pieces = [
        piece
        for image in np.asarray(images, np.float64)
        for piece in (find_corners(image) if corners else find_tiles(image))
    ]
    sums = _power_of(*pieces[0])
    for piece, mask in pieces[1:]:
        sums = add_sums(sums, _power_of(piece, mask))
    return sums


def add_sums(a: NoiseSums, b: NoiseSums) -> NoiseSums:
    """Combine the sums of two blocks of images."""
    return NoiseSums(a.power + b.power, a.pairs + b.pairs)


def count_pixels(sums: NoiseSums) -> int:
    """Return how many pixels of background there were.

    Examples
    --------
    >>> count_pixels(sum_noise(np.eye(16)[None], corners=False))
    256
    """
    padded = [sums.pairs.shape[0], 2 * (sums.pairs.shape[1] - 1)]
    return int(fft.irfft2(sums.pairs, padded)[0, 0].round())


def _power_of(piece: Array, mask: Array) -> NoiseSums:
    padded = [2 * n for n in piece.shape]
    fields = (np.abs(fft.rfft2(field, padded)) ** 2 for field in (piece * mask, mask.astype(float)))
    return NoiseSums(*fields)


def find_corners(image: Array) -> list[tuple[Array, Array]]:
    """Cut out the quiet corners of an image, and which of their pixels are background."""
    h, w = ((n + 1) // 2 for n in image.shape)
    mask = corner_mask(image.shape)
    smooth = uniform_filter(image, SMOOTHING_PX)
    quadrants = [
        (slice(None, h) if top else slice(-h, None), slice(None, w) if left else slice(-w, None))
        for top in (True, False)
        for left in (True, False)
    ]
    contrast = [float(smooth[part][mask[part]].var()) for part in quadrants]
    chosen = _quiet(contrast, int(mask.sum()) // (4 * SMOOTHING_PX**2))
    mean = np.concatenate([image[quadrants[i]][mask[quadrants[i]]] for i in chosen]).mean()
    return [(image[quadrants[i]] - mean, mask[quadrants[i]]) for i in chosen]


def _quiet(contrast: Sequence[float], n_values: int) -> Array:
    """Which of the places have little contrast, told from so many values each: at least one."""
    by_chance = np.exp(BY_CHANCE * np.sqrt(2 / max(n_values, 1)))
    limit = CONTRAST * by_chance * np.percentile(contrast, QUIETEST, method="lower")
    return np.flatnonzero(np.asarray(contrast) <= limit)


def corner_mask(shape: tuple[int, ...]) -> Array:
    """Which pixels lie outside of the ellipse that touches the sides; all in tiny images.

    Examples
    --------
    >>> int(corner_mask((16, 16)).sum())
    48
    """
    y, x = ((np.arange(n) - (n - 1) / 2) / (n / 2) for n in shape)
    mask: Array = y[:, None] ** 2 + x**2 > 1
    return mask if min(shape) > SMOOTHING_PX else np.ones(shape, bool)


def find_tiles(image: Array) -> list[tuple[Array, Array]]:
    """Cut out the quiet ones of an image's tiles, which overlap by half; all are background."""
    h, w = (min(n, TILE_PX) for n in image.shape)
    smooth = uniform_filter(image, SMOOTHING_PX)
    parts = [
        (slice(top, top + h), slice(left, left + w))
        for top in range(0, image.shape[0] - h + 1, max(1, h // 2))
        for left in range(0, image.shape[1] - w + 1, max(1, w // 2))
    ]
    chosen = _quiet([float(smooth[part].var()) for part in parts], h * w // SMOOTHING_PX**2)
    mask = np.ones((h, w), bool)
    return [(image[parts[i]] - image[parts[i]].mean(), mask) for i in chosen]


def noise_spectrum(sums: NoiseSums) -> tuple[Array, Array]:
    """Return the mean power spectrum of the background, averaged over directions.

    Parameters
    ----------
    sums
        Of `sum_noise`, over all images.

    Returns
    -------
    frequency : float64 array, shape (r,)
        In cycles a pixel, from 0 to the corner of the Fourier plane.
    power : float64 array, shape (r,)
        White noise of variance v has power v; above 0.

    Notes
    -----
    Blackman and Tukey, "The measurement of power spectra" (1958): the autocorrelation, here of a
    masked field, is tapered (Hann) before it is transformed.
    """
    padded = [sums.power.shape[0], 2 * (sums.power.shape[1] - 1)]
    products, pairs = (fft.irfft2(field, padded) for field in sums)
    correlation = np.where(pairs > 0.5, products / np.maximum(pairs, 1), 0.0)
    distance = np.hypot(*np.ix_(*(np.abs(fft.fftfreq(n, 1 / n)) for n in padded)))
    reach_px = max(REACH * min(padded) / 2, 2.0)
    # The mean that was subtracted lowers it everywhere alike; far away there should be none.
    far = (distance >= FAR[0] * reach_px) & (distance < FAR[1] * reach_px)
    correlation -= products[far].sum() / max(pairs[far].sum(), 1)
    taper = np.where(distance < reach_px, (1 + np.cos(np.pi * distance / reach_px)) / 2, 0.0)
    plane = fft.rfft2(correlation * taper).real
    frequency, power = _average_rings(plane, padded, n_rings=int(2 * reach_px))
    # The background's own mean is subtracted, so frequency 0 holds nothing.
    power[0] = power[1]
    return frequency, np.maximum(power, max(LEAST_POWER * power.max(), np.finfo(np.float32).tiny))


def _average_rings(plane: Array, shape: list[int], n_rings: int) -> tuple[Array, Array]:
    """Mean over rings at multiples of 1 / n_rings cycles a pixel, up to the corner."""
    ring = np.rint(frequency_grid((shape[0], shape[1])) * n_rings).astype(np.int64).ravel()
    counts = np.bincount(ring)
    frequency = np.arange(len(counts)) / n_rings
    there = counts > 0
    power = np.bincount(ring, plane.ravel())[there] / counts[there]
    return frequency[there], power


def whiten_images(images: Any, frequency: Any, power: Any) -> Any:
    """Divide the Fourier transform of each image by the root of the noise's power.

    Parameters
    ----------
    images
        Images, (n, h, w).
    frequency, power
        Of `noise_spectrum`; between these frequencies the power is interpolated.

    Returns
    -------
    (n, h, w) float32
        Images whose noise is white, of variance 1.
    """
    return _filter_images(images, 1 / _amplitude(images.shape[1:], frequency, power))


def colour_images(images: Any, frequency: Any, power: Any) -> Any:
    """Undo `whiten_images`; (n, h, w) float32."""
    return _filter_images(images, _amplitude(images.shape[1:], frequency, power))


def _amplitude(shape: tuple[int, int], frequency: Array, power: Array) -> Array:
    return np.asarray(np.sqrt(np.interp(frequency_grid(shape), frequency, power)))


def _filter_images(images: Any, gains: Array) -> Any:
    """Multiply by gains in Fourier space, image by image: a batch may round otherwise."""
    xp = array_namespace(images)
    result = xp.empty(images.shape, np.float32)
    gains = xp.asarray(gains)
    for image, target in zip(images, result, strict=True):
        transformed = xp.fft.rfft2(image.astype(np.float64)) * gains
        target[...] = xp.fft.irfft2(transformed, s=image.shape)
    return result
