"""Power spectrum of the noise, and filters that make it white; NumPy and CuPy arrays.

The noise is seen where no particle is: in the corners of particle images, in the quietest tiles of
micrographs. There its autocorrelation is measured, whose transform is the spectrum: a mask biases a
spectrum, but not an autocorrelation that is divided by the number of pairs of pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft

from emdask.backend import array_namespace
from emdask.kernels.fourier import frequency_grid

__all__ = ["NoiseSums", "add_sums", "colour_images", "noise_spectrum", "sum_noise", "whiten_images"]

Array = npt.NDArray[Any]

TILE_PX = 256
# Of an image's tiles, those of least variance.
QUIET_SHARE = 0.25
# Longest distance over which the noise is taken to be correlated, as a share of the image or tile.
REACH = 0.25
# Frequencies at which the noise lacks more than this of its peak power are not blown up further.
LEAST_POWER = 1e-4


class NoiseSums(NamedTuple):
    """What adds up over images: power spectra of the zero-padded background, and their number."""

    power: Array
    n: int


def sum_noise(images: Any, *, corners: bool) -> NoiseSums:
    """Add up the power of what is background in each image.

    Parameters
    ----------
    images
        Images in grey levels, (n, h, w).
    corners
        Whether the background is what lies outside of the ellipse that touches the sides, or the
        quietest quarter of the image's tiles of up to 256 px.

    Returns
    -------
    NoiseSums
        Power on the grid of `numpy.fft.rfft2` of twice the image's or the tile's size.
    """
    sums = None
    for image in np.asarray(images, np.float64):
        for piece, mask in _background(image, corners):
            inside = np.where(mask, piece - piece[mask].mean(), 0.0)
            power = np.abs(fft.rfft2(inside, [2 * n for n in piece.shape])) ** 2
            one = NoiseSums(power, 1)
            sums = one if sums is None else add_sums(sums, one)
    assert sums is not None
    return sums


def add_sums(a: NoiseSums, b: NoiseSums) -> NoiseSums:
    """Combine the sums of two blocks of images."""
    return NoiseSums(a.power + b.power, a.n + b.n)


def _background(image: Array, corners: bool) -> list[tuple[Array, Array]]:
    """Pieces of an image, and which of their pixels are background."""
    if corners:
        return [(image, corner_mask(image.shape))]
    height, width = (min(n, TILE_PX) for n in image.shape)
    tiles = [
        image[top : top + height, left : left + width]
        for top in range(0, image.shape[0] - height + 1, height)
        for left in range(0, image.shape[1] - width + 1, width)
    ]
    tiles.sort(key=lambda tile: float(tile.var()))
    quiet = tiles[: max(1, round(QUIET_SHARE * len(tiles)))]
    return [(tile, np.ones(tile.shape, bool)) for tile in quiet]


def corner_mask(shape: tuple[int, ...]) -> Array:
    """Which pixels lie outside of the ellipse that touches the sides; all in tiny images.

    Examples
    --------
    >>> int(corner_mask((16, 16)).sum())
    48
    """
    y, x = ((np.arange(n) - (n - 1) / 2) / (n / 2) for n in shape)
    mask = y[:, None] ** 2 + x**2 > 1
    return mask if mask.any() else np.ones(shape, bool)


def noise_spectrum(
    sums: NoiseSums, shape: tuple[int, int], *, corners: bool
) -> tuple[Array, Array]:
    """Return the mean power spectrum of the background, averaged over directions.

    Parameters
    ----------
    sums
        Of `sum_noise`, over all images.
    shape
        Size of the images, (h, w).
    corners
        As given to `sum_noise`.

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
    mask = corner_mask(shape) if corners else np.ones([min(n, TILE_PX) for n in shape], bool)
    padded = [2 * n for n in mask.shape]
    pairs = fft.irfft2(np.abs(fft.rfft2(mask.astype(float), padded)) ** 2, padded)
    products = fft.irfft2(sums.power / sums.n, padded)
    correlation = np.where(pairs > 0.5, products / np.maximum(pairs, 1), 0.0)
    distance = np.hypot(*np.ix_(*(np.abs(fft.fftfreq(n, 1 / n)) for n in padded)))
    reach_px = max(REACH * min(mask.shape), 2.0)
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
