"""Mean filter: each pixel becomes the mean of a square around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from emdask.backend import array_namespace, filter_namespace
from emdask.checks import check_sigma, check_window
from emdask.kernels.reductions import mean_of_pixels
from emdask.kernels.smoothing import best_kernels
from emdask.kernels.unit_noise import denoise_at_unit_noise
from emdask.method import Method, noise_parameter, parameter

SIZES_PX = (*range(1, 20, 2), *range(21, 40, 4), *range(41, 100, 8))


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Parameters of the mean filter.

    Parameters
    ----------
    size_px
        Side of the square, px; odd. "auto": image by image, that of least error as far as can be
        told without the clean image.
    sigma
        Standard deviation of the white noise in grey levels, or "auto": estimated image by image.
        A given ``size_px`` makes no use of it.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    The side is that of the least unbiased estimate of the risk; see `Gaussian`.

    Examples
    --------
    >>> Mean(size_px=5).size_px
    5
    >>> Mean(size_px=4)
    Traceback (most recent call last):
    emdask.errors.ParameterError: mean: size_px must be "auto" or an odd integer in [1, 999]; got 4.
    """

    size_px: Literal["auto"] | int = parameter(
        "auto", "side of the window; odd; auto: fitted to each image", "px"
    )
    sigma: Literal["auto"] | float = noise_parameter()

    def __post_init__(self) -> None:
        check_window("mean", "size_px", self.size_px, 999, auto=True)
        check_sigma("mean", self.sigma)


def denoise(images: Any, params: Mean) -> Any:
    """Smooth images; NumPy or CuPy.

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
    if params.size_px == "auto":
        return denoise_at_unit_noise(images, params.sigma, _smooth_best)
    means = mean_of_pixels(images)[:, None, None]
    return (_smooth(images - means, [params.size_px] * len(images)) + means).astype(np.float32)


def _smooth_best(images: Any) -> Any:
    chosen = best_kernels(images, [np.full((size + 1) // 2, 1 / size) for size in SIZES_PX])
    return _smooth(images, np.asarray(SIZES_PX)[chosen])


def _smooth(images: Any, sizes_px: Any) -> Any:
    result = array_namespace(images).empty(images.shape, images.dtype)
    for i, size_px in enumerate(sizes_px):
        result[i] = filter_namespace(images).uniform_filter(images[i], int(size_px))
    return result


METHOD = Method(params=Mean, apply={"cpu": denoise, "cuda": denoise})
