"""Reading and adding up central slices on one CUDA card: the twin of `slices_cpu`.

The loops are in ``slices.cu``, which is compiled when it is first needed: once per card, and kept
on disk by CuPy. Sums are gathered by each cell, image after image, and not scattered by the
points: the same images give the same bits, in any batch.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.blocks_cuda import share_bytes
from emdask.kernels.launch_cuda import MOST_IMAGES, Program, launch
from emdask.kernels.slice_grid import GridPlan

__all__ = ["insert_views", "slice_views"]

Array = Any
Doubles = npt.NDArray[np.float64]
PROGRAM = Program("slices.cu")

# Points that wait to be added up: 16 bytes each.
POINT_BYTES = 16
POINTS_BYTES = 512 << 20

# Of `slices.cu`: frequencies and cells that a thread block takes, along x, y and z; degree of the
# polynomial of the kernel's profile.
TILE = (8, 32)
CELLS = (8, 8, 4)
CELL_THREADS = (32, 8)
DEGREE = 10
# Bits after the point of the coarse parts of axes: products with frequencies of up to 11 bits, and
# the sums of two such, are exact in float32.
COARSE_BITS = 12
# Cells a frequency along an axis of the grid that count as none.
LEAST_SLOPE = 1e-6


def slice_views(cells: Array, plan: GridPlan, matrices: Doubles, shifts_px: Doubles) -> Array:
    """Interpolate the planes of views; as `slices.slice_volume`.

    Parameters
    ----------
    cells
        Half of the grid, complex64 of the plan's shape; CuPy.
    plan
        Sizes and kernel.
    matrices
        Rotations, (v, 3, 3) float64; NumPy.
    shifts_px
        Origins (x, y), (v, 2) float64; NumPy.

    Returns
    -------
    (v, n, n // 2 + 1) complex64
    """
    import cupy

    n = plan.box_px
    _, height, row = plan.shape
    middle = (plan.centre * height + plan.centre) * row + plan.margin_px
    polynomials = cupy.asarray(plan.coefficients, np.float32)
    views, shifts = _upload_views(plan, matrices, shifts_px)
    slices = cupy.empty((len(matrices), n, n // 2 + 1), np.complex64)
    for part in _batches(len(matrices), MOST_IMAGES):
        _launch_points(
            f"slice_points_{plan.width}",
            slices[part],
            (
                *(cells, np.int64(middle), height * row, row, polynomials, len(polynomials) - 1),
                *(views[part], shifts[part], n, slices[part]),
            ),
            polynomials.nbytes,
        )
    return slices


def insert_views(
    cells: Array,
    plan: GridPlan,
    slices: Array,
    weights: Array,
    matrices: Doubles,
    shifts_px: Doubles,
) -> None:
    """Add the planes of views to cells; as `slices.insert_slices`.

    Up to 512 MiB hold points on their way, but at least those of one view.

    Parameters
    ----------
    cells
        Sums, float32 of the plan's shape and 3; CuPy.
    plan
        Sizes and kernel.
    slices, weights
        (v, n, n // 2 + 1), complex64 and float32; CuPy.
    matrices, shifts_px
        As of `slice_views`.
    """
    import cupy

    slices = cupy.ascontiguousarray(slices, np.complex64)
    weights = cupy.ascontiguousarray(weights, np.float32)
    views, shifts = _upload_views(plan, matrices, shifts_px)
    profile = cupy.asarray(_profile(plan), np.float32)
    view_bytes = POINT_BYTES * plan.box_px * (plan.box_px // 2 + 1)
    at_once = min(POINTS_BYTES, share_bytes()) // view_bytes
    for part in _batches(len(matrices), min(max(1, at_once), MOST_IMAGES)):
        points = cupy.empty((*slices[part].shape, 4), np.float32)
        inputs = (slices[part], weights[part], shifts[part], plan.box_px)
        _launch_points("prepare_points", points, (*inputs, points))
        _launch_cells(cells, plan, points, views[part], profile)


def _batches(n: int, at_once: int) -> list[slice]:
    return [slice(start, min(start + at_once, n)) for start in range(0, n, at_once)]


def _upload_views(plan: GridPlan, matrices: Doubles, shifts_px: Doubles) -> tuple[Array, Array]:
    """Put on the card how planes lie, see ``View`` of ``slices.cu``, and turns a frequency."""
    import cupy

    axes = plan.scale * matrices[:, :2].reshape(-1, 6)
    coarse = np.ldexp(np.rint(np.ldexp(axes, COARSE_BITS)), -COARSE_BITS)
    inverse = 1 / np.where(abs(axes[:, :3]) < LEAST_SLOPE, LEAST_SLOPE, axes[:, :3])
    views = np.concatenate([coarse, axes - coarse, matrices[:, 2], inverse], axis=1)
    return (
        cupy.asarray(views, np.float32),
        cupy.asarray(shifts_px / plan.box_px, np.float32),
    )


@functools.lru_cache(maxsize=16)
def _profile(plan: GridPlan) -> Doubles:
    """Polynomial of the kernel in ``1 - (distance / half width)^2``, constant first."""
    node = np.polynomial.chebyshev.chebpts1(4 * DEGREE)
    place = plan.width / 2 * (1 - np.sqrt((1 - node) / 2))
    cell = np.floor(place).astype(int)
    offset = 2 * (place - cell) - 1
    powers = np.polynomial.polynomial.polyvander(offset, len(plan.coefficients) - 1)
    values = (powers * plan.coefficients[:, cell].T).sum(axis=1)
    fit = np.polynomial.Chebyshev.fit(node, values, DEGREE, domain=[-1, 1])
    inside = np.polynomial.Polynomial([-1, 2])
    return np.asarray(fit.convert(kind=np.polynomial.Polynomial)(inside).coef, np.float64)


def _launch_cells(
    cells: Array, plan: GridPlan, points: Array, views: Array, profile: Array
) -> None:
    """Let each cell add up the points of all views that reach it."""
    depth, height, width = plan.shape
    launch(
        PROGRAM,
        "insert_points",
        tuple(-(-size // tile) for size, tile in zip((width, height, depth), CELLS, strict=True)),
        CELL_THREADS,
        (
            *(points, len(points), plan.box_px, views, np.float32(plan.scale**-2)),
            *(np.float32(plan.width / 2), profile, depth, height, width),
            *(plan.centre, plan.centre, plan.margin_px, cells),
        ),
    )


def _launch_points(
    name: str, points: Array, arguments: tuple[Any, ...], shared_bytes: int = 0
) -> None:
    """Launch a kernel of one thread a frequency of a half plane."""
    n, rows, columns = points.shape[:3]
    grid = (-(-columns // TILE[0]), -(-rows // TILE[1]), n)
    launch(PROGRAM, name, grid, TILE, arguments, shared_bytes)
