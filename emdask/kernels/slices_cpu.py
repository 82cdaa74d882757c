"""Reading and adding up central slices on one CPU core: the compiled twin of `slices_cuda`.

A point of a slice is reached by ``width ** 3`` cells: runs along x, one for each z and y. Reading
adds up runs in registers as vectors, and weighs along x at the end; adding has the weights along x
times the values in registers. Planes lie anyhow in the grid, so the time goes into memory: the
runs of a point further along the row are asked for ahead.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from emdask.kernels.lanes_cpu import (
    N_LANES,
    broadcast,
    compiled,
    inlined,
    load,
    multiply_add,
    pair_totals,
    prefetch,
    store,
)
from emdask.kernels.slice_grid import GridPlan

__all__ = ["insert_views", "slice_views"]

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

# Points between the one at work and the one whose cells are asked for.
AHEAD = 4


class Layout(NamedTuple):
    """Where cells lie in the flat grid; distances in floats.

    Parameters
    ----------
    origin
        Offset of frequency 0.
    plane, row, channels
        Steps to the next z, y and x.
    taps
        One for each cell of the kernel along an axis. A tuple, because its length is part of its
        type: loops over it are compiled for that length.
    powers
        One for each coefficient of the polynomials of the weights.
    scale
        Cells between neighbouring frequencies of a slice.
    """

    origin: int
    plane: int
    row: int
    channels: int
    taps: tuple[int, ...]
    powers: tuple[int, ...]
    scale: float


def slice_views(cells: Any, plan: GridPlan, matrices: Doubles, shifts_px: Doubles) -> Any:
    """Interpolate the planes of views; as `slices.slice_volume`.

    Parameters
    ----------
    cells
        Half of the grid, complex64 of the plan's shape.
    plan
        Sizes and kernel.
    matrices
        Rotations, (v, 3, 3) float64.
    shifts_px
        Origins (x, y), (v, 2) float64.

    Returns
    -------
    (v, n, n // 2 + 1) complex64
    """
    n = plan.box_px
    slices = np.zeros((len(matrices), n, n // 2 + 1), np.complex64)
    layout, table = _lay_out(plan, channels=2)
    phases = plan.phases(shifts_px)
    read_planes(cells.view(np.float32).reshape(-1), layout, table, matrices, *phases, slices)
    return slices


def insert_views(
    cells: Any, plan: GridPlan, slices: Any, weights: Any, matrices: Doubles, shifts_px: Doubles
) -> None:
    """Add the planes of views to cells; as `slices.insert_slices`.

    Parameters
    ----------
    cells
        Sums, float32 of the plan's shape and 3.
    plan
        Sizes and kernel.
    slices, weights
        (v, n, n // 2 + 1), complex64 and float32.
    matrices, shifts_px
        As of `slice_views`.
    """
    slices, weights = np.asarray(slices, np.complex64), np.asarray(weights, np.float32)
    layout, table = _lay_out(plan, channels=3)
    phases = plan.phases(shifts_px)
    add_planes(cells.reshape(-1), layout, table, matrices, *phases, slices, weights)


def _lay_out(plan: GridPlan, channels: int) -> tuple[Layout, Floats]:
    """Steps of the grid, and the kernel's polynomials as rows of vectors, one row a degree.

    The first vector of a row serves z and y; the others, along x, have each weight once a channel.
    """
    row = plan.shape[2] * channels
    plane = plan.shape[1] * row
    origin = plan.centre * (plane + row) + plan.margin_px * channels
    degrees, width = plan.coefficients.shape
    table = np.zeros((degrees, (1 + channels) * N_LANES), np.float32)
    table[:, :width] = plan.coefficients
    table[:, N_LANES : N_LANES + channels * width] = plan.coefficients.repeat(channels, axis=1)
    taps, powers = tuple(range(width)), tuple(range(degrees))
    layout = Layout(origin, plane, row, channels, taps, powers, plan.scale)
    return layout, table.reshape(-1)


@inlined
def count_in_disc(n: int, ky: int) -> int:
    """How many kx from 0 on lie within the disc of a plane at ky."""
    kx = 0
    while 4 * (kx * kx + ky * ky) < n * n:
        kx += 1
    return kx


@inlined
def locate(kx: int, ky: int, matrix: Doubles, layout: Layout) -> Any:
    """Find the first cell that reaches a point, and how far the point lies from it.

    Returns
    -------
    is_mate, start, offset_z, offset_y, offset_x
        Whether the point is in the half of the grid that is not stored, and its mate was taken;
        offset of the cell in the flat grid; arguments of the polynomials.
    """
    half = 0.5 * len(layout.taps)
    x = layout.scale * (kx * matrix[0, 0] + ky * matrix[1, 0])
    y = layout.scale * (kx * matrix[0, 1] + ky * matrix[1, 1])
    z = layout.scale * (kx * matrix[0, 2] + ky * matrix[1, 2])
    is_mate = x < 0
    if is_mate:
        x, y, z = -x, -y, -z
    x, y, z = x - half, y - half, z - half
    first_x, first_y, first_z = np.ceil(x), np.ceil(y), np.ceil(z)
    start = layout.origin + int(first_z) * layout.plane + int(first_y) * layout.row
    start += int(first_x) * layout.channels
    offset_z = np.float32(2 * (first_z - z) - 1)
    offset_y = np.float32(2 * (first_y - y) - 1)
    offset_x = np.float32(2 * (first_x - x) - 1)
    return is_mate, start, offset_z, offset_y, offset_x


@inlined
def weigh(table: Floats, at: int, layout: Layout, offset: float) -> Any:
    """Eight weights: polynomials of an offset, whose coefficients begin at a column."""
    step = (1 + layout.channels) * N_LANES
    argument = broadcast(offset)
    value = load(table, at + (len(layout.powers) - 1) * step)
    for degree in range(len(layout.powers) - 2, -1, -1):
        value = multiply_add(value, argument, load(table, at + degree * step))
    return value


@inlined
def ask_for(flat: Floats, kx: int, ky: int, matrix: Doubles, layout: Layout) -> None:
    """Bring the cells that reach a point nearer."""
    start = locate(kx, ky, matrix, layout)[1]
    end = len(layout.taps) * layout.channels - 1
    for k in range(len(layout.taps)):
        for j in range(len(layout.taps)):
            at = start + k * layout.plane + j * layout.row
            prefetch(flat, at)
            prefetch(flat, at + end)


@compiled
def read_planes(
    flat: Floats,
    layout: Layout,
    table: Floats,
    matrices: Doubles,
    phases_x: Any,
    phases_y: Any,
    slices: Any,
) -> None:
    """Interpolate planes."""
    n = slices.shape[1]
    weights = np.empty(2 * N_LANES, np.float32)
    for view in range(len(slices)):
        matrix = matrices[view]
        for row in range(n):
            ky = row - n if 2 * row >= n else row
            n_columns = count_in_disc(n, ky)
            for kx in range(n_columns):
                if kx + AHEAD < n_columns:
                    ask_for(flat, kx + AHEAD, ky, matrix, layout)
                value = read_point(flat, kx, ky, matrix, layout, table, weights)
                slices[view, row, kx] = value * (phases_x[view, kx] * phases_y[view, row])


@inlined
def read_point(
    flat: Floats,
    kx: int,
    ky: int,
    matrix: Doubles,
    layout: Layout,
    table: Floats,
    weights: Floats,
) -> Any:
    """Interpolate one point; `weights` is working memory of two vectors."""
    is_mate, start, offset_z, offset_y, offset_x = locate(kx, ky, matrix, layout)
    store(weights, 0, weigh(table, 0, layout, offset_y))
    store(weights, N_LANES, weigh(table, 0, layout, offset_z))
    if len(layout.taps) > N_LANES // 2:
        first, second = add_runs_wide(flat, start, layout, weights)
        second = second * weigh(table, 2 * N_LANES, layout, offset_x)
        first = multiply_add(first, weigh(table, N_LANES, layout, offset_x), second)
    else:
        first = add_runs(flat, start, layout, weights)
        first = first * weigh(table, N_LANES, layout, offset_x)
    value = pair_totals(first)
    return np.conj(value) if is_mate else value


@inlined
def add_runs(flat: Floats, start: int, layout: Layout, weights: Floats) -> Any:
    """Weighted sum of runs of four cells over z and y."""
    runs = broadcast(np.float32(0))
    for k in range(len(layout.taps)):
        plane = broadcast(np.float32(0))
        for j in range(len(layout.taps)):
            at = start + k * layout.plane + j * layout.row
            plane = multiply_add(broadcast(weights[j]), load(flat, at), plane)
        runs = multiply_add(broadcast(weights[N_LANES + k]), plane, runs)
    return runs


@inlined
def add_runs_wide(flat: Floats, start: int, layout: Layout, weights: Floats) -> Any:
    """Weighted sum of runs of eight cells over z and y: two vectors."""
    left, right = broadcast(np.float32(0)), broadcast(np.float32(0))
    for k in range(len(layout.taps)):
        plane_left, plane_right = broadcast(np.float32(0)), broadcast(np.float32(0))
        for j in range(len(layout.taps)):
            at = start + k * layout.plane + j * layout.row
            weight = broadcast(weights[j])
            plane_left = multiply_add(weight, load(flat, at), plane_left)
            plane_right = multiply_add(weight, load(flat, at + N_LANES), plane_right)
        weight = broadcast(weights[N_LANES + k])
        left = multiply_add(weight, plane_left, left)
        right = multiply_add(weight, plane_right, right)
    return left, right


@compiled
def add_planes(
    flat: Floats,
    layout: Layout,
    table: Floats,
    matrices: Doubles,
    phases_x: Any,
    phases_y: Any,
    slices: Any,
    weights: Floats,
) -> None:
    """Add planes to the sums."""
    n = slices.shape[1]
    work = np.empty(5 * N_LANES, np.float32)
    for view in range(len(slices)):
        matrix = matrices[view]
        for row in range(n):
            ky = row - n if 2 * row >= n else row
            n_columns = count_in_disc(n, ky)
            for kx in range(n_columns):
                if kx + AHEAD < n_columns:
                    ask_for(flat, kx + AHEAD, ky, matrix, layout)
                # Points at kx = 0 are there with their mates.
                share = np.float32(0.5 if kx == 0 else 1.0)
                phase = phases_x[view, kx] * phases_y[view, row]
                value = share * slices[view, row, kx] * np.conj(phase)
                weight = share * weights[view, row, kx]
                add_point(flat, kx, ky, matrix, layout, table, work, value, weight)


@inlined
def add_point(
    flat: Floats,
    kx: int,
    ky: int,
    matrix: Doubles,
    layout: Layout,
    table: Floats,
    work: Floats,
    value: complex,
    weight: float,
) -> None:
    """Add one point to the cells that reach it; `work` is working memory of five vectors."""
    is_mate, start, offset_z, offset_y, offset_x = locate(kx, ky, matrix, layout)
    store(work, 0, weigh(table, 0, layout, offset_y))
    store(work, N_LANES, weigh(table, 0, layout, offset_z))
    for at in range(2 * N_LANES, 5 * N_LANES, 3):
        work[at] = value.real
        work[at + 1] = -value.imag if is_mate else value.imag
        work[at + 2] = weight
    first = load(work, 2 * N_LANES) * weigh(table, N_LANES, layout, offset_x)
    second = load(work, 3 * N_LANES) * weigh(table, 2 * N_LANES, layout, offset_x)
    if 3 * len(layout.taps) > 2 * N_LANES:
        third = load(work, 4 * N_LANES) * weigh(table, 3 * N_LANES, layout, offset_x)
        add_to_runs_wide(flat, start, layout, work, first, second, third)
    else:
        add_to_runs(flat, start, layout, work, first, second)


@inlined
def add_to_runs(
    flat: Floats, start: int, layout: Layout, weights: Floats, first: Any, second: Any
) -> None:
    """Add two vectors to the runs of all z and y, weighted."""
    for k in range(len(layout.taps)):
        for j in range(len(layout.taps)):
            at = start + k * layout.plane + j * layout.row
            weight = broadcast(weights[N_LANES + k] * weights[j])
            store(flat, at, multiply_add(weight, first, load(flat, at)))
            at += N_LANES
            store(flat, at, multiply_add(weight, second, load(flat, at)))


@inlined
def add_to_runs_wide(
    flat: Floats, start: int, layout: Layout, weights: Floats, first: Any, second: Any, third: Any
) -> None:
    """Add three vectors to the runs of all z and y, weighted."""
    for k in range(len(layout.taps)):
        for j in range(len(layout.taps)):
            at = start + k * layout.plane + j * layout.row
            weight = broadcast(weights[N_LANES + k] * weights[j])
            store(flat, at, multiply_add(weight, first, load(flat, at)))
            at += N_LANES
            store(flat, at, multiply_add(weight, second, load(flat, at)))
            at += N_LANES
            store(flat, at, multiply_add(weight, third, load(flat, at)))
