"""Block matching on one CPU core: the loops behind `bm3d_cpu.match_blocks`.

Neighbouring reference blocks are compared together, and share their squared differences.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.kernels.bm3d_plan import BLOCK, FAR, STEP, WIDEST_WINDOW
from emdask.kernels.lanes_cpu import (
    N_LANES,
    broadcast,
    compiled,
    lanes_at_most,
    load,
    maximum,
    minimum,
    multiply_add,
    store,
    trailing_zeros,
)

__all__ = ["TILE_ROWS", "match_band", "match_scratch", "split_columns"]

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

# A tile of distances, (rows x vectors x shifts x lanes), should stay in the second-level cache.
TILE_ROWS = 8
TILE_VECTORS = 3
# Columns kept of each phase around a tile: enough for the widest window.
NEAR_COLUMNS = 2 * -(-(WIDEST_WINDOW // 2) // STEP) + 1 + TILE_VECTORS * N_LANES
NEAR_COLUMNS = -(-NEAR_COLUMNS // N_LANES) * N_LANES
NEAR_ROW = STEP * NEAR_COLUMNS
# The last two lanes of a tile lack their right neighbours.
TILE_BLOCKS = TILE_VECTORS * N_LANES - 2
N_BINS = 64


def split_columns(pixels: Floats) -> Floats:
    """Every `STEP`-th column of an image side by side: (height, width) -> (STEP, height, columns).

    Reference blocks lie `STEP` apart, so the pixels that neighbouring blocks have in the same place
    become neighbours in memory.
    """
    height, width = pixels.shape
    columns = -(-width // STEP) + (TILE_VECTORS + 1) * N_LANES
    planes = np.full((STEP, height, columns), FAR)
    for phase in range(STEP):
        part = pixels[:, phase::STEP]
        planes[phase, :, : part.shape[1]] = part
    return planes


def match_scratch(n_shifts: int, margin: int) -> tuple[Any, ...]:
    """Working memory: surroundings, sums, distances as floats and as bits, bins, keys, counts."""
    near = np.full((2 * margin + STEP * TILE_ROWS + BLOCK) * NEAR_ROW, FAR)
    sums = np.zeros(2 * TILE_ROWS * (TILE_VECTORS + 1) * N_LANES + N_LANES, np.float32)
    distances = np.empty(TILE_ROWS * TILE_VECTORS * n_shifts * N_LANES, np.float32)
    bins = np.empty(N_BINS * N_LANES, np.float32)
    keys = np.empty((N_LANES, n_shifts), np.int64)
    counts = np.empty(N_LANES, np.int64)
    return near, sums, distances, distances.view(np.uint32), bins, keys, counts


@compiled
def match_band(
    planes: Floats,
    width: int,
    first_row: int,
    n_across: int,
    margin: int,
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
        The rows of the padded image that the band can reach, from `split_columns`.
    width
        Of the padded image.
    first_row
        First row of the band's reference blocks, in steps.
    n_across
        Reference blocks in a row.
    margin
        Of the padded image.
    shifts
        Displacements to try, nearest first.
    limit
        Largest sum of squared differences of a similar block.
    scratch
        From `match_scratch`.
    groups
        Set to the offsets of the blocks in the flat padded image, most similar first; (n_blocks,
        group_size). Equal distances: the block that is nearer in the image comes first.
    sizes
        Set to the number of blocks in each group, a power of two; (n_blocks,).
    """
    near, sums, distances, bits, bins, keys, counts = scratch
    n_rows = sizes.size // n_across
    n_tiles = (n_across + TILE_BLOCKS - 1) // TILE_BLOCKS
    n_strips = (n_rows + TILE_ROWS - 1) // TILE_ROWS
    for strip in range(n_strips):
        row = strip * n_rows // n_strips
        tile_rows = (strip + 1) * n_rows // n_strips - row
        for tile in range(n_tiles):
            first = tile * n_across // n_tiles
            n_blocks = (tile + 1) * n_across // n_tiles - first
            copy_surroundings(planes, row, first, tile_rows, margin, near)
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
                        (margin + STEP * (first_row + y)) * width + margin + STEP * x,
                        groups[y * n_across + x :],
                        sizes[y * n_across + x :],
                    )


@compiled
def copy_surroundings(
    planes: Floats, row: int, column: int, n_rows: int, margin: int, near: Floats
) -> None:
    """Copy what a tile can reach, so that neighbours lie at distances known to the compiler."""
    columns = planes.shape[2]
    plane = planes.shape[1] * columns
    width = 2 * (margin // STEP) + 1 + TILE_VECTORS * N_LANES
    start = STEP * row * columns + column
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
                narrow = multiply_add(d, d, narrow)
                d = load(near, home + at + 2 * NEAR_COLUMNS) - load(near, far_2 + at)
                third = d * d
                at += NEAR_ROW
                d = load(near, home + at) - load(near, far_0 + at)
                narrow = multiply_add(d, d, narrow)
                d = load(near, home + at + NEAR_COLUMNS) - load(near, far_1 + at)
                narrow = multiply_add(d, d, narrow)
                d = load(near, home + at + 2 * NEAR_COLUMNS) - load(near, far_2 + at)
                third = multiply_add(d, d, third)
                if triple >= 2:
                    to = (triple - 2) * line + v
                    store(sums, to, narrow_0 + narrow_1 + narrow)
                    store(sums, wide + to, wide_0 + wide_1 + (narrow + third))
                # After the last triple this reads on, within `near`, and is not used.
                at += NEAR_ROW
                narrow_0 = narrow_1
                wide_0 = wide_1
                d = load(near, home + at) - load(near, far_0 + at)
                narrow = multiply_add(d, d, narrow)
                d = load(near, home + at + NEAR_COLUMNS) - load(near, far_1 + at)
                narrow_1 = multiply_add(d, d, narrow)
                d = load(near, home + at + 2 * NEAR_COLUMNS) - load(near, far_2 + at)
                wide_1 = narrow_1 + multiply_add(d, d, third)
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
