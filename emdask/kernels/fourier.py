"""Spectra of images: plain arrays, NumPy or CuPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from emdask.backend import array_namespace
from emdask.kernels.reductions import mean_of_pixels


def frequency_grid(shape: tuple[int, int], pixel_size_A: float = 1.0) -> Any:
    """Return the length of the frequency vector at each point of `numpy.fft.rfft2`.

    Parameters
    ----------
    shape : (h, w)
        Size of the image.
    pixel_size_A
        Edge of a pixel in Å; 1 gives cycles a pixel.

    Returns
    -------
    float64 array, shape (h, w // 2 + 1)
        In 1/Å.

    Examples
    --------
    >>> frequency_grid((4, 4))[:, 0]
    array([0.  , 0.25, 0.5 , 0.25])
    """
    fy = np.fft.fftfreq(shape[0], pixel_size_A)
    fx = np.fft.rfftfreq(shape[1], pixel_size_A)
    return np.hypot(fy[:, None], fx[None, :])


def half_plane_weights(shape: tuple[int, int]) -> Any:
    """Return how many terms of the whole plane each term of `numpy.fft.rfft2` stands for.

    Parameters
    ----------
    shape : (h, w)
        Size of the image.

    Returns
    -------
    float64 array, shape (h, w // 2 + 1)
        2, but 1 in the first column and, where the width is even, the last.

    Examples
    --------
    >>> half_plane_weights((2, 4))[0]
    array([1., 2., 1.])
    """
    weight = np.full((shape[0], shape[1] // 2 + 1), 2.0)
    weight[:, 0] = 1.0
    if shape[1] % 2 == 0:
        weight[:, -1] = 1.0
    return weight


def power_spectrum(images: Any) -> Any:
    """Return the power of each Fourier term, of the images less their mean.

    Scaled so that white noise of variance v has power v at every frequency but 0.

    Parameters
    ----------
    images : array, shape (..., h, w)
        Real images.

    Returns
    -------
    float64 array, shape (..., h, w // 2 + 1)
        On the grid of `numpy.fft.rfft2`; 0 at frequency 0.

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(scale=2.0, size=(64, 64))
    >>> bool(abs(power_spectrum(noise)[1:].mean() - 4) < 0.3)
    True
    """
    xp = array_namespace(images)
    h, w = images.shape[-2:]
    centred = images - mean_of_pixels(images)[..., None, None]
    return xp.abs(xp.fft.rfft2(centred)) ** 2 / (h * w)


def radial_power(images: Any) -> tuple[Any, Any]:
    """Average the power spectrum over rings one Fourier pixel wide.

    Parameters
    ----------
    images : array, shape (..., h, w)
        Real images.

    Returns
    -------
    frequency : float64 array, shape (r,)
        Mean frequency of each ring in cycles a pixel, above 0 and up to Nyquist, 0.5.
    power : float64 array, shape (..., r)
        Mean power of each ring, scaled as in `power_spectrum`.

    Examples
    --------
    >>> images = np.random.default_rng(0).normal(size=(2, 64, 64))
    >>> frequency, power = radial_power(images)
    >>> frequency.shape, power.shape, bool(frequency[-1] <= 0.5)
    ((32,), (2, 32), True)
    """
    xp = array_namespace(images)
    shape = images.shape[-2:]
    frequency, count = _rings(shape)[2:]
    power = _sum_rings(power_spectrum(images), shape) / xp.asarray(count)
    return xp.asarray(frequency), power


def ring_frequencies(shape: tuple[int, int]) -> Any:
    """Return the mean frequency of each ring of `radial_power` and `radial_correlation`.

    Parameters
    ----------
    shape : (h, w)
        Size of the image.

    Returns
    -------
    float64 array, shape (min(h, w) // 2,)
        In cycles a pixel, above 0 and up to Nyquist, 0.5.

    Examples
    --------
    >>> ring_frequencies((64, 64)).shape
    (32,)
    """
    return _rings(shape)[2]


def radial_correlation(images: Any, others: Any, *, least_power: float = 0.0) -> Any:
    """Correlate the Fourier terms of two images, ring by ring (Fourier ring correlation).

    Parameters
    ----------
    images, others : array, shape (..., h, w)
        Real images.
    least_power
        Share of the power of an image's strongest ring up to which a ring counts as empty.

    Returns
    -------
    float64 array, shape (..., r)
        In [-1, 1] for each ring of `ring_frequencies`; 0 where one of the images is empty.

    Examples
    --------
    >>> image = np.random.default_rng(0).normal(size=(16, 16))
    >>> radial_correlation(image, -2 * image).round(6).tolist()[:2]
    [-1.0, -1.0]
    """
    xp = array_namespace(images)
    shape = images.shape[-2:]
    first, second = (xp.fft.rfft2(xp.asarray(a, np.float64)) for a in (images, others))
    cross = _sum_rings((first * second.conj()).real, shape)
    powers = [_sum_rings(xp.abs(terms) ** 2, shape) for terms in (first, second)]
    filled = [power > least_power * power.max(axis=-1, keepdims=True) for power in powers]
    both = filled[0] & filled[1]
    return cross / xp.sqrt(xp.where(both, powers[0] * powers[1], 1.0)) * both


def _sum_rings(terms: Any, shape: tuple[int, int]) -> Any:
    """Add up real terms on the grid of `numpy.fft.rfft2`, and those it leaves out, by rings."""
    xp = array_namespace(terms)
    ring, weight, frequency, _ = _rings(shape)
    n_rings = len(frequency)
    ring, weight = xp.asarray(ring), xp.asarray(weight)
    flat = terms.reshape(-1, weight.size) * weight
    sums = [xp.bincount(ring, values, n_rings + 1)[1:] for values in flat]
    return xp.stack(sums).reshape(*terms.shape[:-2], n_rings)


def _rings(shape: tuple[int, int]) -> tuple[Any, Any, Any, Any]:
    """Ring and weight of each term of `numpy.fft.rfft2`; mean frequency and size of each ring."""
    n_rings = min(shape) // 2
    grid = frequency_grid(shape)
    ring = np.rint(grid * min(shape)).astype(np.int64)
    weight = half_plane_weights(shape)
    weight[(ring > n_rings) | (ring == 0) | (grid > 0.5)] = 0.0
    ring = np.minimum(ring, n_rings).ravel()
    count = np.bincount(ring, weight.ravel(), n_rings + 1)[1:]
    frequency = np.bincount(ring, (weight * grid).ravel(), n_rings + 1)[1:] / count
    return ring, weight.ravel(), frequency, count
