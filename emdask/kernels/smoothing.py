"""How wide to smooth: the risk of linear filters, estimated without the clean image."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace
from emdask.kernels.scales import to_frequencies

__all__ = ["best_gaussian_widths", "best_kernels", "gaussian_kernel", "gaussian_noise"]

Floats = npt.NDArray[np.float64]

# As `scipy.ndimage.gaussian_filter` cuts its kernel.
TRUNCATE = 4.0
# Four an octave: half a step from the best, PSNR falls by less than 0.02 dB.
WIDTHS_PX = (0.0, *(0.35 * 2 ** (step / 4) for step in range(29)))


def gaussian_kernel(width_px: float) -> Floats:
    """Return the right half of the kernel of `scipy.ndimage.gaussian_filter`, from its middle on.

    Examples
    --------
    >>> gaussian_kernel(0.5).round(2)
    array([0.79, 0.11, 0.  ])
    """
    radius = int(TRUNCATE * width_px + 0.5)
    half = np.exp(-0.5 * (np.arange(radius + 1) / max(width_px, 1e-9)) ** 2)
    return np.asarray(half / (2 * half.sum() - half[0]))


def gaussian_noise(width_px: float) -> float:
    """Return the deviation that white noise of unit deviation has after a Gaussian blur.

    Examples
    --------
    >>> round(gaussian_noise(2.0), 3)
    0.141
    """
    half = gaussian_kernel(width_px)
    return float(2 * (half**2).sum() - half[0] ** 2)


def best_gaussian_widths(images: Any) -> Floats:
    """Return for each image the width of the Gaussian that denoises it best, estimated.

    Parameters
    ----------
    images
        Images of mean 0 and unit noise, (n, h, w).

    Returns
    -------
    (n,) float64
        Standard deviations in px; 0 leaves the image as it is. NumPy.

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(size=(1, 64, 64)).astype("f4")
    >>> bool(best_gaussian_widths(noise)[0] > 5)
    True
    """
    chosen = best_kernels(images, [gaussian_kernel(width) for width in WIDTHS_PX])
    return np.asarray(WIDTHS_PX)[chosen]


def best_kernels(images: Any, kernels: list[Floats]) -> npt.NDArray[np.int64]:
    """Choose for each image the kernel of least estimated risk.

    Parameters
    ----------
    images
        Images of mean 0 and unit noise, (n, h, w).
    kernels
        Right halves of symmetric kernels, from their middle on; each is used along both axes, and
        the image continues as its mirror image.

    Returns
    -------
    (n,) int64
        Indices of kernels. NumPy.

    Notes
    -----
    Stein's unbiased estimate of the risk, which for a linear filter H is ||y - H y||² / N - 1 + 2
    trace(H) / N: Stein, "Estimation of the mean of a multivariate normal distribution", Annals of
    Statistics 9 (1981) 1135-1151. Cosine transforms turn such filters into products, so that all
    kernels together cost one transform and four products of matrices.

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(size=(1, 64, 64)).astype("f4")
    >>> best_kernels(noise, [np.array([1.0]), np.array([1.0, 1.0]) / 3])
    array([1])
    """
    xp = array_namespace(images)
    down, across = (_responses(kernels, length) for length in images.shape[1:])
    traces = xp.asarray(down.mean(axis=1) * across.mean(axis=1))
    down, across = xp.asarray(down.T.astype(np.float32)), xp.asarray(across.T.astype(np.float32))
    risks = xp.empty((len(images), len(kernels)))
    # One by one: the product of many matrices at once may round otherwise for another number.
    for i, power in enumerate(to_frequencies(images) ** 2):
        kept = ((power @ across) * down).sum(axis=0, dtype="f8")
        squared = ((power @ across**2) * down**2).sum(axis=0, dtype="f8")
        risks[i] = (squared - 2 * kept) / power.size + 2 * traces
    chosen = risks.argmin(axis=1)
    return np.asarray(chosen if xp is np else chosen.get())


def _responses(kernels: list[Floats], length: int) -> Floats:
    """By what each kernel multiplies each cosine of a line of that length: (kernels, length)."""
    longest = max(len(kernel) for kernel in kernels)
    halves = np.zeros((len(kernels), longest))
    for half, kernel in zip(halves, kernels, strict=True):
        half[: len(kernel)] = kernel
    halves[:, 1:] *= 2
    angles = np.outer(np.arange(longest), np.arange(length)) * (np.pi / length)
    return np.asarray(halves @ np.cos(angles))
