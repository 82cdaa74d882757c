"""BM3D on one CUDA card: the twin of `bm3d_cpu`, with functions of the same names.

The loops are in ``bm3d.cu``, which is compiled when it is first needed: once per card, and kept on
disk by CuPy. Images are denoised many at a time. Sums are integers, so that the order in which
thread blocks run does not show: the same images give the same bits, in any batch.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from emdask.blocks_cuda import share_bytes
from emdask.checks import sentence
from emdask.errors import DeviceError
from emdask.kernels import bm3d_plan
from emdask.kernels.bm3d import Rows, Twin, denoise_batch
from emdask.kernels.bm3d_plan import BLOCK, FAR, NORMAL, STEP, Layout, Profile, search_shifts
from emdask.kernels.launch_cuda import MOST_IMAGES, Program, launch
from emdask.kernels.reductions import over_pixels

__all__ = [
    "TWIN",
    "denoise",
    "filter_hard",
    "filter_wiener",
    "finish_sums",
    "match_blocks",
    "start_sums",
]

Array = Any
PROGRAM = Program(
    "bm3d.cu",
    greedy=("filter_hard", "filter_wiener", "match_blocks"),
    notice="bm3d: loading its code for this card; the first time that takes about 15 s.",
)

# Working memory of a batch, bytes a pixel of the padded images; the tests add up what is alive.
PIXEL_BYTES = 64
BATCH_BYTES = 4 << 30
GROUP_BYTES = 256 << 20
# Of sums, weights and what becomes of them; an image that leaves no room is summed up in slabs.
SUM_BYTES = 24
LEAST_SLAB_ROWS = 256

# Of `match_blocks` in bm3d.cu: rows and columns of reference blocks that one thread block matches.
MATCH_ROWS = 3
MATCH_COLUMNS = 6
MATCH_THREADS = 256
LIST_BYTES = 8 * 64 * 8
# Rows and columns that it reads beyond the padded image.
SPARE_ROWS = STEP * (MATCH_ROWS - 1)
SPARE_COLUMNS = 16
# Of the filters: rows of reference blocks in a strip, and columns of them for one warp.
STRIP_ROWS = 4
STRIP_COLUMNS = 32
FILTER_WARPS = 4
TURN_FLOATS = BLOCK * BLOCK // 2 * 36 + 128
FLUSHED_COLUMNS = 8
GROUP_SIZES = (8, 16, 32, 64)
# Rows of an image are this far apart, modulo the 32 banks of the cache, so that those of a block do
# not clash.
PITCH = 8
TILE = (32, 8)


def denoise(images: Array, sigmas: Array, profile: Profile = NORMAL) -> Array:
    """Denoise images with BM3D, many at a time.

    The working memory is 64 bytes a pixel of the padded images that are denoised together, which
    are as many as fit into 4 GiB and into a quarter of the card's free memory, but at least one;
    and up to 256 MiB for groups and as much for cosine transforms. The sums of an image that exceed
    that quarter, 24 of the 64 bytes, are taken in slabs; the rest must fit.

    Parameters
    ----------
    images
        Noisy images, (n, h, w), finite; CuPy.
    sigmas
        Standard deviation of the white noise of each image in grey levels, (n,). An image whose
        sigma is nothing beside its contrast is returned as it is.
    profile
        Settings.

    Returns
    -------
    (n, h, w) float32
    """
    import cupy

    sigmas = cupy.asarray(sigmas, np.float64)
    result = cupy.empty(images.shape, np.float32)
    at_once = _images_at_once(lay_out(images.shape[1:], profile.window_px))
    for start in range(0, len(images), at_once):
        part = slice(start, start + at_once)
        result[part] = denoise_batch(images[part], sigmas[part], profile, TWIN)
    return result


def _images_at_once(layout: Layout) -> int:
    image_bytes = PIXEL_BYTES * layout.height * layout.width
    return min(max(1, min(BATCH_BYTES, share_bytes()) // image_bytes), MOST_IMAGES)


def lay_out(shape: tuple[int, int], window_px: int) -> Layout:
    """Plan padded images whose rows suit the card's memory; more columns on the right."""
    layout = bm3d_plan.lay_out(shape, window_px)
    reach = window_px // 2
    needless = 2 * (layout.margin - reach)
    width = layout.width - needless + SPARE_COLUMNS
    return layout._replace(
        height=layout.height - needless + SPARE_ROWS,
        width=width + (PITCH - width) % 32,
        margin=reach,
    )


def pad_images(images: Array, layout: Layout) -> Array:
    """Mirror the border and surround it with far grey levels: (n, h, w) -> (n, height, width)."""
    import cupy

    n, h, w = images.shape
    padded = cupy.empty((n, layout.height, layout.width), np.float32)
    _launch_pixels(
        "pad_images",
        padded,
        (
            *(cupy.ascontiguousarray(images, np.float32), h, w, layout.height, layout.width),
            *(layout.margin + border for border in layout.border),
            *(*layout.border, FAR, padded),
        ),
    )
    return padded


