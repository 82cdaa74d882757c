"""BM3D, told once for all processors: scales, the two steps, bands of reference blocks.

Dabov, Foi, Katkovnik and Egiazarian, "Image denoising by sparse 3-D transform-domain collaborative
filtering", IEEE Transactions on Image Processing 16 (2007) 2080-2095.

Loops over pixels are those of a `Twin`: `bm3d_cpu` or `bm3d_cuda`. Arrays are of the twin's
library, and all images of a batch have the same shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from emdask.backend import array_namespace
from emdask.kernels.bm3d_plan import (
    BLOCK,
    FAR,
    NEVER_SIMILAR,
    STEP,
    Layout,
    Profile,
    blend_window,
    crop_images,
)
from emdask.kernels.reductions import mean_of_pixels, over_pixels
from emdask.kernels.scales import double, halve, has_coarser_scale, merge_scales

__all__ = ["Rows", "Twin", "denoise_batch", "denoise_unit_noise"]

# Noise below this share of an image's contrast is none.
LEAST_NOISE = 1e-6

Array = Any
# First reference row of a band, and the one after its last.
Rows = tuple[int, int]


class Twin(NamedTuple):
    """The loops of BM3D on one kind of processor; lengths in pixels, grey levels in noise units.

    Parameters
    ----------
    lay_out
        (shape, window_px) to the plan of the padded images.
    pad_images
        (images, layout) to padded images: (n, h, w) to (n, height, width).
    slab_rows
        (n_images, layout) to the most rows of padded pixels whose sums fit into working memory at
        once.
    band_rows
        (n_images, layout, group_size) to the most rows of reference blocks whose groups fit into
        working memory at once.
    strip_rows
        Rows of reference blocks that are added up together. Bands and slabs begin at multiples of
        it, and so do not show in the result.
    match_blocks
        (guides, layout, rows, window_px, group_size, limit) to groups and sizes. A group holds
        offsets of block corners in the flat padded image, the most similar first and the nearer in
        the image first where distances are equal; (n, n_blocks, group_size) int32, with zeros
        beyond the group's size. Sizes are powers of two; (n, n_blocks) int32. `limit` is the
        largest sum of squared differences of a similar block.
    start_sums
        (noisy, part) to what the filters add to, zero; for a slice of the rows of padded images.
    filter_hard
        (noisy, layout, rows, groups, sizes, threshold, window, sums): sets small coefficients to
        zero; `window` weighs the pixels along one side of a block, (BLOCK,).
    filter_wiener
        (noisy, basic, layout, rows, groups, sizes, window, sums): scales coefficients by the
        Wiener gain of a basic estimate.
    finish_sums
        (sums, layout, window) to padded estimates, `FAR` where no block was added.
    """

    lay_out: Callable[[tuple[int, int], int], Layout]
    pad_images: Callable[[Array, Layout], Array]
    slab_rows: Callable[[int, Layout], int]
    band_rows: Callable[[int, Layout, int], int]
    strip_rows: int
    match_blocks: Callable[[Array, Layout, Rows, int, int, float], tuple[Array, Array]]
    start_sums: Callable[[Array, slice], Any]
    filter_hard: Callable[[Array, Layout, Rows, Array, Array, float, Array, Any], None]
    filter_wiener: Callable[[Array, Array, Layout, Rows, Array, Array, Array, Any], None]
    finish_sums: Callable[[Any, Layout, Array], Array]


def denoise_batch(images: Array, sigmas: Array, profile: Profile, twin: Twin) -> Array:
    """Denoise images that fit into working memory together.

    Parameters
    ----------
    images
        Noisy images, (n, h, w), finite.
    sigmas
        Standard deviation of the white noise of each image in grey levels, (n,). An image whose
        sigma is nothing beside its contrast is returned as it is.
    profile
        Settings.
    twin
        The loops.

    Returns
    -------
    (n, h, w) float32
    """
    xp = array_namespace(images)
    contrasts = over_pixels("max", images).astype(np.float64) - over_pixels("min", images)
    sigmas = xp.asarray(sigmas, np.float64)
    chosen = xp.flatnonzero(sigmas > LEAST_NOISE * contrasts)
    result = images.astype(np.float32)
    if chosen.size:
        units = sigmas[chosen, None, None]
        offsets = mean_of_pixels(images[chosen])[:, None, None]
        scaled = _scale(images[chosen], offsets, units)
        estimates = denoise_unit_noise(scaled, profile, twin)
        result[chosen] = estimates * units.astype(np.float32) + offsets
    return result


def _scale(images: Array, offsets: Array, units: Array) -> Array:
    """Images of mean zero and unit noise; float32, through float64 that is gone afterwards."""
    scaled = images - offsets
    scaled /= units
    return scaled.astype(np.float32)


def denoise_unit_noise(noisy: Array, profile: Profile, twin: Twin) -> Array:
    """Denoise images of unit noise and mean zero; (n, h, w) float32."""
    if profile.n_scales > 1 and has_coarser_scale(noisy.shape[1:]):
        return _refine_coarse(noisy, profile, profile.n_scales, twin)
    return _take_both_steps(noisy, profile, twin)


def _take_both_steps(noisy: Array, profile: Profile, twin: Twin) -> Array:
    """Denoise as the paper does."""
    shape = noisy.shape[1:]
    layout = twin.lay_out(shape, profile.window_px)
    padded = twin.pad_images(noisy, layout)
    basic = _estimate(padded, None, layout, profile, twin)
    return crop_images(_estimate(padded, basic, layout, profile, twin), layout, shape)


def _refine_coarse(noisy: Array, profile: Profile, n_scales: int, twin: Twin) -> Array:
    """Denoise at half resolution, then filter by that estimate at full resolution."""
    half = halve(noisy)
    coarse = _take_both_steps(half, profile, twin)
    if n_scales > 2 and has_coarser_scale(half.shape[1:]):
        coarse += _refine_coarse(half, profile, n_scales - 1, twin)
        coarse /= 2
    shape = noisy.shape[1:]
    layout = twin.lay_out(shape, profile.window_px)
    basic = twin.pad_images(double(coarse, shape), layout)
    fine = _estimate(twin.pad_images(noisy, layout), basic, layout, profile, twin)
    return merge_scales(crop_images(fine, layout, shape), coarse)


def _estimate(
    noisy: Array, basic: Array | None, layout: Layout, profile: Profile, twin: Twin
) -> Array:
    """One of the two steps: hard thresholding, or with a basic estimate the Wiener filter."""
    slab_rows = twin.slab_rows(len(noisy), layout)
    if slab_rows >= layout.height:
        return _sum_up(noisy, basic, (0, layout.n_down), layout, profile, twin)
    xp = array_namespace(noisy)
    estimate = xp.full(noisy.shape, FAR, np.float32)
    for top in range(0, layout.height, slab_rows):
        bottom = min(top + slab_rows, layout.height)
        reaching = _rows_that_reach(top, bottom, profile.window_px // 2, layout, twin.strip_rows)
        if reaching[0] < reaching[1]:
            part = _part_of(reaching, layout)
            slab = _sum_up(noisy, basic, reaching, layout, profile, twin)
            kept = slice(max(top, part.start), min(bottom, part.stop))
            estimate[:, kept] = slab[:, kept.start - part.start : kept.stop - part.start]
    return estimate


def _rows_that_reach(top: int, bottom: int, reach: int, layout: Layout, strip_rows: int) -> Rows:
    """Rows of reference blocks, in whole strips, whose groups may hold pixels of these rows."""
    first = max(0, -(-(top - layout.margin - reach - BLOCK + 1) // STEP))
    stop = max(0, (bottom - 1 - layout.margin + reach) // STEP + 1)
    stop = -(-stop // strip_rows) * strip_rows
    return first // strip_rows * strip_rows, min(stop, layout.n_down)


def _part_of(rows: Rows, layout: Layout) -> slice:
    """Rows of pixels that the blocks of these rows can reach: a padded image of its own."""
    beyond = layout.height - STEP * (layout.n_down - 1)
    return slice(STEP * rows[0], STEP * (rows[1] - 1) + beyond)


def _sum_up(
    noisy: Array, basic: Array | None, rows: Rows, layout: Layout, profile: Profile, twin: Twin
) -> Array:
    """A step for some rows of reference blocks, and the rows of pixels that they can reach."""
    part = _part_of(rows, layout)
    sums = twin.start_sums(noisy, part)
    contiguous = array_namespace(noisy).ascontiguousarray
    noisy = contiguous(noisy[:, part])
    guide = noisy if basic is None else contiguous(basic[:, part])
    layout = layout._replace(height=part.stop - part.start, n_down=rows[1] - rows[0])
    group_size = profile.hard_group if basic is None else profile.wiener_group
    distance = profile.hard_distance if basic is None else profile.wiener_distance
    limit = min(distance * BLOCK * BLOCK, NEVER_SIMILAR)
    window = blend_window(profile.window_beta)
    most = twin.band_rows(len(noisy), layout, group_size)
    for first in range(0, layout.n_down, most):
        band = first, min(first + most, layout.n_down)
        groups, sizes = twin.match_blocks(guide, layout, band, profile.window_px, group_size, limit)
        if basic is None:
            twin.filter_hard(noisy, layout, band, groups, sizes, profile.threshold, window, sums)
        else:
            twin.filter_wiener(noisy, guide, layout, band, groups, sizes, window, sums)
    return twin.finish_sums(sums, layout, window)
