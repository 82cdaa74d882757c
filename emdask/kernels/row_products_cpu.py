"""Products of rows with a matrix on one CPU core, at the speed of a BLAS.

A BLAS rounds a row otherwise at another place among the rows. Here an element is the sum of its
products by fused multiply-add in the order of the matrix's rows, wherever it is.

Panels of 16 columns lie one after another. A tile of six rows and a panel is added up in twelve
registers; a depth of 256 keeps the panel in the first-level cache, and a block of 96 rows stays in
the second.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.kernels.lanes_cpu import N_LANES, add_row_products, compiled

__all__ = ["add_products", "multiply_panels", "pack_panels"]

Floats = npt.NDArray[np.float32]

PANEL = 2 * N_LANES
DEPTH = 256
BLOCK = 96

_add_six, _add_two, _add_one = (add_row_products(n_rows, PANEL) for n_rows in (6, 2, 1))


def pack_panels(matrix: Any) -> Floats:
    """Cut a matrix into panels of columns.

    Parameters
    ----------
    matrix : array, shape (m, f)

    Returns
    -------
    float32 array, shape (p, m, 16)
        The last panel is filled up with zeros.
    """
    m, n_columns = matrix.shape
    panels = np.zeros((-(-n_columns // PANEL), m, PANEL), np.float32)
    for start, panel in zip(range(0, n_columns, PANEL), panels, strict=True):
        part = matrix[:, start : start + PANEL]
        panel[:, : part.shape[1]] = part
    return panels


def multiply_panels(rows: Floats, panels: Floats) -> Floats:
    """Multiply each row with the matrix.

    Parameters
    ----------
    rows : float32 array, shape (n, m)
        In C order.
    panels : float32 array, shape (p, m, 16)
        As of `pack_panels`.

    Returns
    -------
    float32 array, shape (n, 16 p)
    """
    n_panels, m, _ = panels.shape
    sums = np.zeros((len(rows), n_panels * PANEL), np.float32)
    add_products(rows.reshape(-1), panels.reshape(-1), len(rows), m, n_panels, sums.reshape(-1))
    return sums


@compiled
def add_products(rows: Floats, panels: Floats, n: int, m: int, n_panels: int, sums: Floats) -> None:
    width = n_panels * PANEL
    for block in range(0, n, BLOCK):
        end = min(n, block + BLOCK)
        for first in range(0, m, DEPTH):
            depth = min(DEPTH, m - first)
            for p in range(n_panels):
                panel = (p * m + first) * PANEL
                i = block
                while i + 6 <= end:
                    row, place = i * m + first, i * width + p * PANEL
                    _add_six(rows, row, m, panels, panel, depth, sums, place, width)
                    i += 6
                while i + 2 <= end:
                    row, place = i * m + first, i * width + p * PANEL
                    _add_two(rows, row, m, panels, panel, depth, sums, place, width)
                    i += 2
                if i < end:
                    row, place = i * m + first, i * width + p * PANEL
                    _add_one(rows, row, m, panels, panel, depth, sums, place, width)