def slab_rows(n_images: int, layout: Layout) -> int:
    """Most rows of padded pixels whose sums fit into this thread's share of the memory."""
    rows = share_bytes() // (SUM_BYTES * n_images * layout.width)
    return max(rows, LEAST_SLAB_ROWS)


def band_rows(n_images: int, layout: Layout, group_size: int) -> int:
    """Most rows of reference blocks whose groups fit into working memory at once.

    Whole strips of the filters, so that bands do not show in the result.
    """
    row_bytes = 4 * (group_size + 1) * n_images * layout.n_across
    return int(max(1, GROUP_BYTES // row_bytes // STRIP_ROWS)) * STRIP_ROWS


def match_blocks(
    guides: Array, layout: Layout, rows: Rows, window_px: int, group_size: int, limit: float
) -> tuple[Array, Array]:
    """Find the most similar blocks of each reference block in a band; see `bm3d.Twin`."""
    import cupy

    n, n_rows = len(guides), rows[1] - rows[0]
    n_blocks = n_rows * layout.n_across
    groups = cupy.empty((n, n_blocks, group_size), np.int32)
    sizes = cupy.empty((n, n_blocks), np.int32)
    ranks, offsets = _shift_tables(cupy.cuda.Device().id, window_px, layout.width)
    n_down, n_columns = _match_tile(window_px)
    launch(
        PROGRAM,
        "match_blocks",
        (-(-layout.n_across // n_columns), -(-n_rows // n_down), n),
        (MATCH_THREADS,),
        (
            *(guides, np.int64(guides[0].size), layout.width, layout.margin, rows[0], n_rows),
            *(layout.n_across, window_px, n_down, n_columns, group_size, np.float32(limit)),
            *(ranks, offsets, groups, sizes),
        ),
        _match_bytes(n_down, n_columns, window_px),
    )
    return groups, sizes


@functools.cache
def _shift_tables(device: int, window_px: int, width: int) -> tuple[Array, Array]:
    """Rank of each shift in the order of an image, and offset of each shift, nearest first."""
    import cupy

    shifts = search_shifts(window_px)
    places = (shifts + window_px // 2) @ [window_px, 1]
    ranks = np.empty(len(shifts), np.uint16)
    ranks[places] = np.arange(len(shifts))
    tables = cupy.asarray(ranks), cupy.asarray((shifts @ [width, 1]).astype(np.int32))
    # Other threads use them on streams of their own.
    cupy.cuda.get_current_stream().synchronize()
    return tables


def _match_tile(window_px: int) -> tuple[int, int]:
    """Rows and columns of reference blocks whose distances fit into shared memory.

    Two thread blocks on a multiprocessor take turns at measuring and selecting: worth as much as
    one of twice the size.
    """
    most, in_all, reserved = _shared_bytes()
    best = (0, 0, 0)
    for n_down in range(1, MATCH_ROWS + 1):
        for n_columns in range(1, MATCH_COLUMNS + 1):
            needed = _match_bytes(n_down, n_columns, window_px)
            if needed <= most:
                resident = min(2, in_all // (needed + reserved))
                best = max(best, (resident * n_down * n_columns, n_down, n_columns))
    return best[1:]


def _match_bytes(n_down: int, n_columns: int, window_px: int) -> int:
    """Shared memory of a thread block of `match_blocks`."""
    room = -(-(window_px**2) // MATCH_THREADS) * MATCH_THREADS + 4
    return LIST_BYTES + 4 * n_down * n_columns * room


def _shared_bytes() -> tuple[int, int, int]:
    """Shared memory that a thread block may have, of a multiprocessor, and taken by the system."""
    import cupy

    attributes = cupy.cuda.Device().attributes
    return (
        attributes["MaxSharedMemoryPerBlockOptin"],
        attributes["MaxSharedMemoryPerMultiprocessor"],
        attributes["ReservedSharedMemoryPerBlock"],
    )


class Sums(NamedTuple):
    """What the filters add to, as integers.

    Parameters
    ----------
    values
        Weighted sums of block estimates, (n, height, width) uint64 (two's complement).
    weights
        Weight of each block at its top left corner; likewise.
    ticks
        In a value of one, (n,) float32: powers of two, so that no sum overflows. A block is taken
        up to 2^13 times at each of 64 places of a pixel, with a weight below 2^10.
    """

    values: Array
    weights: Array
    ticks: Array


def start_sums(noisy: Array, part: slice) -> Sums:
    """What the filters add to, zero."""
    import cupy

    largest = over_pixels("max", cupy.abs(cupy.where(noisy == FAR, np.float32(0), noisy)))
    shape = noisy[:, part].shape
    exponents = cupy.clip(cupy.frexp(largest)[1], -60, 60)
    return Sums(
        cupy.zeros(shape, np.uint64),
        cupy.zeros(shape, np.uint64),
        cupy.ldexp(cupy.ones_like(largest), 34 - exponents),
    )


def filter_hard(
    noisy: Array,
    layout: Layout,
    rows: Rows,
    groups: Array,
    sizes: Array,
    threshold: float,
    window: Array,
    sums: Sums,
) -> None:
    """Filter the groups of a band by hard thresholding and add them; see `bm3d.Twin`."""
    _filter("filter_hard", noisy, noisy, layout, rows, groups, sizes, threshold, window, sums)


def filter_wiener(
    noisy: Array,
    basic: Array,
    layout: Layout,
    rows: Rows,
    groups: Array,
    sizes: Array,
    window: Array,
    sums: Sums,
) -> None:
    """Filter the groups of a band by Wiener gains and add them; see `bm3d.Twin`."""
    _filter("filter_wiener", noisy, basic, layout, rows, groups, sizes, 0.0, window, sums)


def _filter(
    name: str,
    noisy: Array,
    basic: Array,
    layout: Layout,
    rows: Rows,
    groups: Array,
    sizes: Array,
    threshold: float,
    window: Array,
    sums: Sums,
) -> None:
    import cupy

    n_rows, group_size = rows[1] - rows[0], groups.shape[-1]
    window_px = 2 * layout.margin + 1
    ring_columns = _ring_columns(window_px)
    ring_rows = STEP * (STRIP_ROWS - 1) + BLOCK + window_px - 1
    shared_bytes = 4 * (TURN_FLOATS + ring_rows * ring_columns)
    if shared_bytes > (most := _shared_bytes()[0]):
        rule = f"a window of {window_px} px needs {shared_bytes:,} bytes of shared memory"
        remedy = f"This card has {most:,}: choose a smaller window_px."
        raise DeviceError(sentence("bm3d", rule, remedy=remedy))
    n_parts = -(-layout.n_across // STRIP_COLUMNS)
    part_columns = -(-layout.n_across // n_parts)
    n_warps = _fit_warps(shared_bytes)
    launch(
        PROGRAM,
        f"{name}_{min(size for size in GROUP_SIZES if size >= group_size)}",
        (-(-n_parts * -(-n_rows // STRIP_ROWS) // n_warps), 1, len(noisy)),
        (32, n_warps),
        (
            *(noisy, basic, np.int64(noisy[0].size), layout.width, layout.margin, rows[0], n_rows),
            *(layout.n_across, window_px, ring_columns, group_size, groups, sizes),
            *(np.float32(threshold), cupy.asarray(window)),
            *(sums.ticks, sums.values, sums.weights, part_columns),
        ),
        n_warps * shared_bytes,
    )


def _ring_columns(window_px: int) -> int:
    """Columns of a ring: those that are in use at once, and rows 8 or 24 banks apart."""
    columns = window_px - 1 + BLOCK + FLUSHED_COLUMNS - 1
    return next(n for n in range(columns, columns + 32) if n % 32 in (8, 24))


def _fit_warps(warp_bytes: int) -> int:
    """Warps of a thread block of the filters, by which most fit onto a multiprocessor."""
    most, in_all, reserved = _shared_bytes()
    fitting = range(1, min(FILTER_WARPS, most // warp_bytes) + 1)
    return max(fitting, key=lambda n: (n * (in_all // (n * warp_bytes + reserved)), n))


def finish_sums(sums: Sums, layout: Layout, window: Array) -> Array:
    """Divide the sums by the weights; `FAR` where there are none."""
    import cupy

    window = cupy.asarray(window)
    n, height, width = sums.values.shape
    spread, estimates = (cupy.empty((n, height, width), np.float32) for _ in range(2))
    _launch_pixels("spread_down", spread, (sums.weights, height, width, window, spread))
    _launch_pixels(
        "divide_sums",
        estimates,
        (sums.values, spread, height, width, window, sums.ticks, FAR, estimates),
    )
    return estimates


def _launch_pixels(name: str, images: Array, arguments: tuple[Any, ...]) -> None:
    """Launch a kernel of one thread a pixel."""
    n, height, width = images.shape
    launch(PROGRAM, name, (-(-width // TILE[0]), -(-height // TILE[1]), n), TILE, arguments)


TWIN = Twin(
    lay_out=lay_out,
    pad_images=pad_images,
    slab_rows=slab_rows,
    band_rows=band_rows,
    strip_rows=STRIP_ROWS,
    match_blocks=match_blocks,
    start_sums=start_sums,
    filter_hard=filter_hard,
    filter_wiener=filter_wiener,
    finish_sums=finish_sums,
)
