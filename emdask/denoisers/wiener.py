"""Wiener deconvolution: what the PSF leaves is amplified, as far as the noise lets it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.backend import restoration_namespace, sum_batches
from emdask.blocks_cuda import batch_size
from emdask.checks import check_choice, check_number, check_sigma
from emdask.kernels.ctf import Optics
from emdask.kernels.deconvolution import best_balance, deconvolve, library_psf, sample_spectrum
from emdask.kernels.psf import corrects_ctf, freeze_psf
from emdask.kernels.spectral_snr import (
    SpectrumSums,
    add_sums,
    filter_images,
    learn_spectrum,
    sum_spectrum,
)
from emdask.kernels.unit_noise import denoise_at_unit_noise
from emdask.method import Learn, Method, noise_parameter, parameter


@dataclass(frozen=True, kw_only=True)
class Wiener:
    """Parameters of Wiener deconvolution.

    Parameters
    ----------
    prior
        What is known of the signal. "image": that it is smooth, and how smooth from each image
        alone; Wiener-Hunt deconvolution, scikit-image's and on a card cuCIM's ``wiener``. "stack":
        the power at each frequency that the signal of all images has, learnt in one pass. It needs
        many images of like things, and is better by far where noise prevails.
    psf
        Point spread function: "auto" takes the CTF of each image where the stack knows its defocus,
        and else is "none", a point, with which the method only smooths. A number is the standard
        deviation of a Gaussian in px. From Python also an array (h, w), whose middle is its pixel
        (h // 2, w // 2) and which is scaled to a sum of 1.
    sigma
        Standard deviation of the white noise in grey levels, or "auto": estimated image by image.
    strength
        Above 1 more is smoothed, below 1 less: the weight of the Laplacian is that which leaves the
        least error, or the power of the noise what it is, times the square of this.

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

    With ``prior="stack"`` the filter is ``H* S / (|H|² S + N)``, with the power S of the signal,
    the same in all directions, and N of the noise, white, which with ``sigma="auto"`` is measured
    in the images' corners. S is the least-squares solution of ``power = |H|² S + N`` in all images,
    each with its own H. An image goes on as itself beyond its borders, which for particles leaves
    less error. A model is a dataset of ``signal_power (ring)`` and ``noise_power (ring)`` over
    ``frequency (ring)``, in units of the noise; it serves other stacks of images of the same size,
    with the same ``psf``.

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

    prior: Literal["image", "stack"] = parameter(
        "image", "take the signal for smooth, or learn its power at each frequency from the stack"
    )
    psf: Literal["auto", "none"] | float | tuple[tuple[float, ...], ...] = parameter(
        "auto",
        "point spread function; auto: the CTF where known; a number: width of a Gaussian, px",
    )
    sigma: Literal["auto"] | float = noise_parameter()
    strength: float = parameter(1.0, "how strongly to smooth; 1: what leaves the least error")

    def __post_init__(self) -> None:
        check_choice("wiener", "prior", self.prior, ("image", "stack"))
        object.__setattr__(self, "psf", freeze_psf("wiener", self.psf))
        check_sigma("wiener", self.sigma)
        check_number("wiener", "strength", self.strength, 0.01, 100)


# --- Learning -------------------------------------------------------------------------------------


def add_up(
    images: npt.NDArray[Any],
    image_ids: npt.NDArray[np.integer[Any]],
    params: Wiener,
    n_images: int,
    *,
    optics: Optics | None = None,
    device: str = "cpu",
) -> SpectrumSums:
    """Add up the power of a block of images.

    Parameters
    ----------
    images
        Noisy images in grey levels, (n, h, w).
    image_ids
        Their numbers; they do not matter.
    params
        Parameters.
    n_images
        Size of the stack; it does not matter.
    optics
        Of the images, or None.
    device
        "cpu" or "cuda".

    Returns
    -------
    SpectrumSums
        On the host.
    """
    height, width = images.shape[1:]
    return sum_batches(
        partial(sum_spectrum, sigma=params.sigma, psf=params.psf),
        images,
        along={"optics": optics},
        combine=add_sums,
        device=device,
        n_images=batch_size((height, width)),
        what=f"adding up the power of images of {width} x {height} px",
    )


def finish(sums: SpectrumSums, params: Wiener) -> xr.Dataset:
    """Return the spectrum of the stack: see `Wiener`."""
    frequency, signal, noise = learn_spectrum(sums)
    units = {"units": "variance of the noise"}
    power = {
        "signal_power": ("ring", signal, {"long_name": "power of the signal", **units}),
        "noise_power": ("ring", noise, {"long_name": "power of the noise", **units}),
    }
    of_frequency = {"long_name": "spatial frequency", "units": "cycles/px"}
    model = xr.Dataset(power, {"frequency": ("ring", frequency, of_frequency)})
    height, width = sums.shape
    square = {"box_px": width} if height == width else {}
    return model.assign_attrs(n_images=sums.n_images, **square)


def learns_from_stack(params: Wiener) -> bool:
    """Whether the power of the signal is that of the stack."""
    return params.prior == "stack"


# --- Denoising ------------------------------------------------------------------------------------


def denoise(
    images: Any, params: Wiener, model: xr.Dataset | None = None, *, optics: Optics | None = None
) -> Any:
    """Deconvolve images on the CPU or on a card.

    Parameters
    ----------
    images
        Noisy images in grey levels, (n, h, w); NumPy or CuPy.
    params
        Parameters.
    model
        What `finish` returned, for ``prior="stack"``; None for "image".
    optics
        Of the images, or None.

    Returns
    -------
    (n, h, w) float32
        Of the same library.
    """
    if model is not None:
        noise = params.strength**2 * model.noise_power.values
        spectrum = model.frequency.values, model.signal_power.values, noise
        return filter_images(images, params.sigma, params.psf, optics, spectrum)
    restore = partial(_restore, strength=params.strength)
    unit = partial(deconvolve, psf=params.psf, optics=optics, restore=restore)
    return denoise_at_unit_noise(images, params.sigma, unit)


def _restore(image: Any, transfer: Any, strength: float) -> Any:
    balance = strength**2 * best_balance(sample_spectrum(image, transfer))
    psf = library_psf(transfer, image)
    restored = restoration_namespace(image).wiener(image, psf, balance, clip=False)
    return restored.astype(np.float32)


METHOD = Method(
    params=Wiener,
    apply={"cpu": denoise, "cuda": denoise},
    learn=Learn(
        chunk={"cpu": add_up, "cuda": partial(add_up, device="cuda")},
        combine=add_sums,
        finalize=finish,
        wanted=learns_from_stack,
        shared=("psf",),
    ),
    takes_optics=True,
    corrects=corrects_ctf,
)
