"""BM3D on one CPU core: the compiled twin of `bm3d_cuda`, with functions of the same names.

Images are denoised one by one. Their loops are in `matching_cpu` and `collaborative_cpu`.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
from numba.core import event

from emdask.kernels.bm3d import Rows, Twin, denoise_batch
from emdask.kernels.bm3d_plan import (
    BLOCK,
    FAR,
    NORMAL,
    STEP,
    Layout,
    Profile,
    lay_out,
    pad_images,
    search_shifts,
    spread_weights,
)
from emdask.kernels.collaborative_cpu import PIXELS, shrink_hard, shrink_wiener
from emdask.kernels.matching_cpu import TILE_ROWS, match_band, match_scratch, split_columns

__all__ = [
    "TWIN",
    "band_rows",
    "denoise",
    "filter_hard",
    "filter_wiener",
    "finish_sums",
    "match_blocks",
    "start_sums",
]

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]
# Weighted sums of block estimates, and the weight of each block at its top left corner.
Sums = tuple[Floats, Floats]

LOGGER = logging.getLogger("emdask")
GROUP_BYTES = 8 << 20


def denoise(
    images: npt.NDArray[Any], sigmas: npt.NDArray[Any], profile: Profile = NORMAL
) -> Floats:
    """Denoise images one by one with BM3D.

    Parameters
    ----------
    images
        Noisy images, (n, h, w), finite.
    sigmas
        Standard deviation of the white noise of each image in grey levels, (n,). An image whose
        sigma is nothing beside its contrast is returned as it is.
    profile
        Settings.

    Returns
    -------
    (n, h, w) float32

    Examples
    --------
    >>> noisy = np.random.default_rng(0).normal(size=(1, 32, 32)).astype(np.float32)
    >>> bool(denoise(noisy, np.ones(1)).std() < 0.2)
    True
    """
    result = np.empty(images.shape, np.float32)
    with event.install_listener("numba:compile", _announcer):
        for target, image, sigma in zip(result, images, sigmas, strict=True):
            target[...] = denoise_batch(image[None], [sigma], profile, TWIN)[0]
    return result


class _Announcer(event.Listener):  # type: ignore[misc]
    """Says why the first call takes seconds; silent where the code is found on disk."""

    def __init__(self) -> None:
        self.said = False

    def on_start(self, _: Any) -> None:
        if not self.said:
            self.said = True
            LOGGER.info("bm3d: compiling for this processor, about 10 s, once; kept on disk.")

    def on_end(self, _: Any) -> None:
        pass


_announcer = _Announcer()


def slab_rows(n_images: int, layout: Layout) -> int:
    """Most rows of padded pixels whose sums fit into working memory at once: all."""
    return layout.height


def band_rows(n_images: int, layout: Layout, group_size: int) -> int:
    """Most rows of reference blocks whose groups fit into working memory at once."""
    row_bytes = np.dtype(np.int32).itemsize * n_images * layout.n_across * group_size
    return max(GROUP_BYTES // row_bytes, TILE_ROWS)


def match_blocks(
    guides: Floats, layout: Layout, rows: Rows, window_px: int, group_size: int, limit: float
) -> tuple[Integers, Integers]:
    """Find the most similar blocks of each reference block in a band; see `bm3d.Twin`."""
    first, stop = rows
    n_blocks = (stop - first) * layout.n_across
    groups = np.zeros((len(guides), n_blocks, group_size), np.int32)
    sizes = np.empty((len(guides), n_blocks), np.int32)
    shifts = search_shifts(window_px)
    scratch = match_scratch(len(shifts), layout.margin)
    reach = slice(STEP * first, STEP * (stop - 1) + BLOCK + 2 * layout.margin)
    for guide, its_groups, its_sizes in zip(guides, groups, sizes, strict=True):
        match_band(
            split_columns(guide[reach]),
            layout.width,
            first,
            layout.n_across,
            layout.margin,
            shifts,
            np.float32(limit),
            scratch,
            its_groups,
            its_sizes,
        )
    return groups, sizes


def start_sums(noisy: Floats, part: slice) -> Sums:
    """What the filters add to, zero."""
    shape = noisy[:, part].shape
    return np.zeros(shape, np.float32), np.zeros(shape, np.float32)


def filter_hard(
    noisy: Floats,
    layout: Layout,
    rows: Rows,
    groups: Integers,
    sizes: Integers,
    threshold: float,
    window: Floats,
    sums: Sums,
) -> None:
    """Filter the groups of a band by hard thresholding and add them; see `bm3d.Twin`."""
    blend = np.outer(window, window).ravel()
    scratch = np.empty(groups.shape[-1] * PIXELS, np.float32)
    for i in range(len(noisy)):
        shrink_hard(
            noisy[i].ravel(),
            layout.width,
            groups[i],
            sizes[i],
            np.float32(threshold),
            blend,
            scratch,
            *(part[i].ravel() for part in sums),
        )


def filter_wiener(
    noisy: Floats,
    basic: Floats,
    layout: Layout,
    rows: Rows,
    groups: Integers,
    sizes: Integers,
    window: Floats,
    sums: Sums,
) -> None:
    """Filter the groups of a band by Wiener gains and add them; see `bm3d.Twin`."""
    blend = np.outer(window, window).ravel()
    scratch = np.empty((2, groups.shape[-1] * PIXELS), np.float32)
    for i in range(len(noisy)):
        shrink_wiener(
            noisy[i].ravel(),
            basic[i].ravel(),
            layout.width,
            groups[i],
            sizes[i],
            blend,
            scratch,
            *(part[i].ravel() for part in sums),
        )


def finish_sums(sums: Sums, layout: Layout, window: Floats) -> Floats:
    """Divide the sums by the weights; `FAR` where there are none."""
    estimates, corner_weights = sums
    weights = spread_weights(corner_weights, window)
    return np.where(weights > 0, estimates / np.where(weights > 0, weights, 1), FAR)


TWIN = Twin(
    lay_out=lay_out,
    pad_images=pad_images,
    slab_rows=slab_rows,
    band_rows=band_rows,
    strip_rows=1,
    match_blocks=match_blocks,
    start_sums=start_sums,
    filter_hard=filter_hard,
    filter_wiener=filter_wiener,
    finish_sums=finish_sums,
)
