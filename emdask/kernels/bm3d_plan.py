"""Profiles, transforms and geometry of BM3D: plain NumPy, shared by the CPU and CUDA twins."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "BLOCK",
    "FAR",
    "NORMAL",
    "STEP",
    "Layout",
    "Profile",
    "blend_window",
    "cosine_matrix",
    "crop_image",
    "lay_out",
    "pad_image",
    "search_shifts",
    "spread_weights",
    "wavelet_matrix",
]

BLOCK = 8
STEP = 3
# Grey level outside of the image, in noise units: no block that reaches there is ever near.
FAR = np.float32(1e15)
# Taps of the biorthogonal spline wavelet 1.5 of Cohen, Daubechies and Feauveau, times 128 sqrt(2).
LOW_TAPS = (3, -3, -22, 22, 128, 128, 22, -22, -3, 3)


class Profile(NamedTuple):
    """Settings of BM3D; lengths in pixels, grey levels and distances in units of the noise.

    Parameters
    ----------
    window_px
        Side of the square in which similar blocks are searched.
    hard_group, wiener_group
        Most blocks in a group in either step; powers of two.
    threshold
        Coefficients of the first step up to this size are set to zero.
    hard_distance, wiener_distance
        Mean squared difference per pixel up to which a block is similar.
    window_beta
        Shape of the Kaiser window by which overlapping blocks are blended.
    """

    window_px: int = 39
    hard_group: int = 16
    wiener_group: int = 32
    threshold: float = 2.7
    hard_distance: float = math.inf
    wiener_distance: float = 0.6
    window_beta: float = 2.0


NORMAL = Profile()


class Layout(NamedTuple):
    """Where things lie in a padded image; all in pixels but for the counts.

    Parameters
    ----------
    height, width
        Of the padded image.
    margin
        Of far grey levels on each side, a multiple of `STEP`.
    border
        Rows and columns mirrored on each side, within the margin.
    n_down, n_across
        Reference blocks, `STEP` apart.
    """

    height: int
    width: int
    margin: int
    border: tuple[int, int]
    n_down: int
    n_across: int


def lay_out(shape: tuple[int, int], window_px: int) -> Layout:
    """Plan the padded image.

    A few mirrored rows and columns on both sides alike let the reference grid fit the image
    exactly, so that it looks the same from all sides and the result commutes with rotations by 90
    degrees and with transposition.

    Examples
    --------
    >>> lay_out((130, 128), 39).border
    (2, 0)
    """
    border = tuple(_border(n) for n in shape)
    inner = [n + 2 * b for n, b in zip(shape, border, strict=True)]
    margin = -(-(window_px // 2) // STEP) * STEP
    n_down, n_across = ((n - BLOCK) // STEP + 1 for n in inner)
    return Layout(
        inner[0] + 2 * margin,
        inner[1] + 2 * margin,
        margin,
        (border[0], border[1]),
        n_down,
        n_across,
    )


def _border(n: int) -> int:
    """Fewest rows to mirror on each side so that blocks fit, the last one flush with the end."""
    border = 0
    while n + 2 * border < BLOCK or (n + 2 * border - BLOCK) % STEP:
        border += 1
    return border


def pad_image(image: npt.NDArray[np.float32], layout: Layout) -> npt.NDArray[np.float32]:
    """Mirror the border and surround it with far grey levels: (h, w) -> (height, width)."""
    mirrored = np.pad(image, [(b, b) for b in layout.border], mode="symmetric")
    return np.pad(mirrored, layout.margin, constant_values=FAR)


def crop_image(padded: npt.NDArray[Any], layout: Layout) -> npt.NDArray[Any]:
    """Cut the image out again: (height, width) -> (h, w)."""
    top, left = (layout.margin + b for b in layout.border)
    return padded[top : layout.height - top, left : layout.width - left]


def search_shifts(window_px: int) -> npt.NDArray[np.int64]:
    """Shifts (dy, dx) of a search window, nearest first; (n, 2).

    Examples
    --------
    >>> search_shifts(3)[:3].tolist()
    [[0, 0], [-1, 0], [0, -1]]
    """
    axis = np.arange(window_px) - window_px // 2
    dy, dx = (grid.ravel() for grid in np.meshgrid(axis, axis, indexing="ij"))
    order = np.lexsort((dx, dy, dy**2 + dx**2))
    return np.stack([dy[order], dx[order]], axis=1).astype(np.int64)


def blend_window(beta: float) -> npt.NDArray[np.float32]:
    """Kaiser window along one side of a block; (BLOCK,)."""
    return np.kaiser(BLOCK, beta).astype(np.float32)


def spread_weights(
    weights: npt.NDArray[np.float32], window: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Weight of each pixel from the weights of the blocks, noted at their top left corners."""
    down = np.zeros_like(weights)
    for k, factor in enumerate(window):
        down[k:] += factor * weights[: weights.shape[0] - k]
    result = np.zeros_like(weights)
    for k, factor in enumerate(window):
        result[:, k:] += factor * down[:, : weights.shape[1] - k]
    return result


def cosine_matrix() -> npt.NDArray[np.float64]:
    """Orthonormal discrete cosine transform, type II; (BLOCK, BLOCK), one basis function a row.

    Examples
    --------
    >>> matrix = cosine_matrix()
    >>> bool(np.allclose(matrix @ matrix.T, np.eye(8)))
    True
    """
    order = np.arange(BLOCK)[:, None]
    place = np.arange(BLOCK)[None, :]
    matrix = np.cos(np.pi * order * (2 * place + 1) / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    matrix[0] = math.sqrt(1 / BLOCK)
    return matrix


def wavelet_matrix() -> npt.NDArray[np.float64]:
    """Periodic biorthogonal wavelet transform 1.5, rows scaled to unit norm; (BLOCK, BLOCK).

    Unit rows give each coefficient of white noise the standard deviation of the noise.
    """
    result = np.eye(BLOCK)
    n = BLOCK
    while n > 1:
        level = np.zeros((n, n))
        for i in range(n // 2):
            for k, tap in enumerate(LOW_TAPS):
                level[i, (2 * i + k - 4) % n] += tap / 128 / math.sqrt(2)
            level[n // 2 + i, 2 * i] = -math.sqrt(0.5)
            level[n // 2 + i, 2 * i + 1] = math.sqrt(0.5)
        result[:n] = level @ result[:n]
        n //= 2
    scaled: npt.NDArray[np.float64] = result / np.linalg.norm(result, axis=1, keepdims=True)
    return scaled
