"""What a stack tells of its noise, and of how strongly it shows a particle that is known.

Images are ``a CTF R + N``: R the reference in its own grey levels, a the contrast, one number for a
stack, N noise of a power spectrum. Rings of frequencies add up over images.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from emdask.kernels.ctf import Optics
from emdask.kernels.fourier import radial_power, ring_frequencies
from emdask.kernels.whitening import NoiseSums, corner_mask, count_pixels, noise_spectrum, sum_noise
from emdask.kernels.whitening import add_sums as add_noise

__all__ = [
    "SpectrumSums",
    "add_spectra",
    "find_contrast",
    "find_noise",
    "mean_light",
    "measure_light",
    "noise_at",
    "sum_spectra",
]

Array = npt.NDArray[Any]

# Cycles a pixel: corners are too small to tell of frequencies below.
LEAST_FREQUENCY = 0.035
# How well corners tell the noise at best, as a share of it.
NOISE_ERROR = 0.01
# Of the images' power: corners that are quieter have been masked, or the images denoised.
LEAST_NOISE = 1e-5


class SpectrumSums(NamedTuple):
    """What adds up over images; arrays are over the rings of `emdask.kernels.fourier.radial_power`.

    Parameters
    ----------
    n_images
        Number of them.
    noise
        Of their quiet corners.
    power
        Of the images.
    square
        Square of their CTF.
    light : array, shape (2,)
        How much lighter their middles are than their corners, and the square of it.
    """

    n_images: int
    noise: NoiseSums
    power: Array
    square: Array
    light: Array


def sum_spectra(images: Any, optics: Optics | None) -> SpectrumSums:
    """Add up spectra of images and of their corners.

    Parameters
    ----------
    images : array, shape (m, n, n)
        Grey levels, of the host; not empty.
    optics
        Of the images; None where they have no CTF.

    Returns
    -------
    SpectrumSums
    """
    shape = images.shape[1:]
    _, power = radial_power(np.asarray(images, np.float64))
    square = np.ones((1, power.shape[1]))
    if optics is not None:
        square = optics.power(ring_frequencies(shape))
    square = np.broadcast_to(square, power.shape)
    noise = sum_noise(images, corners=True)
    light = measure_light(images)
    of_light = np.array([light.sum(), np.square(light).sum()])
    return SpectrumSums(len(images), noise, power.sum(0), square.sum(0), of_light)


def add_spectra(a: SpectrumSums, b: SpectrumSums) -> SpectrumSums:
    """Combine the sums of two blocks of images."""
    n_images, noise = a.n_images + b.n_images, add_noise(a.noise, b.noise)
    added = (x + y for x, y in zip(a[2:], b[2:], strict=True))
    return SpectrumSums(n_images, noise, *added)


def measure_light(images: Any) -> Array:
    """Return how much lighter each image is in the middle than in its corners.

    Parameters
    ----------
    images : array, shape (m, n, n)
        Of the host.

    Returns
    -------
    float64 array, shape (m,)
        Mean within a quarter of the edge from the middle, less that of the corners.

    Examples
    --------
    >>> measure_light(np.pad(np.ones((1, 4, 4)), ((0, 0), (6, 6), (6, 6)))).round(2)
    array([0.33])
    """
    n = images.shape[-1]
    y, x = np.indices((n, n)) - n // 2
    distance = np.hypot(x, y)
    pixels = np.asarray(images, np.float64)
    middle, corners = distance <= n / 4, corner_mask((n, n))
    light: Array = pixels[:, middle].mean(1) - pixels[:, corners].mean(1)
    return light


def mean_light(sums: SpectrumSums) -> tuple[float, float]:
    """Return the mean of `measure_light` over images, and its standard error."""
    n = sums.n_images
    mean, square = sums.light / n
    return float(mean), float(np.sqrt(max(square - mean**2, 0.0) / max(n - 1, 1)))


def find_noise(sums: SpectrumSums) -> tuple[Array, Array]:
    """Return the power spectrum of the noise.

    Returns
    -------
    frequency, power : float64 arrays, shape (r,)
        As of `emdask.kernels.whitening.noise_spectrum`; below 0.035 cycles a pixel, where corners
        tell too little, the power is that at the first frequency above. At least 1e-5 of that of
        the images.
    """
    frequency, power = noise_spectrum(sums.noise)
    first = min(int(np.searchsorted(frequency, LEAST_FREQUENCY)), len(power) - 1)
    power = power.copy()
    power[:first] = power[first]
    rings = len(sums.power)
    floor = LEAST_NOISE * np.interp(frequency, np.arange(1, rings + 1) / (2 * rings), sums.power)
    return frequency, np.maximum(power, floor / sums.n_images)


def noise_at(frequency: npt.ArrayLike, spectrum: tuple[Array, Array]) -> Array:
    """Return the noise's power at frequencies in cycles a pixel; constant beyond those known."""
    power: Array = np.interp(np.asarray(frequency, np.float64), *spectrum)
    return power


def find_contrast(
    sums: SpectrumSums, reference_power: npt.ArrayLike, box_px: int
) -> tuple[float, float]:
    """Return the square of how strongly images show a reference, and its standard error.

    Parameters
    ----------
    sums
        Of the images.
    reference_power : array_like, shape (r,)
        Mean power of the references over the rings, as of `emdask.kernels.fourier.radial_power`.
    box_px
        Edge of images and references.

    Returns
    -------
    square : float
        Of the factor from the references' grey levels to those of the images; below 0 where images
        show less power than their corners, NaN where they show none at all.
    error : float
        Of images of noise alone.

    Notes
    -----
    Least squares over rings, whose weights are the number of Fourier terms over the squared power:
    the inverse variances of what is fitted. Rings of which corners tell too little are left out.
    Corners are a part of the images, and fewer pixels: their variance is that of the images times
    the ratio of the areas, and so is the variance of the difference, times that ratio less 1. To
    this comes 1 % of the noise's power, to which corners tell it at best. In boxes below 64 px what
    corners tell scatters up to one and a half times as much.
    """
    reference_power = np.asarray(reference_power, np.float64)
    frequency = ring_frequencies((box_px, box_px))
    noise = noise_at(frequency, find_noise(sums))
    power = sums.power / sums.n_images
    model = reference_power * sums.square / sums.n_images
    seen = (frequency >= LEAST_FREQUENCY) & (frequency < 0.5)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Half a ring: the other half are complex conjugates.
        terms = np.pi * box_px * frequency * sums.n_images
        weight = np.where(seen, terms / np.square(power), 0.0)
        square = float(weight @ (model * (power - noise)) / (weight @ model**2))
        ratio = sums.n_images * box_px**2 / count_pixels(sums.noise)
        own = np.where(seen, np.square(weight * model) * power * noise / terms, 0.0).sum()
        error = np.sqrt((ratio - 1) * own) / (weight @ model**2)
        common = NOISE_ERROR * (weight @ (model * noise)) / (weight @ model**2)
    return square, float(np.hypot(error, common))
