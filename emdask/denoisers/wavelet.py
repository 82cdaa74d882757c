"""Wavelet shrinkage, averaged over shifts of the image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from emdask.checks import check_choice, check_integer, check_number, check_sigma, require, suggest
from emdask.kernels.unit_noise import denoise_at_unit_noise, image_by_image
from emdask.method import Method, noise_parameter, parameter

Floats = npt.NDArray[np.float32]

# Of the thresholds of BayesShrink and VisuShrink, at strength 1. benchmarks/filters.py has the
# sweep: thresholds of a single shift are too high for the average of many.
BAYES = 0.85
VISU = 0.85
SHIFTS_PX = ((0, 0), (0, 1), (1, 0), (1, 1))
# Periodic transforms: the filters of the coarser levels then never lose the image.
MODE = "periodization"
AT_ONCE_PIXELS = 1 << 17


@dataclass(frozen=True, kw_only=True)
class Wavelet:
    """Parameters of wavelet shrinkage.

    Parameters
    ----------
    sigma
        Standard deviation of the white noise in grey levels, or "auto": estimated image by image.
    strength
        Factor of the thresholds.
    wavelet
        Name of an orthogonal or biorthogonal wavelet of PyWavelets.
    shrinkage
        "bayes": soft thresholds, one for each band, from the variance of its signal. "visu": one
        hard threshold for all.
    n_scales
        Resolutions, each half of the last, whose details are shrunk.
    cycle_spin
        Shifts along each axis over whose results the average is taken; a power of two. 1 is the
        plain transform; 2 to the power of ``n_scales`` are all that make a difference.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    Chang, Yu and Vetterli, "Adaptive wavelet thresholding for image denoising and compression",
    IEEE Transactions on Image Processing 9 (2000) 1532-1546 (bayes); Donoho and Johnstone, "Ideal
    spatial adaptation by wavelet shrinkage", Biometrika 81 (1994) 425-455 (visu); Coifman and
    Donoho, "Translation-invariant de-noising", Wavelets and Statistics (1995) 125-150. The shifts
    share their work: each level is transformed at its own two shifts an axis, which costs as much
    as four plain transforms a level, and not as many as there are shifts.

    Examples
    --------
    >>> Wavelet(wavelet="db2", cycle_spin=8).cycle_spin
    8
    >>> Wavelet(cycle_spin=3)
    Traceback (most recent call last):
    emdask.errors.ParameterError: wavelet: cycle_spin must be a power of two in [1, 256]; got 3.
    """

    sigma: Literal["auto"] | float = noise_parameter()
    strength: float = parameter(1.0, "how much is removed, relative to what suits the noise")
    wavelet: str = parameter("sym4", "name of the wavelet, as PyWavelets has it")
    shrinkage: Literal["bayes", "visu"] = parameter(
        "bayes", "bayes: a soft threshold for each band; visu: one hard threshold"
    )
    n_scales: int = parameter(5, "resolutions, each half of the last; the coarser guide the finer")
    cycle_spin: int = parameter(32, "shifts along each axis that are averaged; a power of two")

    def __post_init__(self) -> None:
        check_sigma("wavelet", self.sigma)
        check_number("wavelet", "strength", self.strength, 0.01, 100)
        _check_wavelet(self.wavelet)
        check_choice("wavelet", "shrinkage", self.shrinkage, ("bayes", "visu"))
        check_integer("wavelet", "n_scales", self.n_scales, 1, 8)
        ok = isinstance(self.cycle_spin, int) and self.cycle_spin in [2**k for k in range(9)]
        rule = "cycle_spin must be a power of two in [1, 256]"
        require(ok, "wavelet", rule, self.cycle_spin)


def _check_wavelet(name: object) -> None:
    import pywt

    known = pywt.wavelist(kind="discrete")
    rule = "wavelet must be a discrete wavelet of PyWavelets"
    require(name in known, "wavelet", rule, name, suggest(str(name), known))


def denoise_cpu(images: npt.NDArray[Any], params: Wavelet) -> Floats:
    """Shrink the wavelet coefficients of images on one CPU core.

    Parameters
    ----------
    images
        Noisy images in grey levels, (n, h, w).
    params
        Parameters.

    Returns
    -------
    (n, h, w) float32
    """
    import pywt

    wavelet, shrink = pywt.Wavelet(params.wavelet), SHRINKAGES[params.shrinkage]

    def denoise(image: Floats) -> Floats:
        n_scales = min(params.n_scales, int(math.log2(min(image.shape))))
        margin = (1 << n_scales) // 2
        ends = [margin + -length % (1 << n_scales) for length in image.shape]
        padded = np.pad(image, [(margin, end) for end in ends], mode="symmetric")
        n_spun = int(math.log2(params.cycle_spin))
        shrink_band = shrink(params.strength, image.size)
        smooth: Floats = spin(padded[None], wavelet, n_scales, n_spun, shrink_band)[0]
        height, width = image.shape
        return smooth[margin : margin + height, margin : margin + width]

    return denoise_at_unit_noise(images, params.sigma, image_by_image(denoise))  # type: ignore[no-any-return]


def spin(
    images: Floats, wavelet: Any, n_scales: int, n_spun: int, shrink: Callable[[Floats], Floats]
) -> Floats:
    """Shrink the wavelet coefficients of images and average over shifts.

    Parameters
    ----------
    images
        (n, h, w); h and w are multiples of 2 to the power of ``n_scales``.
    wavelet
        A `pywt.Wavelet`, or its name.
    n_scales
        Levels of the transform.
    n_spun
        Levels, from the finest on, at which both shifts of each axis are averaged.
    shrink
        Takes and returns the coefficients of one band.

    Returns
    -------
    (n, h, w)

    Examples
    --------
    >>> image = np.arange(64.0).reshape(1, 8, 8)
    >>> bool(abs(spin(image, "db2", 2, 2, lambda band: band) - image).max() < 1e-9)
    True
    """
    if n_scales == 0:
        return images
    shifts = SHIFTS_PX if n_spun else SHIFTS_PX[:1]
    shifted = [np.roll(images, (-dy, -dx), (1, 2)) for dy, dx in shifts]
    # Large images shift by shift, in less memory; small ones at once, in fewer calls.
    batches = shifted if images.size > AT_ONCE_PIXELS else [np.concatenate(shifted)]
    smooth = [_transform(batch, wavelet, n_scales, n_spun, shrink) for batch in batches]
    parts = np.concatenate(smooth).reshape(len(shifts), *images.shape)
    back = [np.roll(part, shift, (1, 2)) for part, shift in zip(parts, shifts, strict=True)]
    mean: Floats = sum(back[1:], start=back[0]) / np.float32(len(shifts))
    return mean


def _transform(
    images: Floats, wavelet: Any, n_scales: int, n_spun: int, shrink: Callable[[Floats], Floats]
) -> Floats:
    """Go one level down, shrink details, leave the rest to the next level, and come back."""
    import pywt

    rest, details = pywt.dwt2(images, wavelet, MODE, axes=(1, 2))
    details = tuple(shrink(band) for band in details)
    rest = spin(rest, wavelet, n_scales - 1, max(n_spun - 1, 0), shrink)
    return pywt.idwt2((rest, details), wavelet, MODE, axes=(1, 2))  # type: ignore[no-any-return]


def shrink_bayes(strength: float, n_pixels: int) -> Callable[[Floats], Floats]:
    """Make the shrinkage of BayesShrink: threshold sigma² / sigma of the band's signal."""
    import pywt

    def shrink(band: Floats) -> Floats:
        signal = float(np.mean(band * band, dtype=np.float64)) - 1
        if signal <= 0:
            return np.zeros_like(band)
        return pywt.threshold(band, np.float32(strength * BAYES / math.sqrt(signal)))  # type: ignore[no-any-return]

    return shrink


def shrink_visu(strength: float, n_pixels: int) -> Callable[[Floats], Floats]:
    """Make the shrinkage of VisuShrink: threshold sigma (2 log N)^½ for every band."""
    import pywt

    threshold = np.float32(strength * VISU * math.sqrt(2 * math.log(max(n_pixels, 2))))
    return lambda band: pywt.threshold(band, threshold, mode="hard")


SHRINKAGES = {"bayes": shrink_bayes, "visu": shrink_visu}
METHOD = Method(params=Wavelet, apply={"cpu": denoise_cpu})
