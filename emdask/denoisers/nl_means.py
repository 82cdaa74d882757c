"""Non-local means: each pixel becomes the mean of pixels whose surroundings look alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from emdask.checks import check_integer, check_number, check_sigma, check_window
from emdask.kernels.scales import halve, has_coarser_scale, merge_scales
from emdask.kernels.unit_noise import denoise_at_unit_noise, image_by_image
from emdask.method import Method, noise_parameter, parameter

Floats = npt.NDArray[np.float32]

# Resolutions where the SNR is below LOW_SNR, and elsewhere.
LOW_SNR, N_SCALES_LOW, N_SCALES = 0.15, 4, 3
# Decay of the weights in sigma, at strength 1, for an SNR of H_SNR of the image whose third
# resolution is the coarsest; it grows by the fourth root of the SNR, within limits.
# benchmarks/filters.py has the sweep.
H = 0.6
H_SNR = 0.1
H_FACTORS = (0.85, 1.5)


@dataclass(frozen=True, kw_only=True)
class NlMeans:
    """Parameters of non-local means.

    Parameters
    ----------
    sigma
        Standard deviation of the white noise in grey levels, or "auto": estimated image by image.
    strength
        Decay of the weights of unlike patches (``h`` of scikit-image): 1 stands for 0.6 (s / 1.6)^¼
        sigma, but 0.5 to 0.9 sigma, where s is the SNR of the image, times 4 for each coarser
        scale.
    patch_px
        Side of the patches that are compared, px; odd.
    window_px
        Side of the square that is searched for them, px; odd. The work grows by its square.
    n_scales
        Resolutions, each half of the last; the coarser decide the low frequencies. 1 is the method
        as published; where noise prevails, only coarse patches tell what is alike. "auto": 3, or 4
        for images of SNR below 0.15.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    Buades, Coll and Morel, "A non-local algorithm for image denoising", CVPR 2005; by scikit-image
    (``fast_mode``: Darbon et al., ISBI 2008, 1331-1334). Scales are put together as by Facciolo,
    Pierazzo and Morel, SIAM Journal on Imaging Sciences 10 (2017) 1603-1626.

    Examples
    --------
    >>> NlMeans(patch_px=7).patch_px
    7
    >>> NlMeans(patch_px=4)
    Traceback (most recent call last):
    emdask.errors.ParameterError: nl_means: patch_px must be an odd integer in [1, 99]; got 4.
    """

    sigma: Literal["auto"] | float = noise_parameter()
    strength: float = parameter(1.0, "how much is removed, relative to what suits the noise")
    patch_px: int = parameter(9, "side of the patches", "px")
    window_px: int = parameter(15, "side of the square that is searched; odd", "px")
    n_scales: Literal["auto"] | int = parameter(
        "auto", "resolutions, each half of the last; the coarser guide the finer"
    )

    def __post_init__(self) -> None:
        check_sigma("nl_means", self.sigma)
        check_number("nl_means", "strength", self.strength, 0.01, 100)
        check_window("nl_means", "patch_px", self.patch_px, 99)
        check_window("nl_means", "window_px", self.window_px, 99)
        if self.n_scales != "auto":
            check_integer("nl_means", "n_scales", self.n_scales, 1, 5)


def denoise_cpu(images: npt.NDArray[Any], params: NlMeans) -> Floats:
    """Denoise images by non-local means on one CPU core.

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

    def denoise(image: Floats) -> Floats:
        snr = max(float(image.var(dtype="f8")) - 1, 0.0)
        n_scales = suitable_scales(image.shape, snr, params)
        h = params.strength * suitable_h(snr, n_scales)
        return _denoise(image, params, h, n_scales)

    denoise_all = image_by_image(denoise)
    return denoise_at_unit_noise(images, params.sigma, denoise_all)  # type: ignore[no-any-return]


def suitable_scales(shape: tuple[int, ...], snr: float, params: NlMeans) -> int:
    """Choose how many resolutions: as given or by the SNR, as far as two patches fit.

    Examples
    --------
    >>> suitable_scales((128, 128), 0.1, NlMeans()), suitable_scales((20, 20), 0.1, NlMeans())
    (4, 2)
    """
    wanted = N_SCALES_LOW if snr < LOW_SNR else N_SCALES
    if params.n_scales != "auto":
        wanted = params.n_scales
    n_scales = 1
    while n_scales < wanted and has_coarser_scale(shape, params.patch_px):
        n_scales, shape = n_scales + 1, tuple(-(-length // 2) for length in shape)
    return n_scales


def suitable_h(snr: float, n_scales: int) -> float:
    """Choose the decay of the weights, in sigma, by the SNR at the coarsest resolution.

    Examples
    --------
    >>> round(suitable_h(0.1, 3), 2), round(suitable_h(2.0, 3), 2)
    (0.6, 0.9)
    """
    relative = snr * 4.0 ** (n_scales - N_SCALES) / H_SNR
    return H * float(np.clip(relative**0.25, *H_FACTORS))


def _denoise(image: Floats, params: NlMeans, h: float, n_scales: int) -> Floats:
    """Denoise one image of unit noise: each scale by itself, the coarser win."""
    fine = _average(image, params, h)
    if n_scales == 1:
        return fine
    # Halving leaves the noise white and of unit deviation.
    return merge_scales(fine, _denoise(halve(image), params, h, n_scales - 1))  # type: ignore[no-any-return]


def _average(image: Floats, params: NlMeans, h: float) -> Floats:
    from skimage.restoration import denoise_nl_means

    fitting = min(params.patch_px, (min(image.shape) - 1) // 2 * 2 + 1)
    # Its sums over the whole image need float64.
    averaged = denoise_nl_means(
        image.astype(np.float64),
        patch_size=fitting,
        patch_distance=params.window_px // 2,
        h=h,
        sigma=1.0,
        fast_mode=True,
    )
    return averaged.astype(np.float32)  # type: ignore[no-any-return]


METHOD = Method(params=NlMeans, apply={"cpu": denoise_cpu})
