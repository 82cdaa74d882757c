"""How good a result is: per image, for stacks and plain arrays alike, and of volumes.

Each function takes NumPy, Dask or xarray images of dims (..., y, x) and reduces the last two, or
volumes (z, y, x); of Dask arrays it makes a graph and computes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from emdask.checks import check_number, require, sentence
from emdask.errors import StackError
from emdask.kernels.fourier import (
    frequency_grid,
    half_plane_weights,
    power_spectrum,
    radial_correlation,
    ring_frequencies,
)
from emdask.kernels.resolutions import crossing
from emdask.kernels.shells import corrected_correlation, shell_correlation, shell_frequencies
from emdask.lazy import map_signature
from emdask.pick_metrics import match_picks

__all__ = [
    "affine_fit",
    "frc",
    "frc_resolution",
    "fsc",
    "low_frequency_ratio",
    "match_picks",
    "mse",
    "psnr",
    "snr",
    "ssim",
]

AXES = (-2, -1)
# Wang, Bovik, Sheikh and Simoncelli 2004: a Gaussian window of 11 x 11 pixels, and what keeps the
# quotient stable.
WINDOW_SIGMA_PX = 1.5
WINDOW_PX = 11
K1, K2 = 0.01, 0.03
# Share of the strongest ring's power that a full taper spreads to high frequencies, at most:
# measured on blurred images of three kinds, 128 to 512 px.
LEAKED_POWER = 1e-9


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
    return _map("mse", _mse, "(h,w),(h,w)->()", images, clean)


def _mse(images: Any, clean: Any) -> Any:
    difference = _real(images) - _real(clean)
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

    Raises
    ------
    ParameterError
        If the data range is no number above 0.

    Examples
    --------
    >>> float(psnr(np.full((4, 4), 0.1), np.zeros((4, 4)), data_range=1.0))
    20.0
    """
    data_range = _range("psnr", clean, data_range)
    return _map("psnr", _psnr, "(h,w),(h,w),()->()", images, clean, data_range)


def _psnr(images: Any, clean: Any, data_range: Any) -> Any:
    with np.errstate(divide="ignore"):
        return 10 * np.log10(data_range**2 / _mse(images, clean))


def ssim(images: Any, clean: Any, *, data_range: Any = None) -> Any:
    """Return the structural similarity of each image and its clean one.

    Parameters
    ----------
    images, clean : array, shape (..., h, w)
        Images and what they should be; at least 11 x 11 pixels.
    data_range : float or array, shape (...)
        None takes max - min of each clean image.

    Returns
    -------
    float64 array, shape (...)
        At most 1, where the images are equal.

    Raises
    ------
    StackError
        If the images are smaller than the window.
    ParameterError
        If the data range is no number above 0.

    Notes
    -----
    Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to
    structural similarity", IEEE Transactions on Image Processing 13 (2004) 600-612: Gaussian window
    of standard deviation 1.5 px, 11 x 11 pixels, K1 = 0.01, K2 = 0.03, averaged where the window
    lies within the image.

    Examples
    --------
    >>> image = np.random.default_rng(0).normal(size=(16, 16))
    >>> round(float(ssim(image, image)), 6)
    1.0
    """
    if min(images.shape[-2:]) < WINDOW_PX:
        rule = f"images must have at least {WINDOW_PX} x {WINDOW_PX} pixels"
        raise StackError(sentence("ssim", rule, images.shape[-2:]))
    data_range = _range("ssim", clean, data_range)
    return _map("ssim", _ssim, "(h,w),(h,w),()->()", images, clean, data_range)


def _ssim(images: Any, clean: Any, data_range: Any) -> Any:
    from scipy.ndimage import correlate1d

    offsets = np.arange(WINDOW_PX) - WINDOW_PX // 2
    window = np.exp(-0.5 * (offsets / WINDOW_SIGMA_PX) ** 2)
    window /= window.sum()
    margin = WINDOW_PX // 2
    inside = slice(margin, -margin)

    def average(pixels: Any) -> Any:
        rows = correlate1d(pixels, window, axis=-2)[..., inside, :]
        return correlate1d(rows, window, axis=-1)[..., inside]

    x, y = (np.asarray(a, np.float64) for a in (images, clean))
    c1, c2 = (np.square(k * np.asarray(data_range, np.float64))[..., None, None] for k in (K1, K2))
    mean_x, mean_y = average(x), average(y)
    variances = average(x * x) - mean_x**2 + average(y * y) - mean_y**2
    covariance = average(x * y) - mean_x * mean_y
    similar = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (similar / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))).mean(axis=AXES)


