"""Wiener's filter by the signal-to-noise ratio of a whole stack, ring by ring; NumPy or CuPy.

Images are brought to unit noise. Their power at a frequency is then on average ``S |H|² + N``, with
S the power of the signal before the transfer function H was applied, taken to be the same in all
directions, and N that of the noise. S is a quotient of sums over images, whatever their transfer
functions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace, to_host
from emdask.kernels.ctf import Optics
from emdask.kernels.deconvolution import gradients
from emdask.kernels.fourier import frequency_grid, half_plane_weights
from emdask.kernels.psf import transfer_functions
from emdask.kernels.reductions import over_pixels
from emdask.kernels.transforms import to_half_planes, to_images
from emdask.kernels.unit_noise import denoise_at_unit_noise, to_unit_noise
from emdask.kernels.whitening import corner_mask

__all__ = ["SpectrumSums", "add_sums", "filter_images", "learn_spectrum", "sum_spectrum"]

Array = npt.NDArray[Any]

# A smaller corner says too little of the noise.
CORNER_PIXELS = 16
# Of the variance that the noise is estimated to have: corners with less have been masked.
LEAST_BACKGROUND = 0.5
# Scatters of the noise by which a ring must be above it: to show a signal; and to say how strong a
# signal may be. What a transfer function has all but wiped out would be divided by almost 0.
SEEN, SURE = 2.0, 5.0


class SpectrumSums(NamedTuple):
    """What adds up over images of unit noise; arrays are over rings of frequencies, (r,).

    Attributes
    ----------
    shape : (h, w)
        Size of the images.
    n_images
        Number of those that have noise.
    background
        Variances of their corners.
    power
        Their power times the square of the transfer function.
    square, fourth
        Second and fourth powers of the transfer function.
    """

    shape: tuple[int, int]
    n_images: int
    background: float
    power: Array
    square: Array
    fourth: Array


def sum_spectrum(images: Any, sigma: Any, psf: Any, optics: Optics | None) -> SpectrumSums:
    """Add up the power of images.

    Parameters
    ----------
    images
        Noisy images in grey levels, (n, h, w); NumPy or CuPy.
    sigma
        Standard deviation of the noise in grey levels, or "auto".
    psf, optics
        As of `emdask.kernels.psf.transfer_functions`.

    Returns
    -------
    SpectrumSums
        NumPy.
    """
    xp = array_namespace(images)
    shape = (int(images.shape[1]), int(images.shape[2]))
    unit, _, _, noisy = to_unit_noise(images, sigma)
    chosen = np.flatnonzero(to_host(noisy.ravel()))
    if len(chosen) < len(images):
        unit, optics = unit[xp.asarray(chosen)], optics and optics[chosen]
    if psf == "auto" and optics is not None:
        unit -= gradients(unit).astype(np.float32)
    background = _corner_variances(unit).sum() if sigma == "auto" else len(unit)
    planes = xp.zeros((3, shape[0], shape[1] // 2 + 1))
    terms = to_half_planes(unit)
    for which, transfer in transfer_functions(psf, shape, optics, len(unit), xp):
        some = terms[which]
        square = abs(transfer) ** 2
        planes[0] += (square * abs(some) ** 2).sum(axis=0, dtype="f8") / (shape[0] * shape[1])
        times = len(some) / len(square)
        planes[1] += times * square.sum(axis=0, dtype="f8")
        planes[2] += times * (square**2).sum(axis=0, dtype="f8")
    rings = (_sum_rings(plane, shape) for plane in to_host(planes))
    return SpectrumSums(shape, len(unit), float(background), *rings)


def _corner_variances(images: Any) -> Any:
    """Variance of the noise of each image; 1 where it has no corners to tell it.

    Of the four corners, outside of the ellipse that touches the sides, the lowest and the highest
    do not count: beside a neighbour the variance is larger.
    """
    xp = array_namespace(images)
    h, w = ((n + 1) // 2 for n in images.shape[1:])
    quarter = corner_mask(images.shape[1:])[:h, :w]
    n_pixels = int(quarter.sum())
    if n_pixels < CORNER_PIXELS:
        return xp.ones(len(images))
    variances = []
    for turned in (images, images[:, ::-1], images[:, :, ::-1], images[:, ::-1, ::-1]):
        corner, mask = turned[:, :h, :w], xp.asarray(quarter)
        means = over_pixels("sum", corner * mask, np.float64) / n_pixels
        deviations = (corner - means[:, None, None]) * mask
        variances.append(over_pixels("sum", deviations * deviations) / (n_pixels - 1))
    return xp.sort(xp.stack(variances), axis=0)[1:3].mean(axis=0)


def _sum_rings(plane: Array, shape: tuple[int, int]) -> Array:
    """Add up over the whole Fourier plane, without frequency 0."""
    ring, weight = _rings(shape)
    return np.bincount(ring.ravel(), (weight * plane).ravel())


def _rings(shape: tuple[int, int]) -> tuple[Array, Array]:
    """Ring of each frequency, as wide as a step along the shorter side, and how often it counts."""
    ring = np.rint(frequency_grid(shape) * min(shape)).astype(np.int64)
    weight = half_plane_weights(shape)
    weight[0, 0] = 0
    return ring, weight


def add_sums(a: SpectrumSums, b: SpectrumSums) -> SpectrumSums:
    """Combine the sums of two parts of a stack."""
    return SpectrumSums(
        shape=a.shape,
        n_images=a.n_images + b.n_images,
        background=a.background + b.background,
        power=a.power + b.power,
        square=a.square + b.square,
        fourth=a.fourth + b.fourth,
    )


def learn_spectrum(sums: SpectrumSums) -> tuple[Array, Array, Array]:
    """Return the power of signal and noise.

    Parameters
    ----------
    sums
        Over all images.

    Returns
    -------
    frequency : float64 array, shape (r,)
        In cycles a pixel, rising, up to the corner of the Fourier plane.
    signal : float64 array, shape (r,)
        As without the transfer function, in units of the noise; at least 0.
    noise : float64 array, shape (r,)
        About 1 everywhere.

    Notes
    -----
    The least-squares solution of ``power = S |H|² + N`` over all frequencies of a ring in all
    images. N is the mean variance of the corners, unless that is more than the estimate that images
    are scaled by, as beside other particles, or less than half of it, as outside of a mask. Rings
    that are not above the noise have no signal, and none has more than the strongest that surely
    is.
    """
    noise = sums.background / max(sums.n_images, 1)
    noise = noise if LEAST_BACKGROUND < noise < 1 else 1.0
    n_terms = _sum_rings(np.ones(frequency_grid(sums.shape).shape), sums.shape)
    there = np.flatnonzero(n_terms) if n_terms.any() else np.zeros(1, np.int64)
    frequency = _sum_rings(frequency_grid(sums.shape), sums.shape) / np.maximum(n_terms, 1)
    above, fourth = (sums.power - noise * sums.square)[there], sums.fourth[there]
    signal = np.divide(above, fourth, out=np.zeros(len(there)), where=fourth > 0)
    # Each term and its conjugate are one: the scatter of a sum of noise alone.
    scatter = noise * np.sqrt(2 * fourth)
    signal[above <= SEEN * scatter] = 0
    most = signal.max(initial=0, where=above > SURE * scatter)
    return frequency[there], np.minimum(signal, most), np.full(len(there), noise)


def filter_images(
    images: Any,
    sigma: Any,
    psf: Any,
    optics: Optics | None,
    spectrum: tuple[Array, Array, Array],
) -> Any:
    """Filter each image by the spectrum of the stack and its own transfer function.

    Parameters
    ----------
    images, sigma, psf, optics
        As of `sum_spectrum`.
    spectrum
        Frequencies, and the power of signal and noise at them; interpolated between.

    Returns
    -------
    (n, h, w) float32
        Of the library of the images, and of the mean that each had.
    """
    frequency, signal, noise = spectrum
    shape = (int(images.shape[1]), int(images.shape[2]))
    grid = frequency_grid(shape)
    powers = [np.interp(grid, frequency, power).astype(np.float32) for power in (signal, noise)]

    def restore(unit: Any) -> Any:
        xp = array_namespace(unit)
        of_ctf = psf == "auto" and optics is not None
        kept = gradients(unit).astype(np.float32) if of_ctf else np.float32(0)
        terms = to_half_planes(unit - kept)
        signal, noise = (xp.asarray(power) for power in powers)
        for which, transfer in transfer_functions(psf, shape, optics, len(unit), xp):
            gain = transfer.conj() * signal / (abs(transfer) ** 2 * signal + noise)
            terms[which] *= gain
        return to_images(terms, shape) + kept

    return denoise_at_unit_noise(images, sigma, restore)
