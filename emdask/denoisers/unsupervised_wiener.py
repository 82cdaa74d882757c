"""Wiener-Hunt deconvolution that learns from the image how much noise and detail it has."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from emdask.backend import array_namespace, restoration_namespace
from emdask.checks import check_integer
from emdask.kernels.ctf import Optics
from emdask.kernels.deconvolution import best_balance, deconvolve, library_psf, sample_spectrum
from emdask.kernels.psf import corrects_ctf, freeze_psf
from emdask.kernels.unit_noise import denoise_at_unit_noise
from emdask.method import Method, parameter

# Of the samples, those at the start that are left out of the mean.
BURN_IN = 1 / 2


@dataclass(frozen=True, kw_only=True)
class UnsupervisedWiener:
    """Parameters of ``unsupervised_wiener``, scikit-image's and on a card cuCIM's.

    Parameters
    ----------
    psf
        Point spread function: "auto" takes the CTF of each image where the stack knows its defocus,
        and else is "none", a point, with which the method only smooths. A number is the standard
        deviation of a Gaussian in px. From Python also an array (h, w), whose middle is its pixel
        (h // 2, w // 2) and which is scaled to a sum of 1.
    n_iterations
        Number of samples of the noise and the detail; the second half counts.
    seed
        Of the random numbers, the same for each image: an answer does not depend on the images
        beside it, nor on the device.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    Orieux, Giovannelli and Rodet, "Bayesian estimation of regularization and point spread function
    parameters for Wiener-Hunt deconvolution", Journal of the Optical Society of America A 27 (2010)
    1593-1607: a Gibbs sampler of the image, the precision of its noise and that of its Laplacian.

    The chain starts where the method ``wiener`` would end. The result is the Wiener estimate at the
    mean of both precisions, and not the library's mean of sampled images, which is the same but for
    the noise of the samples. Gradients and what is broad under a CTF are treated as by ``wiener``.

    Examples
    --------
    >>> UnsupervisedWiener(n_iterations=30).seed
    0
    """

    psf: Literal["auto", "none"] | float | tuple[tuple[float, ...], ...] = parameter(
        "auto",
        "point spread function; auto: the CTF where known; a number: width of a Gaussian, px",
    )
    n_iterations: int = parameter(30, "number of samples, of which the second half counts")
    seed: int = parameter(0, "of the random numbers, the same for each image")

    def __post_init__(self) -> None:
        object.__setattr__(self, "psf", freeze_psf("unsupervised_wiener", self.psf))
        check_integer("unsupervised_wiener", "n_iterations", self.n_iterations, 4, 10000)
        check_integer("unsupervised_wiener", "seed", self.seed, 0)


def denoise(images: Any, params: UnsupervisedWiener, *, optics: Optics | None = None) -> Any:
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
    return denoise_at_unit_noise(images, "auto", unit)


def _restore(image: Any, transfer: Any, params: UnsupervisedWiener) -> Any:
    start = best_balance(sample_spectrum(image, transfer))
    psf = library_psf(transfer, image)
    # The chain starts where both precisions are 1: with a PSF of this scale, at that balance.
    samples = _sample_precisions(image, psf / np.sqrt(start), params)
    balance = start * samples["prior"] / samples["noise"]
    restored = restoration_namespace(image).wiener(image, psf, balance, clip=False)
    return restored.astype(np.float32)


def _sample_precisions(image: Any, psf: Any, params: UnsupervisedWiener) -> dict[str, float]:
    """Mean of the precisions "noise" and "prior" that the library samples."""
    settings = {
        "burnin": params.n_iterations,
        "min_num_iter": params.n_iterations,
        "max_num_iter": params.n_iterations,
    }
    _, chains = restoration_namespace(image).unsupervised_wiener(
        image.astype(np.float64),
        psf,
        user_params=settings,
        clip=False,
        rng=_draws(image, params.seed),
    )
    counted = slice(1 + int(BURN_IN * params.n_iterations), None)
    return {
        name: float(np.mean([float(value) for value in chain[counted]]))
        for name, chain in chains.items()
    }


def _draws(image: Any, seed: int) -> Any:
    """Generator of the image's library; on a card it draws on the host, so that both agree."""
    if array_namespace(image) is np:
        return np.random.default_rng(seed)
    from emdask.kernels.draws_cuda import host_draws

    return host_draws(seed)


METHOD = Method(
    params=UnsupervisedWiener,
    apply={"cpu": denoise, "cuda": denoise},
    takes_optics=True,
    corrects=corrects_ctf,
)