def frc(images: Any, clean: Any, *, taper: float = 0.0) -> tuple[Any, Any]:
    """Return the Fourier ring correlation of each image and its clean one.

    Parameters
    ----------
    images, clean : array, shape (..., h, w)
        Images to be compared, ring by ring of their Fourier transforms.
    taper
        Share of each side, from 0 to 1, along which the images less their mean fall off to 0 at
        the edges, as a cosine. What differs at opposite edges is a step to the Fourier transform,
        which two images share at high frequencies where they have nothing else in common. What
        the taper itself spreads of low frequencies they share as well: with one, a ring with at
        most 1e-9 of the power of the strongest counts as empty. Take 1 for smooth images: what
        shorter tapers spread can be more.

    Returns
    -------
    frequency : float64 array, shape (r,)
        Mean frequency of each ring, in cycles a pixel, above 0 and up to Nyquist, 0.5.
    correlation : float64 array, shape (..., r)
        In [-1, 1]; 0 where a ring of one of the images is empty. Of xarray images the last dim is
        ``frequency``, with its coordinate.

    Raises
    ------
    ParameterError
        If the taper is out of range.

    Notes
    -----
    Saxton and Baumeister, "The correlation averaging of a regularly arranged bacterial cell
    envelope protein", Journal of Microscopy 127 (1982) 127-138.

    Examples
    --------
    >>> image = np.random.default_rng(0).normal(size=(2, 16, 16))
    >>> frequency, correlation = frc(image, 3 * image + 1)
    >>> correlation.shape, bool(correlation.min() > 0.999)
    ((2, 8), True)
    """
    check_number("frc", "taper", taper, 0, 1)
    frequency = ring_frequencies(images.shape[-2:])
    signature = "(h,w),(h,w)->(frequency)"
    correlate = partial(_correlate, taper=taper)
    correlation = _map("frc", correlate, signature, images, clean, frequency=len(frequency))
    if isinstance(correlation, xr.DataArray):
        correlation = correlation.assign_coords(frequency=frequency)
    return frequency, correlation


def _correlate(images: Any, clean: Any, taper: float) -> Any:
    least_power = LEAKED_POWER if taper > 0 else 0.0
    tapered = (_fall_off(pixels, taper) for pixels in (images, clean))
    return radial_correlation(*tapered, least_power=least_power)


def _fall_off(images: Any, taper: float) -> Any:
    """Less its mean, each image falls off to 0 at its edges."""
    from scipy.signal.windows import tukey

    window = np.outer(*(tukey(length, taper) for length in images.shape[-2:]))
    return (images - images.mean(axis=AXES, keepdims=True, dtype=np.float64)) * window


def frc_resolution(frequency: Any, correlation: Any, *, threshold: float = 0.5) -> Any:
    """Return the frequency at which a Fourier ring or shell correlation falls below a threshold.

    Parameters
    ----------
    frequency : array, shape (r,)
        What `frc` or `fsc` returned.
    correlation : array, shape (..., r)
        What `frc` or `fsc` returned.
    threshold
        As 0.5 against a truth, 1 / 7 or 0.143 between halves.

    Returns
    -------
    float64 array, shape (...)
        Where it falls below for the first time, in the unit of ``frequency``, interpolated between
        rings; 0 where the first ring is below, the last frequency where none is. ``pixel_size_A /``
        it is the resolution in Å.

    Examples
    --------
    >>> float(frc_resolution(np.array([0.1, 0.2, 0.3]), np.array([1.0, 0.75, 0.25])))
    0.25
    """
    cross = partial(crossing, threshold=threshold)
    arrays = (np.asarray(frequency), correlation)
    return _map("frc_resolution", cross, "(frequency),(frequency)->()", *arrays)


def fsc(volume: Any, other: Any, *, mask: Any = None, corrected: bool = False) -> tuple[Any, Any]:
    """Return the Fourier shell correlation of two volumes.

    Parameters
    ----------
    volume, other : array, shape (n, n, n)
        Volumes to be compared, shell by shell of their Fourier transforms.
    mask : array, shape (n, n, n)
        Soft mask that both are multiplied by, as of `emdask.kernels.masks`; None for none.
    corrected
        Whether to take off what the mask lends: two volumes agree by having one outline. For half
        maps; the phases beyond the shell at which they agree by less than 0.8 are randomised (Chen
        et al. 2013, Ultramicroscopy 135:24, equation 4).

    Returns
    -------
    frequency : float64 array, shape (n // 2,)
        Mean frequency of each shell, in cycles a voxel, above 0 and up to Nyquist, 0.5.
    correlation : float64 array, shape (n // 2,)
        In [-1, 1]; 0 where a shell of one of the volumes is empty. Of xarray volumes its dim is
        ``frequency``, with its coordinate.

    Raises
    ------
    StackError
        If the volumes are no cubes of one size.
    ParameterError
        If ``corrected`` is wanted without a mask.

    Notes
    -----
    Harauz and van Heel, "Exact filters for general geometry three dimensional reconstruction",
    Optik 73 (1986) 146-156.

    Examples
    --------
    >>> volume = np.random.default_rng(0).normal(size=(16, 16, 16))
    >>> frequency, correlation = fsc(volume, 3 * volume)
    >>> correlation.shape, bool(correlation.min() > 0.999)
    ((8,), True)
    """
    require(not corrected or mask is not None, "fsc", "corrected needs a mask", mask)
    if len(set(volume.shape[-3:])) != 1 or volume.ndim != 3:
        raise StackError(sentence("fsc", "volumes must be cubes (z, y, x)", volume.shape))
    frequency = shell_frequencies(volume.shape[-1])
    masks = () if mask is None else (mask,)
    correlate = partial(_correlate_shells, corrected=corrected)
    cubes = ",".join(["(z,y,x)"] * (2 + len(masks)))
    signature = f"{cubes}->(frequency)"
    correlation = _map("fsc", correlate, signature, volume, other, *masks, frequency=len(frequency))
    if isinstance(correlation, xr.DataArray):
        correlation = correlation.assign_coords(frequency=frequency)
    return frequency, correlation


