"""BM3D on one CPU core: block matching, collaborative filtering, aggregation.

Dabov, Foi, Katkovnik and Egiazarian, "Image denoising by sparse 3-D transform-domain collaborative
filtering", IEEE Transactions on Image Processing 16 (2007) 2080-2095.

Images are padded, scaled to unit noise and flat inside the compiled loops; the unit of work is a
band of rows of reference blocks, which bounds the memory of groups for images of any size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from numba import njit
from numba.core import event

from emdask.kernels.bm3d_plan import (
    BLOCK,
    FAR,
    NEVER_SIMILAR,
    NORMAL,
    STEP,
    WIDEST_WINDOW,
    Layout,
    Profile,
    blend_window,
    cosine_matrix,
    crop_image,
    double,
    halve,
    has_coarser_scale,
    lay_out,
    merge_scales,
    pad_image,
    search_shifts,
    spread_weights,
    wavelet_matrix,
)
from emdask.kernels.lanes_cpu import (
    N_LANES,
    add_weighted_block,
    block_transform,
    broadcast,
    keep_above,
    lanes_at_most,
    load,
    maximum,
    minimum,
    ones_above,
    store,
    total,
    trailing_zeros,
)

__all__ = ["denoise", "filter_hard", "filter_wiener", "match_blocks"]

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
F = TypeVar("F", bound=Callable[..., Any])

LOGGER = logging.getLogger("emdask")
PIXELS = BLOCK * BLOCK
HALF = np.float32(math.sqrt(0.5))
# A tile of distances, (rows x vectors x shifts x lanes), should stay in the second-level cache.
TILE_ROWS = 8
TILE_VECTORS = 3
# Columns kept of each phase around a tile: enough for the widest window.
NEAR_COLUMNS = 2 * -(-(WIDEST_WINDOW // 2) // STEP) + 1 + TILE_VECTORS * N_LANES
NEAR_COLUMNS = -(-NEAR_COLUMNS // N_LANES) * N_LANES
NEAR_ROW = STEP * NEAR_COLUMNS
# The last two lanes of a tile lack their right neighbours.
TILE_BLOCKS = TILE_VECTORS * N_LANES - 2
BAND_ROWS = 16
N_BINS = 64

forward_wavelet = block_transform(wavelet_matrix())
add_inverse_wavelet = add_weighted_block(np.linalg.inv(wavelet_matrix()))
forward_cosine = block_transform(cosine_matrix())
add_inverse_cosine = add_weighted_block(cosine_matrix().T)


def compiled(function: F) -> F:
    """Compile when first called, without the interpreter's lock, and keep the code on disk."""
    return njit(nogil=True, cache=True, error_model="numpy")(function)  # type: ignore[no-any-return]


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
            target[...] = _denoise_image(image, float(sigma), profile)
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


def _denoise_image(image: npt.NDArray[Any], sigma: float, profile: Profile) -> Floats:
    if sigma <= 1e-6 * float(np.ptp(image)):
        return image.astype(np.float32)
    offset = image.mean(dtype=np.float64)
    noisy = ((image - offset) / sigma).astype(np.float32)
    if profile.n_scales > 1 and has_coarser_scale(noisy.shape):
        estimate = _refine_coarse(noisy, profile, profile.n_scales)
    else:
        estimate = _take_both_steps(noisy, profile)
    result: Floats = (estimate * sigma + offset).astype(np.float32)
    return result


def _take_both_steps(noisy: Floats, profile: Profile) -> Floats:
    """Denoise an image of unit noise as the paper does."""
    layout = lay_out(noisy.shape, profile.window_px)
    padded = pad_image(noisy, layout)
    basic = _estimate(padded, None, layout, profile)
    return crop_image(_estimate(padded, basic, layout, profile), layout)


def _refine_coarse(noisy: Floats, profile: Profile, n_scales: int) -> Floats:
    """Denoise at half resolution, then filter by that estimate at full resolution."""
    half = halve(noisy)
    coarse = _take_both_steps(half, profile)
    if n_scales > 2 and has_coarser_scale(half.shape):
        coarse += _refine_coarse(half, profile, n_scales - 1)
        coarse /= 2
    layout = lay_out(noisy.shape, profile.window_px)
    basic = pad_image(double(coarse, noisy.shape), layout)
    fine = _estimate(pad_image(noisy, layout), basic, layout, profile)
    return merge_scales(crop_image(fine, layout), coarse)


