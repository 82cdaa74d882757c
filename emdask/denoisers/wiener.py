"""Wiener-Hunt deconvolution: what the PSF leaves is amplified, as far as the noise lets it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from emdask.backend import restoration_namespace
from emdask.checks import check_number, check_sigma
from emdask.kernels.ctf import Optics
from emdask.kernels.deconvolution import best_balance, deconvolve, library_psf, sample_spectrum
from emdask.kernels.psf import freeze_psf
from emdask.kernels.unit_noise import denoise_at_unit_noise
from emdask.method import Method, noise_parameter, parameter


@dataclass(frozen=True, kw_only=True)
class Wiener:
    """Parameters of Wiener-Hunt deconvolution, scikit-image's and on a card cuCIM's ``wiener``.

    Parameters
    ----------
    psf
        Point spread function: "auto" takes the CTF of each image where the stack knows its defocus,
        and else is "none", a point, with which the method only smooths. A number is the standard
        deviation of a Gaussian in px. From Python also an array (h, w), whose middle is its pixel
        (h // 2, w // 2) and which is scaled to a sum of 1.
    sigma
        Standard deviation of the white noise in grey levels, or "auto": estimated image by image.
    strength
        Above 1 more is smoothed, below 1 less: the weight of the Laplacian is that which leaves the
        least error, times the square of this.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    Hunt, "A matrix theory proof of the discrete convolution theorem", IEEE Transactions on Audio
    and Electroacoustics 19 (1971) 285-288. The filter is ``H* / (|H|² + balance |L|²)`` with
    the Laplacian L; the balance is chosen image by image by Stein's unbiased estimate of the error.
    A CTF is thus corrected in phase and amplitude. The image keeps its mean, and its borders are
    mirrored.

    With a CTF, what is broadest is mostly ice, carbon and illumination, which the CTF has not made
    as weak as a particle's. So what is linear along rows and columns is kept as it is, and below
    the first maximum of the CTF nothing is amplified more than tenfold. Broad curvature cannot be
    told from a particle and is amplified.

    Examples
    --------
    >>> Wiener(psf=1.5).psf
    1.5
    >>> Wiener(psf="gauss")
    Traceback (most recent call last):
    emdask.errors.ParameterError: wiener: psf must be "auto", "none", a standard deviation in px...
    """

    psf: Literal["auto", "none"] | float | tuple[tuple[float, ...], ...] = parameter(
        "auto",
        "point spread function; auto: the CTF where known; a number: width of a Gaussian, px",
    )
    sigma: Literal["auto"] | float = noise_parameter()
    strength: float = parameter(1.0, "how strongly to smooth; 1: what leaves the least error")

    def __post_init__(self) -> None:
        object.__setattr__(self, "psf", freeze_psf("wiener", self.psf))
        check_sigma("wiener", self.sigma)
        check_number("wiener", "strength", self.strength, 0.01, 100)


def denoise(images: Any, params: Wiener, *, optics: Optics | None = None) -> Any:
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
    restore = partial(_restore, strength=params.strength)
    unit = partial(deconvolve, psf=params.psf, optics=optics, restore=restore)
    return denoise_at_unit_noise(images, params.sigma, unit)


def _restore(image: Any, transfer: Any, strength: float) -> Any:
    balance = strength**2 * best_balance(sample_spectrum(image, transfer))
    psf = library_psf(transfer, image)
    restored = restoration_namespace(image).wiener(image, psf, balance, clip=False)
    return restored.astype(np.float32)


METHOD = Method(params=Wiener, apply={"cpu": denoise, "cuda": denoise}, takes_optics=True)
