"""Profiles, transforms of blocks and geometry of BM3D, shared by the CPU and CUDA twins."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace

__all__ = [
    "BLOCK",
    "FAR",
    "FAST",
    "HIGH_NOISE",
    "NEVER_SIMILAR",
    "NORMAL",
    "STEP",
    "WIDEST_WINDOW",
    "Layout",
    "Profile",
    "blend_window",
    "cosine_matrix",
    "crop_images",
    "lay_out",
    "pad_images",
    "search_shifts",
    "spread_weights",
    "wavelet_matrix",
]

BLOCK = 8
STEP = 3
WIDEST_WINDOW = 99
# Grey level outside of the image, in noise units: no block that reaches there is ever near.
FAR = np.float32(1e15)
# Sum of squared differences of blocks of which one reaches outside: at least this.
NEVER_SIMILAR = 1e29
# Taps of the biorthogonal spline wavelet 1.5 of Cohen, Daubechies and Feauveau, times 128 sqrt(2).
LOW_TAPS = (3, -3, -22, 22, 128, 128, 22, -22, -3, 3)


class Profile(NamedTuple):
    """Settings of BM3D; lengths in pixels, grey levels and distances in units of the noise.

    Parameters
    ----------
    window_px
        Side of the square in which similar blocks are searched; odd, up to `WIDEST_WINDOW`.
    hard_group, wiener_group
        Most blocks in a group in either step; powers of two.
    threshold
        Coefficients of the first step up to this size are set to zero.
    hard_distance, wiener_distance
        Mean squared difference per pixel up to which a block is similar.
    window_beta
        Shape of the Kaiser window by which overlapping blocks are blended.
    n_scales
        1: the two steps of the paper. More: the first estimate comes from the image at half the
        resolution, where the signal stands out more, and so on down.
    """

    window_px: int = 39
    hard_group: int = 16
    wiener_group: int = 32
    threshold: float = 2.7
    hard_distance: float = math.inf
    wiener_distance: float = 0.6
    window_beta: float = 2.0
    n_scales: int = 1


NORMAL = Profile()
FAST = Profile(window_px=19, hard_group=8, wiener_group=16)
# Tuned on simulated particles at SNR 0.02-0.4; see benchmarks/results/bm3d.md.
HIGH_NOISE = Profile(window_px=31, hard_group=32, window_beta=4.0, n_scales=3)


class Layout(NamedTuple):
    """Where things lie in a padded image; all in pixels but for the counts.

    Parameters
    ----------
    height, width
        Of the padded image; rows and columns to spare may lie below and on the right.
    margin
        Of far grey levels on each side.
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
    degrees and with transposition. The margin is a multiple of `STEP`.

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


def pad_images(images: Any, layout: Layout) -> Any:
    """Mirror the border and surround it with far grey levels: (n, h, w) -> (n, height, width)."""
    xp = array_namespace(images)
    borders = [(0, 0), *((b, b) for b in layout.border)]
    mirrored = xp.pad(images, borders, mode="symmetric")
    padded = xp.full((len(images), layout.height, layout.width), FAR)
    padded[:, *_inside(layout.margin, layout.margin, mirrored.shape[1:])] = mirrored
    return padded


def crop_images(padded: Any, layout: Layout, shape: tuple[int, int]) -> Any:
    """Cut the images out again: (n, height, width) -> (n, *shape)."""
    top, left = (layout.margin + b for b in layout.border)
    return padded[:, *_inside(top, left, shape)]


def _inside(top: int, left: int, shape: tuple[int, int]) -> tuple[slice, slice]:
    return slice(top, top + shape[0]), slice(left, left + shape[1])


@functools.cache
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


@functools.cache
def blend_window(beta: float) -> npt.NDArray[np.float32]:
    """Kaiser window along one side of a block; (BLOCK,)."""
    return np.kaiser(BLOCK, beta).astype(np.float32)


def spread_weights(weights: Any, window: npt.NDArray[np.float32]) -> Any:
    """Weight of each pixel from the weights of the blocks, noted at their top left corners.

    Images are (..., h, w).
    """
    height, width = weights.shape[-2:]
    xp = array_namespace(weights)
    down = xp.zeros_like(weights)
    for k, factor in enumerate(window):
        down[..., k:, :] += factor * weights[..., : height - k, :]
    result = xp.zeros_like(weights)
    for k, factor in enumerate(window):
        result[..., k:] += factor * down[..., : width - k]
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
