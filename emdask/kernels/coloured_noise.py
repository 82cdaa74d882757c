"""Noise whose power depends on the frequency; NumPy and CuPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from emdask.backend import array_namespace, fourier_namespace
from emdask.kernels.fourier import frequency_grid, half_plane_weights

__all__ = ["colour_noise", "noise_gain", "noise_power"]

# Real micrographs have three times (sparse) to twelve times (crowded) as much power at low
# frequency as halfway to Nyquist; those of counting detectors lose a third or more from 0 to
# Nyquist.
RISE = 3.0
KNEE = 0.05
POWER_AT_NYQUIST = 0.6


def noise_power(
    frequency: Any,
    *,
    rise: Any = RISE,
    knee: Any = KNEE,
    power_at_nyquist: Any = POWER_AT_NYQUIST,
) -> Any:
    """Return the power spectrum of noise as a camera records it behind ice.

    (1 + r / (1 + (f / k)²)) p^((2 f)²): counted electrons are white, the structure of ice and what
    else is thick adds power at low frequency, and the detector loses some towards Nyquist.

    Parameters
    ----------
    frequency : array
        In cycles a pixel, from 0 on; Nyquist is 0.5.
    rise
        Power that is added at frequency 0, in units of that of the white part.
    knee
        Frequency in cycles a pixel at which half of the rise is left.
    power_at_nyquist
        Share of the power that the detector leaves at Nyquist; 1 for all.

    Returns
    -------
    float64 array
        Of the shape of ``frequency``, above 0; not normalised.

    Examples
    --------
    >>> noise_power(np.array([0.0, 0.05, 0.5])).round(2)
    array([4.  , 2.49, 0.62])
    """
    return (1 + rise / (1 + (frequency / knee) ** 2)) * power_at_nyquist ** (4 * frequency**2)


def noise_gain(
    shape: tuple[int, int],
    *,
    rise: Any = RISE,
    knee: Any = KNEE,
    power_at_nyquist: Any = POWER_AT_NYQUIST,
) -> Any:
    """Return by how much to multiply the Fourier transform of white noise to give it this spectrum.

    Parameters
    ----------
    shape : (h, w)
        Size of the images.
    rise, knee, power_at_nyquist
        Of the spectrum, see `noise_power`: numbers, or arrays (n, 1, 1) for a gain each.

    Returns
    -------
    float32 array, shape (h, w // 2 + 1) or (n, h, w // 2 + 1)
        On the grid of `numpy.fft.rfft2`, scaled such that the expected variance of a pixel stays
        that of the white noise; of the library of ``rise``.

    Examples
    --------
    >>> gain = noise_gain((64, 64))
    >>> gain.shape, bool(gain[0, 0] > 1 > gain[32, 32])
    ((64, 33), True)
    """
    xp = array_namespace(rise)
    frequency = xp.asarray(frequency_grid(shape))
    power = noise_power(frequency, rise=rise, knee=knee, power_at_nyquist=power_at_nyquist)
    weights = xp.asarray(half_plane_weights(shape))
    mean = (power * weights).sum(axis=(-2, -1), keepdims=True) / (shape[0] * shape[1])
    return xp.sqrt(power / mean).astype(np.float32)


def colour_noise(white: Any, gain: Any) -> Any:
    """Multiply the Fourier transform of each image by a gain.

    Parameters
    ----------
    white : array, shape (n, h, w)
        White noise.
    gain : array, shape (h, w // 2 + 1)
        Of `noise_gain`.

    Returns
    -------
    float32 array, shape (n, h, w)
        Of the library of ``white``; around each image the noise goes on as at its opposite side.

    Examples
    --------
    >>> white = np.random.default_rng(0).standard_normal((1, 256, 256), np.float32)
    >>> noise = colour_noise(white, noise_gain((256, 256)))
    >>> bool(abs(noise.var() - 1) < 0.05)
    True
    """
    xp, fft = array_namespace(white), fourier_namespace(white)
    noise = xp.empty(white.shape, np.float32)
    gain = xp.asarray(gain, np.float32)
    # Image by image: the transform of a batch may round otherwise.
    for image, target in zip(white, noise, strict=True):
        transformed = fft.rfft2(image.astype(np.float32, copy=False))
        transformed *= gain
        target[...] = fft.irfft2(transformed, s=image.shape)
    return noise
