"""Median filter: each pixel becomes the median of a square around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from emdask.backend import array_namespace, filter_namespace
from emdask.checks import check_sigma, check_window
from emdask.kernels.unit_noise import denoise_at_unit_noise
from emdask.method import Method, noise_parameter, parameter

SIZES_PX = (1, 3, 5, 7, 11, 15, 21)
# Of large images, the side is fitted to 4 x 4 tiles of this edge.
TILE_PX = 128
N_TILES = 4
DITHER = 1e-3


@dataclass(frozen=True, kw_only=True)
class Median:
    """Parameters of the median filter.

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
    The side is that of the least unbiased estimate of the risk, ||y - m||² / N - 1 + 2 d / N for
    unit noise (Stein, Annals of Statistics 9 (1981) 1135-1151), where the divergence d of a median
    is the number of pixels that are their own median.

    Examples
    --------
    >>> Median(size_px=5).size_px
    5
    >>> Median(size_px=0)
    Traceback (most recent call last):
    emdask.errors.ParameterError: median: size_px must be "auto" or an odd integer in [1, 49]; ...
    """

    size_px: Literal["auto"] | int = parameter(
        "auto", "side of the window; odd; auto: fitted to each image", "px"
    )
    sigma: Literal["auto"] | float = noise_parameter()

    def __post_init__(self) -> None:
        check_window("median", "size_px", self.size_px, 49, auto=True)
        check_sigma("median", self.sigma)


def denoise(images: Any, params: Median) -> Any:
    """Take medians; NumPy or CuPy.

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
        return denoise_at_unit_noise(images, params.sigma, _take_best)
    result = array_namespace(images).empty(images.shape, np.float32)
    for i, image in enumerate(images):
        result[i] = _take(image[None].astype(np.float32), params.size_px)[0]
    return result


def best_size(image: Any) -> int:
    """Choose the side of least estimated risk, from the smallest on until the risk rises.

    Parameters
    ----------
    image
        Of mean 0 and unit noise, (h, w).

    Returns
    -------
    int
        In px.

    Examples
    --------
    >>> best_size(np.random.default_rng(0).normal(size=(64, 64))) > 9
    True
    """
    xp = array_namespace(image)
    tiles = _tiles(image)
    # Counts of electrons tie; a pixel that ties is its own median as often as the others are.
    tiles = tiles + xp.asarray(DITHER * np.random.default_rng(0).random(tiles.shape), np.float32)
    risks: list[float] = []
    for size_px in SIZES_PX:
        medians = _take(tiles, size_px)
        risks.append(float(((tiles - medians) ** 2 + 2 * (tiles == medians)).mean(dtype="f8")))
        if len(risks) > 1 and risks[-1] > risks[-2]:
            break
    return SIZES_PX[int(np.argmin(risks))]


def _tiles(image: Any) -> Any:
    """The whole image, or of a large one parts that lie apart; (n, h, w)."""
    if image.size <= (N_TILES * TILE_PX) ** 2:
        return image[None]
    height, width = (min(TILE_PX, length) for length in image.shape)
    corners = [
        np.unique(np.linspace(0, length - edge, N_TILES).astype(int))
        for length, edge in zip(image.shape, (height, width), strict=True)
    ]
    parts = [image[y : y + height, x : x + width] for y in corners[0] for x in corners[1]]
    return array_namespace(image).stack(parts)


def _take_best(images: Any) -> Any:
    result = array_namespace(images).empty(images.shape, np.float32)
    for i, image in enumerate(images):
        result[i] = _take(image[None], best_size(image))[0]
    return result


def _take(images: Any, size_px: int) -> Any:
    return filter_namespace(images).median_filter(images, (1, size_px, size_px))


METHOD = Method(params=Median, apply={"cpu": denoise, "cuda": denoise})
