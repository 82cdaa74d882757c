"""Richardson-Lucy deconvolution under a sieve: the estimate stays positive and smooth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import scipy.signal

from emdask.backend import array_namespace, filter_namespace, restoration_namespace
from emdask.checks import check_integer, check_number, check_sigma, require
from emdask.kernels.ctf import Optics
from emdask.kernels.deconvolution import (
    best_balance,
    best_sieve_px,
    deconvolve,
    library_psf,
    sample_spectrum,
    see_through_wiener,
)
from emdask.kernels.psf import TRUNCATE, corrects_ctf, freeze_psf, gaussian_psf
from emdask.kernels.unit_noise import denoise_at_unit_noise
from emdask.method import Method, noise_parameter, parameter

# Least grey level of what is iterated, in units of the noise: the iteration divides by it.
LEAST = 0.01
# Strength of Wiener's filter before: the sieve takes away the noise that it leaves.
CORRECTION = 0.5


@dataclass(frozen=True, kw_only=True)
class RichardsonLucy:
    """Parameters of Richardson-Lucy deconvolution, by scikit-image and on a card by cuCIM.

    Parameters
    ----------
    psf
        Point spread function: "auto" corrects the CTF of each image where the stack knows its
        defocus, and else is "none", a point. A number is the standard deviation of a Gaussian in
        px. From Python also an array (h, w) without negative pixels, whose middle is its pixel
        (h // 2, w // 2) and which is scaled to a sum of 1.
    width_px
        Standard deviation of the sieve, a Gaussian: the estimate is an image that was blurred by
        it, so that also with a point as PSF the noise is lowered. "auto" chooses for each image the
        width that leaves the least error.
    n_iterations
        Number of iterations; more sharpen the edge between what is kept and what is not.
    sigma
        Standard deviation of the white noise in grey levels, or "auto": estimated image by image;
        for ``width_px="auto"``.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    Richardson, Journal of the Optical Society of America 62 (1972) 55-59; Lucy, Astronomical
    Journal 79 (1974) 745-754; the sieve: Snyder and Miller, "The use of sieves to stabilize images
    produced with the EM algorithm for emission tomography", IEEE Transactions on Nuclear Science 32
    (1985) 3864-3872: the PSF is blurred by the sieve, and so is the estimate at the end.

    The PSF of a CTF is negative in places, which the method does not allow, so a CTF is corrected
    beforehand, by the method ``wiener`` with half the strength that suits it alone. Images are
    raised until their darkest pixel is just positive, and keep their mean.

    Examples
    --------
    >>> RichardsonLucy(psf=2, n_iterations=10).psf
    2.0
    >>> RichardsonLucy(psf=[[2, -1]])
    Traceback (most recent call last):
    emdask.errors.ParameterError: richardson_lucy: psf must not be negative anywhere; got -1.0.
    """

    psf: Literal["auto", "none"] | float | tuple[tuple[float, ...], ...] = parameter(
        "auto",
        "point spread function; auto: the CTF where known; a number: width of a Gaussian, px",
    )
    width_px: Literal["auto"] | float = parameter(
        "auto", "width of the sieve, a Gaussian; auto: what leaves the least error", "px"
    )
    n_iterations: int = parameter(3, "number of iterations")
    sigma: Literal["auto"] | float = noise_parameter()

    def __post_init__(self) -> None:
        object.__setattr__(self, "psf", freeze_psf("richardson_lucy", self.psf, signed=False))
        if self.width_px != "auto":
            is_text = isinstance(self.width_px, str)
            rule = 'width_px must be "auto" or a number in [0, 32]'
            require(not is_text, "richardson_lucy", rule, self.width_px)
            check_number("richardson_lucy", "width_px", self.width_px, 0, 32)
        check_integer("richardson_lucy", "n_iterations", self.n_iterations, 1, 1000)
        check_sigma("richardson_lucy", self.sigma)


def denoise(images: Any, params: RichardsonLucy, *, optics: Optics | None = None) -> Any:
    """Deconvolve images on the CPU or on a card.

    Parameters
    ----------
    images
        Noisy images in grey levels, (n, h, w); NumPy or CuPy.
    params
        Parameters.
    optics
        Of the images, or None.

    Returns
    -------
    (n, h, w) float32
        Of the same library.
    """
    restore = partial(_restore, params=params)
    unit = partial(deconvolve, psf=params.psf, optics=optics, restore=restore)
    return denoise_at_unit_noise(images, params.sigma, unit)


def _restore(image: Any, transfer: Any, params: RichardsonLucy) -> Any:
    spectrum = sample_spectrum(image, transfer)
    if params.psf == "auto" and transfer is not None:
        balance = CORRECTION**2 * best_balance(spectrum)
        psf = library_psf(transfer, image)
        image = restoration_namespace(image).wiener(image, psf, balance, clip=False)
        spectrum = see_through_wiener(spectrum, balance)
    width_px = params.width_px
    if width_px == "auto":
        width_px = best_sieve_px(spectrum, params.n_iterations)
    darkest = image.min()
    # Less contrast than that of noise would be lost beside LEAST.
    contrast = min(float(image.max() - darkest), 1.0)
    if contrast == 0:
        return image
    positive = (image - darkest) / contrast + LEAST
    kernel = array_namespace(image).asarray(_blurred_psf(params.psf, width_px))
    estimate = restoration_namespace(image).richardson_lucy(
        positive, kernel, num_iter=params.n_iterations, clip=False
    )
    smooth = filter_namespace(image).gaussian_filter(estimate, width_px, truncate=TRUNCATE)
    return (smooth - LEAST) * contrast + darkest


def _blurred_psf(psf: Any, width_px: float) -> Any:
    """What the PSF becomes under the sieve, float32."""
    if isinstance(psf, tuple):
        blurred = scipy.signal.convolve(np.asarray(psf), gaussian_psf(width_px))
        return np.maximum(blurred, 0).astype(np.float32)
    own = 0.0 if isinstance(psf, str) else psf
    return gaussian_psf(float(np.hypot(own, width_px))).astype(np.float32)


METHOD = Method(
    params=RichardsonLucy,
    apply={"cpu": denoise, "cuda": denoise},
    takes_optics=True,
    corrects=corrects_ctf,
)
