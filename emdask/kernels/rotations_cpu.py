"""Rotating a grid of Fourier terms, on one CPU core."""

from __future__ import annotations

from typing import Any

import numpy as np

from emdask.kernels.lanes_cpu import compiled, inlined

__all__ = ["rotate_grid"]


@inlined
def _turn(row: Any, x: int, y: int, z: int) -> float:
    """One coordinate of a point after a rotation."""
    return float(row[0] * x + row[1] * y + row[2] * z)


@inlined
def _weigh(position: float, coefficients: Any, weights: Any) -> int:
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
def rotate_grid(cells: Any, coefficients: Any, matrix: Any, total: Any) -> None:
    """Add to each cell what a grid has at the cell's place, rotated.

    Parameters
    ----------
    cells
        Terms of the whole grid, the kernel's transform divided out, complex64 (m, m, m); frequency
        0 first.
    coefficients
        Those of `slice_grid.GridPlan`, float32.
    matrix
        Rotation of points (x, y, z).
    total
        Complex64 (m, m, m // 2 + 1): of each cell k within m / 2 of frequency 0, the value at
        ``matrix @ k`` is added.
    """
    m, width = len(cells), coefficients.shape[1]
    along = np.empty((3, width), np.float32)
    for row in range(m):
        z = row - m if 2 * row > m else row
        for column in range(m):
            y = column - m if 2 * column > m else column
            for x in range(m // 2 + 1):
                if 4 * (x * x + y * y + z * z) > m * m:
                    break
                x0 = _weigh(_turn(matrix[0], x, y, z), coefficients, along[0])
                y0 = _weigh(_turn(matrix[1], x, y, z), coefficients, along[1])
                z0 = _weigh(_turn(matrix[2], x, y, z), coefficients, along[2])
                value = np.complex64(0)
                for k in range(width):
                    for j in range(width):
                        line = cells[(z0 + k) % m, (y0 + j) % m]
                        run = np.complex64(0)
                        for i in range(width):
                            run += along[0, i] * line[(x0 + i) % m]
                        value += along[2, k] * along[1, j] * run
                total[row, column, x] += value
