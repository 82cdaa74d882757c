"""How good a result is: per image, for stacks and plain arrays alike.

Each function takes NumPy, Dask or xarray images of dims (..., y, x) and reduces the last two.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from emdask.kernels.fourier import frequency_grid, half_plane_weights, power_spectrum

AXES = (-2, -1)


def mse(images: Any, clean: Any) -> Any:
    """Return the mean squared difference per pixel of each image.

    Parameters
    ----------
    images, clean : array, shape (..., h, w)
        Images and what they should be.

    Returns
    -------
    float64 array, shape (...)

    Examples
    --------
    >>> float(mse(np.full((4, 4), 3.0), np.ones((4, 4))))
    4.0
    """
    difference = images - clean
    return (difference * difference).mean(axis=AXES, dtype=np.float64)


def psnr(images: Any, clean: Any, *, data_range: Any = None) -> Any:
    """Return the peak signal-to-noise ratio of each image, 10 log10(data_range² / MSE).

    Parameters
    ----------
    images, clean : array, shape (..., h, w)
        Images and what they should be.
    data_range : float or array, shape (...)
        None takes max - min of each clean image.

    Returns
    -------
    float64 array, shape (...)
        In dB; infinite where the images are equal.

    Examples
    --------
    >>> float(psnr(np.full((4, 4), 0.1), np.zeros((4, 4)), data_range=1.0))
    20.0
    """
    if data_range is None:
        data_range = clean.max(axis=AXES) - clean.min(axis=AXES)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(data_range**2 / mse(images, clean))


def snr(images: Any, clean: Any) -> Any:
    """Return variance of the clean image / variance of the rest, for each image.

    Parameters
    ----------
    images, clean : array, shape (..., h, w)
        Images and their part that is signal (CTF applied), over the full frame.

    Returns
    -------
    float64 array, shape (...)

    Examples
    --------
    >>> clean = np.tile([1.0, -1.0], (4, 2))
    >>> noise = np.repeat([[2.0], [-2.0]], 2, axis=0) * np.ones((4, 4))
    >>> float(snr(clean + noise, clean))
    0.25
    """
    return clean.var(axis=AXES, dtype=np.float64) / (images - clean).var(
        axis=AXES, dtype=np.float64
    )


def low_frequency_ratio(residuals: Any, *, cutoff: float = 0.1) -> Any:
    """Compare the low-frequency power of each residual with that of white noise of equal variance.

    1 for white noise. Above 1 the denoiser has taken away something broad, as the contours of
    particles; below 1 it has left low-frequency noise in the image.

    Parameters
    ----------
    residuals : NumPy or CuPy array, shape (..., h, w)
        Noisy - denoised.
    cutoff
        Highest frequency that counts as low, in cycles a pixel.

    Returns
    -------
    float64 array, shape (...)
        Mean power up to the cutoff / mean power at all frequencies but 0.

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(size=(256, 256))
    >>> bool(abs(low_frequency_ratio(noise) - 1) < 0.06)
    True
    """
    shape = residuals.shape[-2:]
    weight = half_plane_weights(shape)
    weight[0, 0] = 0.0
    low = weight * (frequency_grid(shape) <= cutoff)
    power = power_spectrum(residuals)
    # A residual that is 0 everywhere has no colour: 0 / 0 is left to be NaN.
    with np.errstate(invalid="ignore"):
        mean_low = (power * low).sum(axis=AXES) / low.sum()
        return mean_low / ((power * weight).sum(axis=AXES) / weight.sum())
