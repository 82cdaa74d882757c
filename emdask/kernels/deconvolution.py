"""Images as seen through a PSF and noise: how strongly to smooth, borders; NumPy or CuPy arrays."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.fft

from emdask.backend import array_namespace, fourier_namespace
from emdask.kernels.ctf import Optics
from emdask.kernels.fourier import frequency_grid, half_plane_weights
from emdask.kernels.psf import transfer_function
from emdask.kernels.reductions import mean_of_pixels, over_pixels

__all__ = [
    "Spectrum",
    "best_balance",
    "best_sieve_px",
    "deconvolve",
    "gradients",
    "library_psf",
    "sample_spectrum",
    "see_through_wiener",
]

Array = npt.NDArray[Any]

# Borders that are added; a PSF must not reach across them.
MARGIN_PX = (32, 64)
# Of an axis with its margins: a shorter one would meet its own mirror image in the middle of them.
SHORT_AXIS = 0.57
# Of larger images, every second, third ... frequency says enough.
SAMPLE = 1 << 17
# Of the Laplacian against the data, in units of the noise.
BALANCES = (1e-4, 1e8)
# Narrower changes nothing; wider than a quarter of the margin, the borders would show.
SIEVES_PX = (0.25, MARGIN_PX[0] / 4)
N_COARSE = 20
N_FINE = 9


class Spectrum(NamedTuple):
    """Some frequencies of an image of unit noise.

    Attributes
    ----------
    power
        Squares of the absolute values.
    noise
        What they are of noise alone on average; 1 in an image of unit noise.
    weight
        Number of frequencies that each stands for.
    transfer
        Square of what each was multiplied by before the noise came.
    laplacian
        Square of what the Laplacian multiplies it by.
    frequency
        Square of its frequency, in (cycles a pixel)².
    """

    power: Array
    noise: Array
    weight: Array
    transfer: Array
    laplacian: Array
    frequency: Array


def deconvolve(
    images: Any, psf: Any, optics: Optics | None, restore: Callable[[Any, Array | None], Any]
) -> Any:
    """Restore images one by one, with borders that are added and cut off again.

    Parameters
    ----------
    images
        Images of unit noise, (n, h, w).
    psf
        What `emdask.kernels.psf.freeze_psf` returned.
    optics
        Of the images, or None.
    restore
        ``(image, transfer) -> image``: an image with borders, and the transfer function of that
        size or None; NumPy.

    Returns
    -------
    (n, h, w) float32
        Of the mean that each image had.

    Notes
    -----
    A CTF weakens what is broad tenfold, but not the gradients of ice and illumination, which would
    be amplified as much. So where the PSF is the CTF, the least-squares surface that is linear
    along rows and columns is taken away before and added afterwards.

    Examples
    --------
    >>> images = np.arange(6.0).reshape(1, 2, 3)
    >>> deconvolve(images, "none", None, lambda wide, transfer: wide)[0].tolist()
    [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    """
    xp = array_namespace(images)
    result = xp.empty(images.shape, np.float32)
    margins = _margins(images.shape[1:])
    of_ctf = psf == "auto" and optics is not None
    kept = gradients(images) if of_ctf else mean_of_pixels(images)[:, None, None]
    crop = tuple(slice(m[0], m[0] + n) for m, n in zip(margins, images.shape[1:], strict=True))
    for i, image in enumerate(images):
        rest = (image - kept[i]).astype(image.dtype)
        wide = xp.ascontiguousarray(_extend(_extend(rest, *margins[0]).T, *margins[1]).T)
        shape = (int(wide.shape[0]), int(wide.shape[1]))
        restored = restore(wide, transfer_function(psf, shape, optics, i))[crop]
        result[i] = restored - restored.mean(dtype="f8") + kept[i]
    return result


def gradients(images: Any) -> Any:
    """Return the least-squares surfaces that are linear along rows and columns, with the means.

    Parameters
    ----------
    images
        (n, h, w); NumPy or CuPy.

    Returns
    -------
    (n, h, w) float64

    Examples
    --------
    >>> gradients(np.array([[[0.0, 1.0, 5.0]]])).round(1).tolist()
    [[[-0.5, 2.0, 4.5]]]
    """
    xp = array_namespace(images)
    surfaces = xp.zeros(images.shape, np.float64)
    for down, across in itertools.product(*(_lines(n).T for n in images.shape[1:])):
        plane = xp.asarray(down[:, None] * across)
        surfaces += over_pixels("sum", images * plane)[:, None, None] * plane
    return surfaces


def _lines(n: int) -> Array:
    """Orthonormal columns that span all straight lines over n pixels."""
    lines = np.stack([np.ones(n), np.linspace(-1, 1, n)], axis=1)
    return np.asarray(np.linalg.qr(lines)[0])


def _margins(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Margins before and after each axis, to a length of which Fourier transforms are fast.

    Short axes are repeated as their mirror images, forth and back.
    """
    least = int(np.clip(max(shape) // 4, *MARGIN_PX))
    margins = []
    for n in shape:
        length = int(scipy.fft.next_fast_len(n + 2 * least, real=True))
        if n < SHORT_AXIS * length:
            length = 2 * n * -(-(n + 2 * least) // (2 * n))
        margins.append(((length - n) // 2, length - n - (length - n) // 2))
    return margins


def _extend(image: Any, before: int, after: int) -> Any:
    """Add rows, so that the last goes on into the first without a step.

    Both ends go on as their mirror images, of which one fades into the other so that the noise has
    the same power everywhere.
    """
    xp = array_namespace(image)
    gap = before + after
    if (len(image) + gap) % (2 * len(image)) == 0:
        return xp.pad(image, ((before, after), (0, 0)), mode="symmetric")
    wide = xp.pad(image, ((gap, gap), (0, 0)), mode="symmetric")
    angle = np.pi / 2 * (np.arange(gap, dtype=np.float32)[:, None] + 0.5) / gap
    filled = xp.asarray(np.cos(angle)) * wide[-gap:] + xp.asarray(np.sin(angle)) * wide[:gap]
    return xp.concatenate([filled[after:], image, filled[:after]])


def sample_spectrum(image: Any, transfer: Array | None) -> Spectrum:
    """Return frequencies of an image, so many as it takes to choose parameters.

    Parameters
    ----------
    image
        Of unit noise, (h, w); NumPy or CuPy.
    transfer
        Transfer function, (h, w // 2 + 1), or None.

    Returns
    -------
    Spectrum
        NumPy.

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(size=(64, 64))
    >>> bool(abs(np.average(sample_spectrum(noise, None).power) - 1) < 0.1)
    True
    """
    shape = (int(image.shape[0]), int(image.shape[1]))
    step = 1 + int((image.size / 2 / SAMPLE) ** 0.5)
    some = (slice(None, None, step), slice(None, None, step))
    values = fourier_namespace(image).rfft2(image, norm="ortho")[some]
    values = values if array_namespace(image) is np else values.get()
    down, across = np.fft.fftfreq(shape[0])[::step], np.fft.rfftfreq(shape[1])[::step]
    cosines = np.cos(2 * np.pi * down)[:, None] + np.cos(2 * np.pi * across)
    return Spectrum(
        power=np.abs(values.astype(np.complex128)) ** 2,
        noise=np.ones(values.shape),
        weight=half_plane_weights(shape)[some],
        transfer=np.ones(values.shape) if transfer is None else np.abs(transfer[some]) ** 2,
        laplacian=(4 - 2 * cosines) ** 2,
        frequency=frequency_grid(shape)[some] ** 2,
    )


def best_balance(spectrum: Spectrum) -> float:
    """Choose the weight of the Laplacian in Wiener's filter that leaves the least error.

    Parameters
    ----------
    spectrum
        Of an image of unit noise.

    Returns
    -------
    float
        ``balance`` of scikit-image's ``wiener``: the filter is H* / (|H|² + balance |L|²).

    Notes
    -----
    The error is that of the image as it is seen through the PSF, estimated without the clean image
    and without bias: Stein, "Estimation of the mean of a multivariate normal distribution", Annals
    of Statistics 9 (1981) 1135-1151.

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(size=(64, 64))
    >>> best_balance(sample_spectrum(noise, None)) > 1e4
    True
    """

    def kept(balance: float) -> Array:
        return spectrum.transfer / (spectrum.transfer + balance * spectrum.laplacian + 1e-30)

    return _least_risk(spectrum, kept, *BALANCES)


def see_through_wiener(spectrum: Spectrum, balance: float) -> Spectrum:
    """Return the spectrum of an image after Wiener's filter, which is taken to undo the PSF.

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(size=(64, 64))
    >>> filtered = see_through_wiener(sample_spectrum(noise, np.full((64, 33), 0.5)), 0.0)
    >>> bool(np.allclose(filtered.noise, 4))
    True
    """
    smoothed = spectrum.transfer + balance * spectrum.laplacian + 1e-30
    gain = spectrum.transfer / smoothed**2
    return spectrum._replace(power=gain * spectrum.power, noise=gain, transfer=np.ones(gain.shape))


def best_sieve_px(spectrum: Spectrum, n_iterations: int) -> float:
    """Choose the sieve of Richardson and Lucy's iteration that leaves the least error.

    Parameters
    ----------
    spectrum
        Of an image of unit noise.
    n_iterations
        Number of iterations.

    Returns
    -------
    float
        Standard deviation of a Gaussian in px.

    Notes
    -----
    Where the contrast is weak, n iterations and the sieve G multiply what is seen through the PSF H
    by 1 - (1 - |H G|²)^n. The error is estimated as by `best_balance`.

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(size=(64, 64))
    >>> best_sieve_px(sample_spectrum(noise, None), 5) > 4
    True
    """

    def kept(width_px: float) -> Array:
        seen = spectrum.transfer * np.exp(-4 * (np.pi * width_px) ** 2 * spectrum.frequency)
        return np.asarray(1 - (1 - np.minimum(seen, 1)) ** n_iterations)

    return _least_risk(spectrum, kept, *SIEVES_PX)


def _least_risk(
    spectrum: Spectrum, kept: Callable[[float], Array], low: float, high: float
) -> float:
    """Search geometrically, first all over and then around the least."""

    def risk(value: float) -> float:
        share = kept(value)
        errors = (1 - share) ** 2 * spectrum.power + 2 * share * spectrum.noise
        return float((spectrum.weight * errors).sum())

    values = np.geomspace(low, high, N_COARSE)
    at = int(np.argmin([risk(value) for value in values]))
    near = np.geomspace(values[max(at - 1, 0)], values[min(at + 1, N_COARSE - 1)], N_FINE)
    return float(near[np.argmin([risk(value) for value in near])])


def library_psf(transfer: Array | None, image: Any) -> Any:
    """Return a PSF as scikit-image and cuCIM take it: complex is a transfer function.

    They use the real part alone of a transfer function, so that one that is not real is given as
    the image of a point, its middle at (h // 2, w // 2).

    Examples
    --------
    >>> library_psf(None, np.zeros((4, 4))).shape
    (4, 3)
    """
    xp = array_namespace(image)
    shape = (image.shape[0], image.shape[1] // 2 + 1)
    if transfer is None:
        return xp.ones(shape, np.complex64)
    if not np.iscomplexobj(transfer):
        return xp.asarray(transfer.astype(np.complex128))
    return xp.asarray(np.fft.fftshift(scipy.fft.irfft2(transfer, image.shape)))