def _estimate(noisy: Floats, basic: Floats | None, layout: Layout, profile: Profile) -> Floats:
    """One of the two steps: hard thresholding, or with a basic estimate the Wiener filter."""
    guide = noisy if basic is None else basic
    group_size = profile.hard_group if basic is None else profile.wiener_group
    distance = profile.hard_distance if basic is None else profile.wiener_distance
    limit = np.float32(min(distance * PIXELS, NEVER_SIMILAR))
    threshold = np.float32(profile.threshold)
    window = blend_window(profile.window_beta)
    planes = split_columns(guide)
    shifts = search_shifts(profile.window_px)
    scratch = _match_scratch(len(shifts), layout.margin)
    group = np.empty((2, group_size * PIXELS), np.float32)
    blend = np.outer(window, window).ravel()
    sums, weights = np.zeros((2, *noisy.shape), np.float32)
    flat = noisy.ravel(), guide.ravel(), sums.ravel(), weights.ravel()
    n_bands = -(-layout.n_down // BAND_ROWS)
    for band in range(n_bands):
        first = band * layout.n_down // n_bands
        n_rows = (band + 1) * layout.n_down // n_bands - first
        groups = np.empty((n_rows * layout.n_across, group_size), np.int32)
        sizes = np.empty(n_rows * layout.n_across, np.int32)
        start = layout.margin // STEP
        place = start + first, start, layout.n_across, layout.margin
        match_blocks(planes, layout.width, place, shifts, limit, scratch, groups, sizes)
        if basic is None:
            filter_hard(
                flat[0], layout.width, groups, sizes, threshold, blend, group, flat[2], flat[3]
            )
        else:
            filter_wiener(*flat[:2], layout.width, groups, sizes, blend, group, flat[2], flat[3])
    total_weights = spread_weights(weights, window)
    return np.where(total_weights > 0, sums / np.where(total_weights > 0, total_weights, 1), FAR)


def split_columns(padded: Floats) -> Floats:
    """Every `STEP`-th column of a padded image side by side; (STEP, height, columns).

    Reference blocks lie `STEP` apart, so the pixels that neighbouring blocks have in the same place
    become neighbours in memory.
    """
    height, width = padded.shape
    columns = -(-width // STEP) + (TILE_VECTORS + 1) * N_LANES
    planes = np.full((STEP, height, columns), FAR)
    for phase in range(STEP):
        part = padded[:, phase::STEP]
        planes[phase, :, : part.shape[1]] = part
    return planes


def _match_scratch(n_shifts: int, margin: int) -> tuple[Any, ...]:
    """Working memory: surroundings, sums, distances as floats and as bits, bins, keys, counts."""
    near = np.full((2 * margin + STEP * TILE_ROWS + BLOCK) * NEAR_ROW, FAR)
    sums = np.zeros(2 * TILE_ROWS * (TILE_VECTORS + 1) * N_LANES + N_LANES, np.float32)
    distances = np.empty(TILE_ROWS * TILE_VECTORS * n_shifts * N_LANES, np.float32)
    bins = np.empty(N_BINS * N_LANES, np.float32)
    keys = np.empty((N_LANES, n_shifts), np.int64)
    counts = np.empty(N_LANES, np.int64)
    return near, sums, distances, distances.view(np.uint32), bins, keys, counts


@compiled
def match_blocks(
    planes: Floats,
    width: int,
    place: tuple[int, int, int, int],
    shifts: Integers,
    limit: np.float32,
    scratch: tuple[Any, ...],
    groups: npt.NDArray[np.int32],
    sizes: npt.NDArray[np.int32],
) -> None:
    """Find the most similar blocks of each reference block in a band.

    Parameters
    ----------
    planes
        Padded image from `split_columns`.
    width
        Of the padded image.
    place
        First row and first column of the band's reference blocks, in steps, how many there are in a
        row, and the margin of the padded image.
    shifts
        Displacements to try, nearest first.
    limit
        Largest sum of squared differences of a similar block.
    scratch
        From `_match_scratch`.
    groups
        Set to the offsets of the blocks in the flat padded image, most similar first; (n_blocks,
        group_size). Equal distances: the block that is nearer in the image comes first.
    sizes
        Set to the number of blocks in each group, a power of two; (n_blocks,).
    """
    near, sums, distances, bits, bins, keys, counts = scratch
    top, left, n_across, margin = place
    n_rows = sizes.size // n_across
    n_tiles = (n_across + TILE_BLOCKS - 1) // TILE_BLOCKS
    n_strips = (n_rows + TILE_ROWS - 1) // TILE_ROWS
    for strip in range(n_strips):
        row = strip * n_rows // n_strips
        tile_rows = (strip + 1) * n_rows // n_strips - row
        for tile in range(n_tiles):
            first = tile * n_across // n_tiles
            n_blocks = (tile + 1) * n_across // n_tiles - first
            copy_surroundings(planes, top + row, left + first, tile_rows, margin, near)
            measure_distances(near, tile_rows, margin, shifts, sums, distances)
            for part in range(0, tile_rows * TILE_VECTORS):
                lane = part % TILE_VECTORS * N_LANES
                if lane < n_blocks:
                    start = part * len(shifts) * N_LANES
                    bound_distances(distances, start, len(shifts), groups.shape[1], limit, bins)
                    list_similar(distances, bits, start, len(shifts), bins, keys, counts)
                    y = row + part // TILE_VECTORS
                    x = first + lane
                    write_groups(
                        keys,
                        counts,
                        min(N_LANES, n_blocks - lane),
                        shifts,
                        width,
                        STEP * ((top + y) * width + left + x),
                        groups[y * n_across + x :],
                        sizes[y * n_across + x :],
                    )


@compiled
def copy_surroundings(
    planes: Floats, top: int, left: int, n_rows: int, margin: int, near: Floats
) -> None:
    """Copy what a tile can reach, so that neighbours lie at distances known to the compiler."""
    columns = planes.shape[2]
    plane = planes.shape[1] * columns
    width = 2 * (margin // STEP) + 1 + TILE_VECTORS * N_LANES
    start = (STEP * top - margin) * columns + left - margin // STEP
    for y in range(2 * margin + STEP * (n_rows - 1) + BLOCK):
        for phase in range(STEP):
            source = start + y * columns + phase * plane
            target = y * NEAR_ROW + phase * NEAR_COLUMNS
            for x in range(0, width, N_LANES):
                store(near, target + x, load(planes, source + x))


@compiled
def measure_distances(
    near: Floats, n_rows: int, margin: int, shifts: Integers, sums: Floats, distances: Floats
) -> None:
    """Sum of squared differences for a tile of reference blocks and all shifts.

    Squared differences are added once for all blocks that share them: per phase and triple of rows,
    then triples of rows to blocks, then triples of columns. `near` is (y, phase, column), and
    `distances` is (rows, vectors, shifts, lanes).
    """
    line = (TILE_VECTORS + 1) * N_LANES
    wide = TILE_ROWS * line
    home = margin * NEAR_ROW + margin // STEP
    for s in range(len(shifts)):
        dy, dx = shifts[s]
        far = home + dy * NEAR_ROW
        far_0 = far + (dx % STEP) * NEAR_COLUMNS + dx // STEP
        far_1 = far + ((dx + 1) % STEP) * NEAR_COLUMNS + (dx + 1) // STEP
        far_2 = far + ((dx + 2) % STEP) * NEAR_COLUMNS + (dx + 2) // STEP
        for v in range(0, TILE_VECTORS * N_LANES, N_LANES):
            # Over columns 0-1 and 0-2 of a triple, rows 0-2 of this and the last triple of rows.
            narrow_0 = narrow_1 = wide_0 = wide_1 = broadcast(np.float32(0))
            for triple in range(n_rows + 2):
                at = v + STEP * triple * NEAR_ROW
                d = load(near, home + at) - load(near, far_0 + at)
                narrow = d * d
                d = load(near, home + at + NEAR_COLUMNS) - load(near, far_1 + at)
                narrow = narrow + d * d
                d = load(near, home + at + 2 * NEAR_COLUMNS) - load(near, far_2 + at)
                third = d * d
                at += NEAR_ROW
                d = load(near, home + at) - load(near, far_0 + at)
                narrow = narrow + d * d
                d = load(near, home + at + NEAR_COLUMNS) - load(near, far_1 + at)
                narrow = narrow + d * d
                d = load(near, home + at + 2 * NEAR_COLUMNS) - load(near, far_2 + at)
                third = third + d * d
                if triple >= 2:
                    to = (triple - 2) * line + v
                    store(sums, to, narrow_0 + narrow_1 + narrow)
                    store(sums, wide + to, wide_0 + wide_1 + (narrow + third))
                # After the last triple this reads on, within `near`, and is not used.
                at += NEAR_ROW
                narrow_0 = narrow_1
                wide_0 = wide_1
                d = load(near, home + at) - load(near, far_0 + at)
                narrow = narrow + d * d
                d = load(near, home + at + NEAR_COLUMNS) - load(near, far_1 + at)
                narrow_1 = narrow + d * d
                d = load(near, home + at + 2 * NEAR_COLUMNS) - load(near, far_2 + at)
                wide_1 = narrow_1 + (third + d * d)
        for row in range(n_rows):
            for v in range(TILE_VECTORS):
                at = row * line + v * N_LANES
                first = load(sums, wide + at) + load(sums, wide + at + 1)
                to = ((row * TILE_VECTORS + v) * len(shifts) + s) * N_LANES
                store(distances, to, first + load(sums, at + 2))


@compiled
def bound_distances(
    distances: Floats, start: int, n_shifts: int, group_size: int, limit: np.float32, bins: Floats
) -> None:
    """Bound the `group_size`-th smallest distance of each lane; into `bins[:N_LANES]`.

    The shifts are dealt to bins; the bins' minima are distances too, so their `group_size`-th
    smallest is such a bound, and a tight one.
    """
    for b in range(N_BINS):
        lowest = broadcast(np.float32(3e38))
        for s in range(b, n_shifts, N_BINS):
            lowest = minimum(lowest, load(distances, start + s * N_LANES))
        store(bins, b * N_LANES, lowest)
    if group_size <= N_BINS:
        sort_bins(bins)
        bound = load(bins, (group_size - 1) * N_LANES)
        store(bins, 0, minimum(bound, broadcast(np.float32(limit))))
    else:
        store(bins, 0, broadcast(np.float32(limit)))


@compiled
def sort_bins(bins: Floats) -> None:
    """Sort the bins of each lane: Batcher's odd-even merge sort."""
    merged = 1
    while merged < N_BINS:
        gap = merged
        while gap >= 1:
            for first in range(gap % merged, N_BINS - gap, 2 * gap):
                for i in range(first, min(first + gap, N_BINS - gap)):
                    if (i ^ (i + gap)) < 2 * merged:
                        low = load(bins, i * N_LANES)
                        high = load(bins, (i + gap) * N_LANES)
                        store(bins, i * N_LANES, minimum(low, high))
                        store(bins, (i + gap) * N_LANES, maximum(low, high))
            gap //= 2
        merged *= 2


@compiled
def list_similar(
    distances: Floats,
    bits: npt.NDArray[np.uint32],
    start: int,
    n_shifts: int,
    bins: Floats,
    keys: Integers,
    counts: Integers,
) -> None:
    """List the shifts within each lane's bound as keys that sort by distance, then by shift."""
    bound = load(bins, 0)
    counts[:] = 0
    for s in range(n_shifts):
        at = start + s * N_LANES
        mask = lanes_at_most(load(distances, at), bound)
        while mask != 0:
            lane = trailing_zeros(mask)
            mask &= mask - 1
            # The bits of non-negative floats sort as the floats do.
            keys[lane, counts[lane]] = (np.int64(bits[at + lane]) << 32) | s
            counts[lane] += 1


@compiled
def write_groups(
    keys: Integers,
    counts: Integers,
    n_lanes: int,
    shifts: Integers,
    width: int,
    here: int,
    groups: npt.NDArray[np.int32],
    sizes: npt.NDArray[np.int32],
) -> None:
    """Turn the lists of neighbouring reference blocks into groups."""
    for lane in range(n_lanes):
        sort_keys(keys[lane], counts[lane])
        size = 1
        while 2 * size <= min(groups.shape[1], counts[lane]):
            size *= 2
        sizes[lane] = size
        for k in range(size):
            s = keys[lane, k] & 0xFFFFFFFF
            groups[lane, k] = here + STEP * lane + shifts[s, 0] * width + shifts[s, 1]


@compiled
def sort_keys(keys: Integers, n: int) -> None:
    """Insertion sort of the first `n` keys."""
    for i in range(1, n):
        key = keys[i]
        j = i
        while j > 0 and keys[j - 1] > key:
            keys[j] = keys[j - 1]
            j -= 1
        keys[j] = key


@compiled
def filter_hard(
    noisy: Floats,
    width: int,
    groups: npt.NDArray[np.int32],
    sizes: npt.NDArray[np.int32],
    threshold: np.float32,
    blend: Floats,
    group: Floats,
    sums: Floats,
    weights: Floats,
) -> None:
    """Filter the groups of a band by hard thresholding and add them to the sums.

    Parameters
    ----------
    noisy
        Flat padded image, in units of the noise.
    width
        Of the padded image.
    groups, sizes
        From `match_blocks`.
    threshold
        Coefficients up to this size are set to zero.
    blend
        Window of a block, flat.
    group
        Working memory, (2, group_size * PIXELS).
    sums
        Weighted sum of block estimates, added to; flat, as `noisy`.
    weights
        Weight of each block at its top left corner, added to; flat, as `noisy`.
    """
    limit = broadcast(np.float32(threshold))
    spectrum = group[0]
    scaled = np.empty_like(blend)
    for block in range(len(sizes)):
        end = sizes[block] * PIXELS
        for k in range(sizes[block]):
            forward_wavelet(noisy, groups[block, k], width, spectrum, k * PIXELS)
        haar(spectrum, end)
        n_kept = broadcast(np.float32(0))
        for at in range(0, end, N_LANES):
            value = load(spectrum, at)
            n_kept = n_kept + ones_above(value, limit)
            store(spectrum, at, keep_above(value, limit))
        inverse_haar(spectrum, end)
        weight = np.float32(1) / max(total(n_kept), np.float32(1))
        scale(blend, weight, scaled)
        for k in range(sizes[block]):
            add_inverse_wavelet(spectrum, k * PIXELS, scaled, sums, groups[block, k], width)
            weights[groups[block, k]] += weight


@compiled
def filter_wiener(
    noisy: Floats,
    basic: Floats,
    width: int,
    groups: npt.NDArray[np.int32],
    sizes: npt.NDArray[np.int32],
    blend: Floats,
    group: Floats,
    sums: Floats,
    weights: Floats,
) -> None:
    """Filter the groups of a band by the Wiener gain of the basic estimate and add them.

    Parameters
    ----------
    noisy, basic
        Flat padded image and its basic estimate, in units of the noise.
    width, groups, sizes, blend, group, sums, weights
        As in `filter_hard`.
    """
    one = broadcast(np.float32(1))
    spectrum = group[0]
    pilot = group[1]
    scaled = np.empty_like(blend)
    for block in range(len(sizes)):
        end = sizes[block] * PIXELS
        for k in range(sizes[block]):
            forward_cosine(noisy, groups[block, k], width, spectrum, k * PIXELS)
            forward_cosine(basic, groups[block, k], width, pilot, k * PIXELS)
        haar(spectrum, end)
        haar(pilot, end)
        energy = broadcast(np.float32(0))
        for at in range(0, end, N_LANES):
            value = load(pilot, at)
            power = value * value
            gain = power / (power + one)
            energy = energy + gain * gain
            store(spectrum, at, load(spectrum, at) * gain)
        inverse_haar(spectrum, end)
        weight = np.float32(1) / max(total(energy), np.float32(1e-3))
        scale(blend, weight, scaled)
        for k in range(sizes[block]):
            add_inverse_cosine(spectrum, k * PIXELS, scaled, sums, groups[block, k], width)
            weights[groups[block, k]] += weight


@compiled
def haar(group: Floats, end: int) -> None:
    """Orthonormal Haar transform across the blocks of a group, in place."""
    half = broadcast(HALF)
    gap = PIXELS
    while gap < end:
        for low in range(0, end, 2 * gap):
            for at in range(low, low + PIXELS, N_LANES):
                left = load(group, at)
                right = load(group, at + gap)
                store(group, at, (left + right) * half)
                store(group, at + gap, (left - right) * half)
        gap *= 2


@compiled
def inverse_haar(group: Floats, end: int) -> None:
    """Undo `haar`: the same steps in reverse order."""
    half = broadcast(HALF)
    gap = end // 2
    while gap >= PIXELS:
        for low in range(0, end, 2 * gap):
            for at in range(low, low + PIXELS, N_LANES):
                left = load(group, at)
                right = load(group, at + gap)
                store(group, at, (left + right) * half)
                store(group, at + gap, (left - right) * half)
        gap //= 2


@compiled
def scale(window: Floats, factor: float, scaled: Floats) -> None:
    """Multiply a window by a number."""
    factors = broadcast(np.float32(factor))
    for at in range(0, PIXELS, N_LANES):
        store(scaled, at, load(window, at) * factors)