def _correlate_shells(volume: Any, other: Any, mask: Any = None, *, corrected: bool) -> Any:
    if corrected:
        return corrected_correlation(volume, other, mask)
    return shell_correlation(volume, other, mask)


def affine_fit(images: Any, clean: Any) -> Any:
    """Scale and shift the grey levels of each image so that it fits its clean one best.

    For images whose grey levels are of another scale than the clean ones, as after a program that
    normalises: `mse`, `psnr` and `ssim` compare grey levels as they are.

    Parameters
    ----------
    images, clean : array, shape (..., h, w)
        Images and what they should be.

    Returns
    -------
    float64 array, shape (..., h, w)
        a image + b, with the a and b of least squared difference to the clean image; a constant
        image becomes the mean of the clean one.

    Examples
    --------
    >>> image = np.arange(12.0).reshape(3, 4)
    >>> bool(np.allclose(affine_fit(image, 5 - 2 * image), 5 - 2 * image))
    True
    """
    return _map("affine_fit", _affine_fit, "(h,w),(h,w)->(h,w)", images, clean)


def _affine_fit(images: Any, clean: Any) -> Any:
    x, y = (np.asarray(a, np.float64) for a in (images, clean))
    mean = y.mean(axis=AXES, keepdims=True)
    x = x - x.mean(axis=AXES, keepdims=True)
    power = (x * x).sum(axis=AXES, keepdims=True)
    product = (x * (y - mean)).sum(axis=AXES, keepdims=True)
    return x * (product / np.where(power > 0, power, 1.0)) + mean


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
    return _map("snr", _snr, "(h,w),(h,w)->()", images, clean)


def _snr(images: Any, clean: Any) -> Any:
    noise = _real(images) - _real(clean)
    return clean.var(axis=AXES, dtype=np.float64) / noise.var(axis=AXES, dtype=np.float64)


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


def _real(images: Any) -> Any:
    """Integers become floats, or the difference of two of 8 bits would wrap around."""
    return images.astype(np.result_type(images.dtype, np.float32))


def check_data_range(what: str, data_range: Any) -> None:
    """Require a number above 0."""
    ok = isinstance(data_range, Real) and not isinstance(data_range, bool)
    ok = ok and 0 < float(data_range) < np.inf
    require(ok, what, "data_range must be a number above 0", data_range)


def _range(what: str, clean: Any, given: Any) -> Any:
    """Data range as float64, whose square does not overflow; max - min of each image if None."""
    if given is None:
        return (_real(clean.max(axis=AXES)) - _real(clean.min(axis=AXES))).astype(np.float64)
    if isinstance(given, np.ndarray | da.Array | xr.DataArray):
        return given.astype(np.float64)
    check_data_range(what, given)
    return float(given)


def _map(
    what: str, function: Callable[..., Any], signature: str, *arrays: Any, **sizes: int
) -> Any:
    """Apply a function of plain arrays to the axes that its signature names.

    Stacks are matched by their dims, of which the last are those of the signature.
    """
    mapped = partial(map_signature, function, signature, **sizes)
    stacks = [array for array in arrays if isinstance(array, xr.DataArray)]
    inside, _, out = signature.partition("->")
    _check_agreement(what, _axes(inside), arrays, stacks)
    if not stacks:
        return mapped(*arrays)
    named: dict[str, Any] = {}
    for words, array in zip(_axes(inside), arrays, strict=True):
        if isinstance(array, xr.DataArray):
            named |= dict(zip(words, array.dims[array.ndim - len(words) :], strict=True))
    dims = [[named[word] for word in words] for words in _axes(inside)]
    new = [[named.get(word, word) for word in words] for words in _axes(out)]
    return xr.apply_ufunc(
        mapped, *arrays, input_core_dims=dims, output_core_dims=new, dask="allowed"
    )


def _check_agreement(
    what: str, axes: list[list[str]], arrays: Sequence[Any], stacks: Sequence[xr.DataArray]
) -> None:
    """Refuse what would broadcast along the axes of the signature, and stacks of other images."""
    shapes = [a.shape[-len(words) :] for words, a in zip(axes, arrays, strict=True) if words]
    if len({*shapes}) > 1:
        raise StackError(sentence(what, "images that are compared must have one size", shapes))
    try:
        xr.align(*stacks, join="exact", copy=False)
    except ValueError as error:
        rule = "dims of stacks that are compared must have the same lengths and labels"
        remedy = "Select the same images of both, or pass their .data."
        raise StackError(sentence(what, rule, remedy=remedy)) from error


def _axes(side: str) -> list[list[str]]:
    """Names of the axes on one side of a signature, array by array."""
    return [re.findall(r"\w+", group) for group in re.findall(r"\(([^)]*)\)", side)]
