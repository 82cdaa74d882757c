"""Noise that is added to clean images, for networks to learn from; NumPy and CuPy arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace, fourier_namespace
from emdask.kernels.coloured_noise import noise_gain
from emdask.kernels.unit_noise import to_unit_noise

__all__ = ["NoiseToAdd", "add_training_noise"]

Array = npt.NDArray[Any]


class NoiseToAdd(NamedTuple):
    """How much noise images get, and of which colour.

    Parameters
    ----------
    snr : (n,)
        Ratio of the variances of signal and noise.
    rise, knee, power_at_nyquist : (n,)
        As of `emdask.kernels.coloured_noise.noise_power`.
    """

    snr: Array
    rise: Array
    knee: Array
    power_at_nyquist: Array


def add_training_noise(clean: Any, white: Any, noise: NoiseToAdd) -> tuple[Any, Any]:
    """Add noise to images, and bring both to unit noise as it is estimated.

    Parameters
    ----------
    clean : (n, h, w) float32
        Without noise, in any grey levels.
    white : (n, h, w) float32
        White noise of variance 1; of the same library.
    noise
        Of each image; on the host.

    Returns
    -------
    noisy, target : (n, h, w) float32
        Of mean 0 and unit noise, and the clean images in the same grey levels.

    Examples
    --------
    >>> rng, one = np.random.default_rng(0), np.ones(1)
    >>> clean, white = rng.normal(size=(2, 1, 64, 64)).astype(np.float32)
    >>> noisy, target = add_training_noise(clean, white, NoiseToAdd(one / 4, 0 * one, one, one))
    >>> bool(abs(target.var() / (noisy - target).var() - 1 / 4) < 0.01)
    True
    """
    xp = array_namespace(clean)
    centred = clean - clean.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    deviations = xp.sqrt((centred * centred).mean(axis=(1, 2), keepdims=True))
    gains = xp.sqrt(xp.asarray(noise.snr))[:, None, None] / xp.where(deviations > 0, deviations, 1)
    signal = (centred * gains).astype(np.float32)
    noisy = signal + _colour(white, noise)
    unit, scales, means, _ = to_unit_noise(noisy, "auto")
    return unit, ((signal - means) / scales).astype(np.float32)


def _colour(white: Any, noise: NoiseToAdd) -> Any:
    """Give those images that are to have one a spectrum that is not flat."""
    coloured = np.flatnonzero((noise.rise > 0) | (noise.power_at_nyquist < 1))
    if len(coloured) == 0:
        return white
    xp, fft = array_namespace(white), fourier_namespace(white)
    rise, knee, left = (xp.asarray(p[coloured])[:, None, None] for p in noise[1:])
    gain = noise_gain(white.shape[1:], rise=rise, knee=knee, power_at_nyquist=left)
    where = xp.asarray(coloured)
    result = white.copy()
    result[where] = fft.irfft2(fft.rfft2(white[where]) * gain, s=white.shape[1:])
    return result
