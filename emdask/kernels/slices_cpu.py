"""Reading and adding up central slices on one CPU core: the compiled twin of `slices_cuda`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.kernels.lanes_cpu import compiled
from emdask.kernels.slice_grid import GridPlan

__all__ = ["insert_views", "slice_views"]

Doubles = npt.NDArray[np.float64]


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
    coefficients = plan.coefficients.astype(np.float32)
    for matrix, phases, values in zip(matrices, _phases(plan, shifts_px), slices, strict=True):
        read_plane(cells, coefficients, plan.scale, plan.margin_px, matrix, *phases, values)
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
    coefficients = plan.coefficients.astype(np.float32)
    slices = np.asarray(slices, np.complex64)
    weights = np.asarray(weights, np.float32)
    views = zip(matrices, _phases(plan, shifts_px), slices, weights, strict=True)
    for matrix, phases, data, weight in views:
        add_plane(cells, coefficients, plan.scale, plan.margin_px, matrix, *phases, data, weight)


def _phases(plan: GridPlan, shifts_px: Doubles) -> list[tuple[Any, Any]]:
    """Factors that bring the particle from the origin to its place, along x and y of each view."""
    n = plan.box_px
    along_x, along_y = np.arange(n // 2 + 1), np.fft.fftfreq(n, 1 / n)
    turns = (shifts_px - n // 2) / n
    return [
        (
            np.exp(2j * np.pi * x * along_x).astype(np.complex64),
            np.exp(2j * np.pi * y * along_y).astype(np.complex64),
        )
        for x, y in turns
    ]


@compiled
def count_in_disc(n: int, ky: int) -> int:
    """How many kx >= 0 lie within the disc of a plane at ky."""
    kx = 0
    while 4 * (kx * kx + ky * ky) < n * n:
        kx += 1
    return kx


@compiled
def weigh(position: float, coefficients: Any, weights: Any) -> int:
    """Weights of the cells that reach a position along one axis; the first of them."""
    degrees, width = coefficients.shape
    first = int(np.ceil(position - 0.5 * width))
    offset = np.float32(2 * (first - position + 0.5 * width) - 1)
    for cell in range(width):
        value = coefficients[degrees - 1, cell]
        for degree in range(degrees - 2, -1, -1):
            value = value * offset + coefficients[degree, cell]
        weights[cell] = value
    return first


@compiled
def read_plane(
    cells: Any,
    coefficients: Any,
    scale: float,
    margin: int,
    matrix: Any,
    phases_x: Any,
    phases_y: Any,
    values: Any,
) -> None:
    """Interpolate one plane."""
    n, width, centre = len(values), coefficients.shape[1], cells.shape[0] // 2
    along = np.empty((3, width), np.float32)
    for row in range(n):
        ky = row - n if 2 * row >= n else row
        for kx in range(count_in_disc(n, ky)):
            x = scale * (kx * matrix[0, 0] + ky * matrix[1, 0])
            y = scale * (kx * matrix[0, 1] + ky * matrix[1, 1])
            z = scale * (kx * matrix[0, 2] + ky * matrix[1, 2])
            sign = -1.0 if x < 0 else 1.0
            x0 = weigh(sign * x, coefficients, along[0]) + margin
            y0 = weigh(sign * y, coefficients, along[1]) + centre
            z0 = weigh(sign * z, coefficients, along[2]) + centre
            value = np.complex64(0)
            for k in range(width):
                for j in range(width):
                    run = np.complex64(0)
                    for i in range(width):
                        run += along[0, i] * cells[z0 + k, y0 + j, x0 + i]
                    value += along[2, k] * along[1, j] * run
            if sign < 0:
                value = np.conj(value)
            values[row, kx] = value * phases_x[kx] * phases_y[row]


@compiled
def add_plane(
    cells: Any,
    coefficients: Any,
    scale: float,
    margin: int,
    matrix: Any,
    phases_x: Any,
    phases_y: Any,
    data: Any,
    weights: Any,
) -> None:
    """Add one plane to the sums."""
    n, width, centre = len(data), coefficients.shape[1], cells.shape[0] // 2
    along = np.empty((3, width), np.float32)
    for row in range(n):
        ky = row - n if 2 * row >= n else row
        for kx in range(count_in_disc(n, ky)):
            x = scale * (kx * matrix[0, 0] + ky * matrix[1, 0])
            y = scale * (kx * matrix[0, 1] + ky * matrix[1, 1])
            z = scale * (kx * matrix[0, 2] + ky * matrix[1, 2])
            sign = -1.0 if x < 0 else 1.0
            x0 = weigh(sign * x, coefficients, along[0]) + margin
            y0 = weigh(sign * y, coefficients, along[1]) + centre
            z0 = weigh(sign * z, coefficients, along[2]) + centre
            share = np.float32(0.5 if kx == 0 else 1.0)
            value = share * data[row, kx] * np.conj(phases_x[kx] * phases_y[row])
            imaginary = value.imag if sign > 0 else -value.imag
            weight = share * weights[row, kx]
            for k in range(width):
                for j in range(width):
                    factor = along[2, k] * along[1, j]
                    for i in range(width):
                        cell = cells[z0 + k, y0 + j, x0 + i]
                        cell[0] += factor * along[0, i] * value.real
                        cell[1] += factor * along[0, i] * imaginary
                        cell[2] += factor * along[0, i] * weight
