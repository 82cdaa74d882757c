"""Non-local means: each pixel becomes the mean of pixels whose surroundings look alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from emdask.checks import check_integer, check_number, check_sigma, check_window
from emdask.kernels.scales import halve, has_coarser_scale, merge_scales
from emdask.kernels.unit_noise import denoise_at_unit_noise, image_by_image
from emdask.method import Method, parameter

Floats = npt.NDArray[np.float32]

# Scale of the distances of patches in sigma, at strength 1. benchmarks/filters.py has the sweep.
H = 0.6


@dataclass(frozen=True, kw_only=True)
class NlMeans:
    """Parameters of non-local means.

    Parameters
    ----------
    sigma
        Standard deviation of the white noise in grey levels, or "auto": estimated image by image.
    strength
        Decay of the weights of unlike patches, in 0.6 sigma (``h`` of scikit-image).
    patch_px
        Side of the patches that are compared, px; odd.
    window_px
        Side of the square that is searched for them, px; odd. The work grows by its square.
    n_scales
        Resolutions, each half of the last; the coarser decide the low frequencies. 1 is the method
        as published; where noise prevails, only coarse patches tell what is alike.

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

    sigma: Literal["auto"] | float = parameter(
        "auto", "standard deviation of the noise; auto: estimated image by image", "grey levels"
    )
    strength: float = parameter(1.0, "how much is removed, relative to what suits the noise")
    patch_px: int = parameter(11, "side of the patches", "px")
    window_px: int = parameter(15, "side of the square that is searched; odd", "px")
    n_scales: int = parameter(3, "resolutions, each half of the last; the coarser guide the finer")

    def __post_init__(self) -> None:
        check_sigma("nl_means", self.sigma)
        check_number("nl_means", "strength", self.strength, 0.01, 100)
        check_window("nl_means", "patch_px", self.patch_px, 99)
        check_window("nl_means", "window_px", self.window_px, 99)
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
    denoise = image_by_image(lambda image: _denoise(image, params, params.n_scales))
    return denoise_at_unit_noise(images, params.sigma, denoise)  # type: ignore[no-any-return]


def _denoise(image: Floats, params: NlMeans, n_scales: int) -> Floats:
    """Denoise one image of unit noise: each scale by itself, the coarser win."""
    fine = _average(image, params)
    if n_scales == 1 or not has_coarser_scale(image.shape, params.patch_px):
        return fine
    # Halving leaves the noise white and of unit deviation.
    coarse = _denoise(halve(image), params, n_scales - 1)
    return merge_scales(fine, coarse)  # type: ignore[no-any-return]


def _average(image: Floats, params: NlMeans) -> Floats:
    from skimage.restoration import denoise_nl_means

    fitting = min(params.patch_px, (min(image.shape) - 1) // 2 * 2 + 1)
    # Its sums over the whole image need float64.
    averaged = denoise_nl_means(
        image.astype(np.float64),
        patch_size=fitting,
        patch_distance=params.window_px // 2,
        h=params.strength * H,
        sigma=1.0,
        fast_mode=True,
    )
    return averaged.astype(np.float32)  # type: ignore[no-any-return]


METHOD = Method(params=NlMeans, apply={"cpu": denoise_cpu})
